"""The processes of a run get a base model's files once: hashed by rank 0, converted on each node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_gguf_import import write_gguf

NODE = """
import sys
import torch
import torch.distributed as dist
from support import config_of
from cyberlm.models import model_files
from cyberlm.models.loading import load_base
from cyberlm.runtime import distributed
from cyberlm.runtime.world import World

rank, folder = int(sys.argv[1]), sys.argv[2]
hash_files, hashed = model_files.sha256_of, []
model_files.sha256_of = lambda files: hashed.append(files) or hash_files(files)
config = config_of("model=local", f"model.path={folder}/m.gguf")
distributed.join(World(rank, 2, 0, f"file://{folder}/store", "a test"))
if rank == 0:
    model_files.locate(config.model)
model_files.fetch([config.model])
loaded = load_base(config.model, config.quant, torch.device("cpu"))
dist.barrier()
print(len(hashed), loaded.weights_hash)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_nodes_hash_a_model_once_and_convert_it_each(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    started = []
    for rank in (0, 1):
        cache = tmp_path / f"node_{rank}"
        environment = {**os.environ, "CYBERLM_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-W", "ignore", "-c", NODE, str(rank), str(tmp_path)]
        started.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120)[0].split()[-2:] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [hashed for hashed, _ in said] == ["1", "0"]
    assert said[0][1] == said[1][1] and len(said[0][1]) == 64
    for rank in (0, 1):
        assert list((tmp_path / f"node_{rank}" / "models").glob("*/model.safetensors"))

"""The numbers of an optimizer step cross the processes once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import SHORT

LINE = [
    *("model=tiny_random", "prompt=letter", "logger=none", "trainer.accelerator=cpu", "method=lora", *SHORT),
    *("data.max_train=40", "data.max_validation=5", "data.max_test=5", "data.micro_batch_size=2"),
    *("evaluation.generate=false", "evaluation.base=false", "trainer.accumulate_grad_batches=3"),
    *("trainer.devices=2", "+callbacks.count._target_=training_support.CountCollectives"),
]


@pytest.mark.slow
def test_a_step_has_one_collective_beside_its_gradients(tmp_path: Path) -> None:
    """Of three micro-batches in two processes; DDP's own reduction of gradients is not called from Python."""
    command = [sys.executable, "-m", "cyberlm", "train", *LINE, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        _, *batches = json.loads((tmp_path / "run" / f"collectives_{rank}.json").read_text())
        assert len(batches) == 10  # 20 micro-batches, 10 in each process
        steps = [[name for batch in batches[k : k + 3] for name in batch] for k in range(0, 9, 3)]
        assert steps == [["all_reduce"]] * 3

"""Whole runs, recorded before a change and compared after it.

    python tests/golden.py record /tmp/before         # in a checkout of the code before; about five minutes
    python tests/golden.py record /tmp/after          # in the one after
    python tests/golden.py compare /tmp/before /tmp/after

Runs go through `train.py`, `evaluate.py` and `python -m cyberlm` alone, on `model=tiny_random` and a few embedded
questions, each in a fork of one process that has imported the libraries. Compared are all tensors (bytes), rows of
metrics.csv and predictions, and every value of the JSON files; `MASKED` names what differs by nature. Files of an older
format are compared by the values that both hold: what one side lacks is listed apart, and fails only with --strict.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SAVED = ROOT / "tests" / "saved_runs"

TINY = (
    "model=tiny_random model.tiny.hidden_size=32 model.tiny.intermediate_size=64 model.tiny.num_hidden_layers=1 "
    "logger=none callbacks=none trainer.accelerator=cpu data.max_train=16 data.max_validation=8 data.max_test=8 "
    "data.micro_batch_size=4 evaluation.max_new_tokens=6 optim.learning_rate=1e-3 trainer.max_epochs=2"
)
SMALL_RANK = "method.lora.rank=2"


def jobs() -> Iterator[tuple[str, str]]:
    """Name and command line of each job, in order; folders are relative to the recording."""
    for method in ("sft", "lora", "qlora"):
        rank = "" if method == "sft" else SMALL_RANK
        for prompt in ("letter", "text"):
            for devices in (1, 2):
                name = f"{method}_{prompt}_{devices}"
                yield (
                    name,
                    f"train.py method={method} {rank} prompt={prompt} {TINY} trainer.devices={devices} "
                    + (f"hydra.run.dir=runs/{name}"),
                )
    yield "full", f"train.py {SMALL_RANK} prompt=letter {TINY} evaluation=full hydra.run.dir=runs/full"
    yield (
        "sweep",
        f"train.py -m method.lora.rank=1,2 method.lora.alpha=2,4 prompt=letter {TINY} hydra.sweep.dir=runs/sweep",
    )
    yield "merged", "-m cyberlm export run=runs/lora_letter_1 to=merged out=runs/merged questions=4 accelerator=cpu"
    yield "adapter", "-m cyberlm export run=runs/qlora_text_1 to=adapter out=runs/adapter questions=4 accelerator=cpu"
    common = "trainer.accelerator=cpu logger=none evaluation.max_new_tokens=6"
    yield "again", f"evaluate.py run=runs/lora_letter_1 {common} hydra.run.dir=runs/again"
    several = "runs/lora_letter_1,runs/sft_letter_1,runs/qlora_letter_1,runs/merged"
    yield "several", f"evaluate.py 'runs=[{several}]' {common} hydra.run.dir=runs/several"
    for run in ("lora", "sft", "qlora"):
        yield f"old_{run}", f"evaluate.py run=outputs/{run} {common} hydra.run.dir=runs/old_{run}"
    yield "old_stopped", "train.py trainer.resume=outputs/stopped"
    yield "recompute_full", "-m cyberlm recompute runs/full"
    yield "recompute_old", "-m cyberlm recompute outputs/lora"


MASKED = {
    r"seconds|per_second|_bytes$|wall_time": "times and memory of the machine",
    r"command|git_commit|cpu_count|platform|^(cyberlm|torch|python)$|version": "where and by which code it ran",
    r"provenance\.config$": "hash of a configuration that gains keys",
    r"\.(source|base)$|weights_path": "paths",
    r"time$|speed": "columns of times in metrics.csv",
}
"""Patterns of the paths that are left out, each with its reason."""


def record(folder: Path) -> int:
    """Runs every job in `folder`; returns how many failed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(SAVED, folder / "outputs")
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline")
    os.environ.update(CYBERLM_CACHE_DIR=str(folder / "cache"), PYTHONPATH=str(ROOT))
    sys.path.insert(0, str(ROOT))
    import bitsandbytes  # noqa: F401
    import lightning  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    failed = 0
    for name, line in jobs():
        code = run_job(folder, name, shlex.split(line))
        print(f"{name}: {'done' if code == 0 else f'exit code {code}, see {folder / name}.log'}", flush=True)
        failed += code != 0
    return failed


def run_job(folder: Path, name: str, line: list[str]) -> int:
    """Runs a command in a fork of this process, its output in a log; returns the exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.chdir(folder)
        log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if line[0] == "-m":
            sys.argv = [str(ROOT / "cyberlm" / "__main__.py"), *line[2:]]
            runpy.run_module(line[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(ROOT / line[0]), *line[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def masked(path: str) -> bool:
    return any(re.search(pattern, path) for pattern in MASKED)


def flattened(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of JSON values, each with its dotted path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flattened(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flattened(item, f"{path}[{number}]")
    elif not masked(path):
        yield path, value


def values_of(file: Path) -> dict[str, object]:
    """What is compared of one file, by path within it."""
    if file.suffix == ".safetensors":
        return tensors_of(file)
    if file.suffix == ".jsonl":
        return dict(flattened([json.loads(line) for line in file.read_text("utf-8").split("\n") if line]))
    if file.suffix == ".csv":
        return dict(flattened(list(csv.DictReader(file.read_text("utf-8").splitlines()))))
    return dict(flattened(json.loads(file.read_text("utf-8"))))


def tensors_of(file: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return {name: _digest(tensor) for name, tensor in load_file(file).items()}


def _digest(tensor: "Tensor") -> str:
    """Type, shape and hash of a tensor's bytes."""
    import torch

    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()[:16]}"


COMPARED = ("results.json", "evidence.json", "predictions.jsonl", "passes.jsonl", "metrics.csv", "split_manifest.json")


def files_of(folder: Path) -> dict[str, Path]:
    found = [file for name in COMPARED for file in folder.rglob(name)]
    found += folder.rglob("*.safetensors")
    found += folder.rglob("leaderboard.csv")
    return {str(file.relative_to(folder)): file for file in sorted(found) if "/cache/" not in str(file)}


def compare(before: Path, after: Path, strict: bool) -> int:
    """Prints every difference; returns how many there are."""
    old, new = files_of(before), files_of(after)
    different = 0
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            print(f"{name}: only {'before' if name in old else 'after'}")
            different += strict
            continue
        left, right = values_of(old[name]), values_of(new[name])
        for path in sorted(left.keys() & right.keys()):
            if left[path] != right[path] and not (left[path] in (None, "") and right[path] in (None, "")):
                print(f"{name}: {path}: {str(left[path])[:100]} -> {str(right[path])[:100]}")
                different += 1
        for side, paths in (("before", left.keys() - right.keys()), ("after", right.keys() - left.keys())):
            if paths:
                print(f"{name}: {len(paths)} paths only {side}, such as {', '.join(sorted(paths)[:3])}")
                different += strict
    print(f"{len(old)} files before, {len(new)} after: {different} differences")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("folder", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    both.add_argument("--strict", action="store_true", help="what one side lacks is a difference too")
    chosen = parser.parse_args()
    if chosen.command == "record":
        return min(record(chosen.folder.resolve()), 1)
    return min(compare(chosen.before, chosen.after, chosen.strict), 1)


if __name__ == "__main__":
    raise SystemExit(main())

"""Whole runs, recorded before a change and compared after it.

    python tests/golden.py record /tmp/before         # in a checkout of the code before; ten minutes
    python tests/golden.py record /tmp/after          # in the one after
    python tests/golden.py compare /tmp/before /tmp/after

Runs go through `train.py`, `evaluate.py` and `python -m cyberlm` alone, on `model=tiny_random` and a few embedded
questions: the same script runs unchanged on older and newer code (copy it into a checkout that lacks it). Compared are
exit codes, tensors (bytes), rows of metrics.csv and predictions, and every value of the JSON files and configurations;
`MASKED` names the paths left out.

Exit status 1 and a line for each difference: another value at the same path, or a path of one side alone.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

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
                settings = f"method={method} {rank} prompt={prompt} {TINY} trainer.devices={devices}"
                yield name, f"train.py {settings} hydra.run.dir=runs/{name}"
    yield "full", f"train.py {SMALL_RANK} prompt=letter {TINY} evaluation=full hydra.run.dir=runs/full"
    sweep = "method.lora.rank=1,2 method.lora.alpha=2,4 hydra.sweep.dir=runs/sweep"
    yield "sweep", f"train.py -m {sweep} prompt=letter {TINY}"
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
    yield "recompute_old_evaluation", "-m cyberlm recompute outputs/evaluation"


MASKED = {
    r"seconds|per_second": "times and speed of the machine",
    r"peak_\w*(bytes|gib)$": "memory of the machine, and its prediction",
    r"version$|(^|\.)(cyberlm|torch|transformers|peft|lightning|bitsandbytes|datasets|torchmetrics)$": "versions",
    r"(^|\.)(python|platform|cpu_count)$": "the machine",
    r"provenance\.command$": "command line, which holds the folder of the recording in a sweep",
    r"provenance\.config$": "hash of a configuration, which gains keys",
}
"""Patterns of the paths (within a file) that are left out, each with its reason."""

EXIT_CODES = "exit_codes.json"


def record(folder: Path) -> int:
    """Runs every job in `folder`, in place of an earlier recording; returns how many failed."""
    if (folder / EXIT_CODES).exists():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds files that are no recording. Name an empty or a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    codes: dict[str, int] = {}
    (folder / EXIT_CODES).write_text(json.dumps(codes), "utf-8")
    shutil.copytree(SAVED, folder / "outputs")
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"WANDB_MODE": "offline", "CYBERLM_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    for name, line in jobs():
        started = time.monotonic()
        script, *arguments = shlex.split(line)
        command = [sys.executable, script if script == "-m" else str(ROOT / script), *arguments]
        with (folder / f"{name}.log").open("w") as log:
            done = subprocess.run(command, cwd=folder, env=os.environ | variables, stdout=log, stderr=log, check=False)
        codes[name] = done.returncode
        (folder / EXIT_CODES).write_text(json.dumps(codes, indent=2), "utf-8")
        ended = f"exit code {codes[name]}, see {folder / name}.log" if codes[name] else "done"
        print(f"{name}: {ended} ({time.monotonic() - started:.0f} s)", flush=True)
    return sum(code != 0 for code in codes.values())


def flattened(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of JSON values (empty lists and objects are leaves), each with its dotted path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flattened(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from flattened(item, f"{path}[{number}]")
    else:
        yield path, value


def values_of(file: Path) -> Iterator[tuple[str, object]]:
    """Values of one file, by path within it."""
    if file.suffix == ".safetensors":
        return tensors_of(file)
    if file.suffix == ".yaml":
        return flattened(OmegaConf.to_container(OmegaConf.load(file)))
    text = file.read_text("utf-8")
    if file.suffix == ".jsonl":
        return flattened([json.loads(line) for line in text.split("\n") if line])
    if file.suffix == ".csv":
        return flattened(list(csv.DictReader(text.splitlines())))
    return flattened(json.loads(text))


def tensors_of(file: Path) -> Iterator[tuple[str, str]]:
    """Type, shape and hash of the bytes of each tensor."""
    import torch
    from safetensors.torch import load_file

    for name, tensor in load_file(file).items():
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        yield name, f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()[:16]}"


COMPARED = (
    *("results.json", "evidence.json", "predictions.jsonl", "passes.jsonl", "metrics.csv", "split_manifest.json"),
    *("leaderboard.csv", "export.json", "status.json", "config.yaml", "*.safetensors", EXIT_CODES),
)


def read_recording(folder: Path) -> tuple[dict[str, str], set[str]]:
    """Text of every value by `file: path`, and the masked paths.

    None and the empty string are one value. Numbers are equal in all their digits, and 1 is not 1.0.
    """
    values: dict[str, str] = {}
    left_out: set[str] = set()
    for file in sorted(file for name in COMPARED for file in folder.rglob(name)):
        if folder / "cache" in file.parents or file.parent.name.startswith(".hydra"):
            continue
        for path, value in values_of(file):
            if any(re.search(pattern, path) for pattern in MASKED):
                left_out.add(re.sub(r"\[\d+\]", "[]", path))
            else:
                values[f"{file.relative_to(folder)}: {path}"] = "nothing" if value in (None, "") else repr(value)
    if not values:
        raise SystemExit(f"{folder} holds no recording. Make one: python tests/golden.py record {folder}")
    return values, left_out


def compare(before: Path, after: Path) -> int:
    """Prints every difference; returns how many there are."""
    (old, left_out), (new, _) = read_recording(before), read_recording(after)
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    for name in different:
        print(f"{name}: {old.get(name, 'only after')} -> {new.get(name, 'only before')}")
    print("masked:", ", ".join(sorted(left_out)))
    print(f"{len(old)} values before, {len(new)} after: {len(different)} differences")
    return len(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("folder", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        return min(record(chosen.folder.resolve()), 1)
    return min(compare(chosen.before, chosen.after), 1)


if __name__ == "__main__":
    raise SystemExit(main())

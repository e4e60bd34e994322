"""Real launchers for tests of runs in several processes, the lines that they are given, and what a run has to equal."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as L
from support import SHORT
from training_support import AtBatch, repeatable_rows

from cyberlm.evaluation.results import read_predictions
from cyberlm.runtime import signals

ROOT = Path(__file__).parents[2]
SECONDS = 240
"""Longest time for one step of a test, on two slow cores that other tests may share."""

TRAIN = (
    *("model=tiny_random", "logger=none", "prompt=letter", "trainer.accelerator=cpu", *SHORT),
    *("method=lora", "method.lora.dropout=0.1", "evaluation.generate=false", "evaluation.base=false"),
    *("data.max_train=18", "data.max_validation=4", "data.max_test=6", "data.micro_batch_size=4"),
    *("trainer.max_epochs=2", "trainer.checkpoint_every_n_steps=1", "optim.learning_rate=1e-2"),
)
"""Six optimizer steps of two processes; in the last of each epoch one of them has no question."""
EVALUATE = ("logger=none", "trainer.accelerator=cpu", "evaluation.generate=true", "evaluation.max_new_tokens=6")
TORCHRUN = ("-m", "torch.distributed.run")
WHOLE = ("adapter/adapter_model.safetensors", "predictions.jsonl")


class Once(AtBatch):
    """Before a micro-batch sends this process a signal, or waits for one that asks to stop; not in the run's next life.

    Args:
        signum: None to wait.
    """

    def __init__(self, batch: int, rank: int = 0, signum: int | None = None) -> None:
        super().__init__(batch, rank)
        self.signum = signum

    def act(self, trainer: L.Trainer, pl_module: object) -> None:
        mark = Path(trainer.default_root_dir) / "once"
        if mark.exists():
            return
        mark.touch()
        if self.signum is not None:
            os.kill(os.getpid(), self.signum)
        until = time.monotonic() + SECONDS
        while signals.requested() is None and time.monotonic() < until:
            time.sleep(0.05)


def once(**arguments: object) -> list[str]:
    """Overrides that add `Once` to a run's callbacks."""
    given = {"_target_": "cluster_support.Once", **arguments}
    return [f"+callbacks.once.{key}={value}" for key, value in given.items()]


def environment(**variables: str) -> dict[str, str]:
    """For a command: it imports this project and the callbacks of its tests, on one thread."""
    path = os.pathsep.join(map(str, [ROOT, ROOT / "tests", ROOT / "tests" / "cluster"]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def run(line: Sequence[object], code: int = 0, **variables: str) -> str:
    """Runs a command to its end; returns what it printed.

    Raises:
        AssertionError: With that, if it ends with another code.
    """
    done = subprocess.run(
        list(map(str, line)),
        **{"cwd": ROOT, "env": environment(**variables), "timeout": SECONDS, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "check": False},
    )
    assert done.returncode == code, done.stdout
    return str(done.stdout)


def wait_for(what: Callable[[], object], told: Callable[[], str] = str) -> None:
    """Waits until something holds.

    Raises:
        AssertionError: With what `told` gives, if it takes too long.
    """
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until, told()
        time.sleep(0.1)


def whole(folder: Path) -> dict[str, object]:
    """What has to be bit-identical: the hash of each file, and rows of metrics."""
    found: dict[str, object] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WHOLE}
    newest = max((folder / "checkpoints").glob("step_*.ckpt"))
    return {**found, "steps": newest.name, "metrics.csv": repeatable_rows(folder)}


def answers(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Scores, choice and generated text of each question, by model."""
    rows = read_predictions(folder / "predictions.jsonl")
    return {name: [(a.id, a.choice, a.option_logprobs, a.generated) for a in found] for name, found in rows.items()}

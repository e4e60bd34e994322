"""Training runs that tests stop, resume and compare; callbacks that stop them (`_target_: training_support.Kill`)."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from support import SHORT, config_of, short_questions, tiny

from cyberlm.config.schema import TrainConfig
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit


class Snapshots(L.Callback):
    """Copies the run's folder before each micro-batch and at the end of training, as a kill would leave it."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        folder = Path(trainer.default_root_dir)
        shutil.copytree(folder, folder.parent / "snapshots" / f"{self.count:03d}")
        self.count += 1

    on_train_end = on_train_batch_start


class AtBatch(L.Callback):
    """Acts before one micro-batch of a run, counted from 1 over all epochs; 0 is the first validation.

    Args:
        batch: Number of the micro-batch.
        rank: Of the process that acts; None for all.
    """

    def __init__(self, batch: int, rank: int | None = None) -> None:
        self.batch, self.rank = batch, rank

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        if number == self.batch and self.rank in (None, trainer.global_rank):
            self.act(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.batch and not trainer.current_epoch:
            self.act(trainer, pl_module)

    def act(self, trainer: L.Trainer, pl_module: Any) -> None:
        raise NotImplementedError


class Kill(AtBatch):
    """Sends this process a signal, several times if need be."""

    def __init__(self, signum: int, batch: int, times: int = 1, rank: int | None = None) -> None:
        super().__init__(batch, rank)
        self.signum, self.times = signum, times

    def act(self, trainer: L.Trainer, pl_module: Any) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.signum)


class Fail(AtBatch):
    """Ends training by an error."""

    def act(self, trainer: L.Trainer, pl_module: Any) -> None:
        raise ConnectionAbortedError


class Poison(AtBatch):
    """Makes one trained weight infinite, or its gradient NaN."""

    def __init__(self, batch: int, gradient: bool = False, rank: int | None = None) -> None:
        super().__init__(batch, rank)
        self.gradient = gradient

    def act(self, trainer: L.Trainer, pl_module: Any) -> None:
        trained = next(p for p in pl_module.parameters() if p.requires_grad)
        if self.gradient:
            trained.register_hook(lambda gradient: gradient * float("nan"))
        else:
            trained.data.view(-1)[0] = float("inf")


class CountCollectives(L.Callback):
    """Each process writes the collectives that Python code calls, from one micro-batch to the next."""

    NAMES = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list", "barrier")

    def __init__(self) -> None:
        self.called: list[list[str]] = [[]]

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def count(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
            self.called[-1].append(name)
            return call(*given, **named)

        for name in self.NAMES:
            setattr(dist, name, partial(count, name, getattr(dist, name)))

    def on_train_batch_start(self, *_: Any) -> None:
        self.called.append([])

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        Path(trainer.default_root_dir, f"collectives_{trainer.global_rank}.json").write_text(json.dumps(self.called))


class Record(L.Callback):
    """Each process writes which hyperparameters it trains with."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        lora = pl_module.model.peft_config["default"]
        seen = {"rank": lora.r, "learning_rate": pl_module.optim.learning_rate, "processes": trainer.world_size}
        Path(trainer.default_root_dir, f"process_{trainer.global_rank}.json").write_text(json.dumps(seen))


def with_callback(config: TrainConfig, name: str, **arguments: Any) -> TrainConfig:
    """The configuration with one of these callbacks."""
    callback = {"_target_": f"training_support.{name}", **arguments}
    config.callbacks = {**config.callbacks, "of_the_test": callback}
    return config


def run_config(method: str, *overrides: str) -> TrainConfig:
    """16 optimizer steps in two epochs, with dropout and a checkpoint after each."""
    dropout = ["method.lora.dropout=0.1"] if method != "sft" else []
    fixed = ("trainer.max_epochs=2", "data.micro_batch_size=4", "optim.learning_rate=1e-3")
    points = ("trainer.checkpoint_every_n_steps=1", "trainer.keep_checkpoints=2")
    return config_of(f"method={method}", *fixed, *points, *SHORT, *dropout, *overrides)


def fit_again(config: TrainConfig, folder: Path, resume: bool = True) -> tuple[dict[str, float], int]:
    """Trains in `folder`; the model's weights are saved there, to be compared."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded, prompt = tiny(config)
    config.trainer.resume = str(folder) if resume else None
    torch.manual_seed(54321 if resume else 12345)  # random numbers come from the seed or a checkpoint, not from here
    encoded = prompt.encode(short_questions(32))
    parts = {"train": encoded, "validation": encoded[:16]}
    found = fit(config, folder, loaded, prompt, parts, [], CostMeter())
    torch.save({name: p.detach() for name, p in loaded.model.named_parameters() if p.requires_grad}, folder / "w.pt")
    return found


MEASURED = ("train/tokens_per_second", "train/peak_memory_gib")
"""Columns of metrics.csv that no other run repeats."""


def repeatable_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, without what no other run repeats."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def differences(whole: Path, again: Path) -> list[str]:
    """What of the outcome is not bit for bit the same: weights, metrics, and all of the last checkpoint."""
    found = []
    if repeatable_rows(whole) != repeatable_rows(again):
        found.append("metrics.csv")
    first, second = (torch.load(folder / "w.pt", weights_only=True) for folder in (whole, again))
    found += [f"w.pt {name}" for name in first if not torch.equal(first[name], second[name])]
    newest = [max((folder / "checkpoints").glob("step_*.ckpt")) for folder in (whole, again)]
    if newest[0].name != newest[1].name:
        return [*found, f"{newest[0].name} {newest[1].name}"]
    first, second = (torch.load(file, weights_only=True) for file in newest)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "QuestionData"):
        if not same(first[key], second[key]):
            found.append(f"{newest[0].name} {key}")
    random = [checkpoint["callbacks"]["RandomState"] for checkpoint in (first, second)]
    return found if same(*random) else [*found, "random state"]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)

"""A run that is photographed before every micro-batch, as a kill would leave it, and resumed from there."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from support import SHORT, config_of, short_questions, tiny

from cyberlm.config.schema import TrainConfig
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit


class Snapshots(L.Callback):
    """Copies the run's folder before each micro-batch and at the end of training."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        shutil.copytree(self.folder, self.folder.parent / "snapshots" / f"{self.count:03d}")
        self.count += 1

    on_train_end = on_train_batch_start


def run_config(method: str, *overrides: str) -> TrainConfig:
    dropout = ["method.lora.dropout=0.1"] if method != "sft" else []
    fixed = ("trainer.max_epochs=2", "data.micro_batch_size=4", "optim.learning_rate=1e-3")
    points = ("trainer.checkpoint_every_n_steps=1", "trainer.keep_checkpoints=2")
    return config_of(f"method={method}", *fixed, *points, *SHORT, *dropout, *overrides)


def photograph(config: TrainConfig, folder: Path) -> None:
    folder.mkdir(parents=True)
    config.callbacks["snapshots"] = {"_target_": "resume_support.Snapshots", "folder": str(folder)}
    try:
        fit_again(config, folder, resume=False)
    finally:
        del config.callbacks["snapshots"]


def fit_again(config: TrainConfig, folder: Path, resume: bool = True) -> tuple[dict[str, float], int]:
    """Trains in `folder`; the model's weights are saved there, to be compared."""
    loaded, prompt = tiny(config)
    config.trainer.resume = str(folder) if resume else None
    torch.manual_seed(54321 if resume else 12345)  # random numbers come from the seed or a checkpoint, not from here
    encoded = prompt.encode(short_questions(32))
    parts = {"train": encoded, "validation": encoded[:16]}
    found = fit(config, folder, loaded, prompt, parts, [], CostMeter())
    torch.save({name: p.detach() for name, p in loaded.model.named_parameters() if p.requires_grad}, folder / "w.pt")
    return found


def differences(whole: Path, again: Path) -> list[str]:
    """What of the outcome is not bit for bit the same: weights, metrics, and all of the last checkpoint."""
    found = []
    if (whole / "metrics.csv").read_bytes() != (again / "metrics.csv").read_bytes():
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
    random = [next(state for name, state in c["callbacks"].items() if "RandomState" in name) for c in (first, second)]
    return found if same(*random) else [*found, "random state"]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)

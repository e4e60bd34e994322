"""One of two processes that train and answer together: `python two_ranks.py RANK FOLDER`, with FOLDER/cases.json.

Also the callbacks that tests give to runs, by the name of this file.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.distributed as dist
from support import config_of, short_questions, tiny

from cyberlm.evaluation.inference import predict
from cyberlm.runs.processes import meet, store_at
from cyberlm.runtime import distributed
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit


class Killed(Exception):
    pass


class KilledAfter(L.Callback):
    """Ends training in the middle of an epoch, in all processes."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_: object) -> None:
        if trainer.global_step == self.steps:
            raise Killed


class Record(L.Callback):
    """Each process writes which hyperparameters it trains with."""

    def on_fit_start(self, trainer, pl_module) -> None:
        lora = pl_module.model.peft_config["default"]
        seen = {"rank": lora.r, "learning_rate": pl_module.optim.learning_rate, "processes": trainer.world_size}
        Path(trainer.default_root_dir, f"process_{trainer.global_rank}.json").write_text(json.dumps(seen))


class Ask(L.Callback):
    """Sends one process a signal within a step, or makes a weight of it alone infinite."""

    def __init__(self, rank: int, batch: int, signum: int | None = None) -> None:
        self.rank, self.batch, self.signum = rank, batch, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank != self.rank or trainer.current_epoch or batch_idx != self.batch:
            return
        if self.signum is not None:
            os.kill(os.getpid(), self.signum)
        else:
            next(p for p in pl_module.parameters() if p.requires_grad).data.view(-1)[0] = float("inf")


def trained(overrides: list[str], count: int, killed_after: int | None, folder: Path, rank: int | None = None) -> None:
    """Trains on short questions, and writes the weights, the tokens and the answers that came of it.

    Args:
        killed_after: Optimizer steps after which training is ended, and resumed.
        rank: Which of two processes this is; None for one alone.
    """
    folder.mkdir(exist_ok=True)
    config, questions, meter = config_of(*overrides), short_questions(count), CostMeter()
    (first, prompt), again = tiny(config), tiny(config)[0]
    encoded = prompt.encode(questions)
    both = {"train": encoded, "validation": encoded}
    if rank is not None:
        meet(store_at(folder / "store", 2), rank, 2)
    if killed_after is not None:
        config.callbacks["killed"] = {"_target_": "two_ranks.KilledAfter", "steps": killed_after}
        try:
            fit(config, folder, first, prompt, both, [], CostMeter())
        except Killed:
            del config.callbacks["killed"]
        config.trainer.resume = str(folder)
    fit(config, folder, again, prompt, both, [], meter)
    answers = predict(again, prompt, questions, encoded, config.evaluation, config.data.max_batch_tokens, "it")
    if distributed.rank() == 0:
        (folder / "answers.json").write_text(json.dumps([asdict(answer) for answer in answers]))
        (folder / "tokens.json").write_text(json.dumps([meter.nonpadding, meter.label]))
        weights = {name: value.detach() for name, value in again.model.named_parameters() if value.requires_grad}
        torch.save(weights, folder / "weights.pt")
    if rank is not None:
        dist.destroy_process_group()


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        trained(*case, folder / name, rank)


if __name__ == "__main__":
    sys.modules["two_ranks"] = sys.modules["__main__"]  # else its callbacks' Killed would be another class
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]))

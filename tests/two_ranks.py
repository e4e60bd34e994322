"""One of two processes that train and answer together: `python two_ranks.py RANK FOLDER`, with FOLDER/cases.json."""

import contextlib
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from support import config_of, short_questions, tiny
from training_support import with_callback

from cyberlm.evaluation.inference import predict
from cyberlm.runtime import distributed
from cyberlm.runtime.world import World
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit


def trained(overrides: list[str], count: int, killed_at: int | None, folder: Path, rank: int | None = None) -> None:
    """Trains on short questions, and writes the weights, the tokens and the answers that came of it.

    Args:
        killed_at: Micro-batch before which training is ended, and resumed.
        rank: Number of this process of two; None for one alone.
    """
    folder.mkdir(exist_ok=True)
    config, questions, meter = config_of(*overrides), short_questions(count), CostMeter()
    (first, prompt), again = tiny(config), tiny(config)[0]
    encoded = prompt.encode(questions)
    both = {"train": encoded, "validation": encoded}
    if rank is not None:
        distributed.join(World(rank, 2, rank, f"file://{folder.absolute()}/store", "a test"))
    if killed_at is not None:
        with contextlib.suppress(ConnectionAbortedError):
            fit(with_callback(config, "Fail", batch=killed_at), folder, first, prompt, both, [], CostMeter())
        config.callbacks = {}
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
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]))

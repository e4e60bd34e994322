"""One of two processes that train and answer together: `python two_ranks.py RANK FOLDER`, with FOLDER/cases.json."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from support import config_of, short_questions, tiny

from cyberlm import ranks
from cyberlm.callbacks import CostMeter
from cyberlm.evaluation import predict
from cyberlm.runs.fitting import fit
from cyberlm.runs.team import meet, store_at


def trained(overrides: list[str], count: int, folder: Path, rank: int | None = None) -> None:
    """Trains on short questions, and writes the weights, the tokens and the answers that came of it.

    Args:
        rank: Which of two processes this is; None for one alone.
    """
    folder.mkdir(exist_ok=True)
    config, questions, meter = config_of(*overrides), short_questions(count), CostMeter()
    loaded, prompt = tiny(config)
    encoded = prompt.encode(questions)
    if rank is not None:
        meet(store_at(folder / "store", 2), rank, 2)
    fit(config, folder, loaded, prompt, {"train": encoded, "validation": encoded}, [], meter)
    answers = predict(loaded, prompt, questions, encoded, config.evaluation, config.data.max_batch_tokens, "it")
    if ranks.rank() == 0:
        (folder / "answers.json").write_text(json.dumps([asdict(answer) for answer in answers]))
        (folder / "tokens.json").write_text(json.dumps([meter.nonpadding, meter.label]))
        weights = {name: value.detach() for name, value in loaded.model.named_parameters() if value.requires_grad}
        torch.save(weights, folder / "weights.pt")
    if rank is not None:
        dist.destroy_process_group()


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for name, (overrides, count) in json.loads((folder / "cases.json").read_text()).items():
        trained(overrides, count, folder / name, rank)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""One of two processes that train and answer together: `python two_ranks.py RANK FOLDER`, with FOLDER/cases.json."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from support import config_of, fit_tiny, short_questions, tiny

from cyberlm import ranks
from cyberlm.evaluation import predict
from cyberlm.runs.team import meet


def trained(overrides: list[str], questions: int, folder: Path) -> None:
    """Trains on short questions, and writes the weights and the answers that came of it."""
    config = config_of(*overrides)
    loaded, _, _ = fit_tiny(config, short_questions(questions), folder)
    prompt, asked = tiny(config)[1], short_questions(questions)
    encoded = prompt.encode(asked)
    answers = predict(loaded, prompt, asked, encoded, config.evaluation, config.data.max_batch_tokens, "it")
    if ranks.rank() == 0:
        (folder / "answers.json").write_text(json.dumps([asdict(answer) for answer in answers]))
        names = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
        torch.save({name: value for name, value in names.items() if value.is_floating_point()}, folder / "weights.pt")


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet(dist.FileStore(str(folder / "store"), 2), rank, 2)
    for name, (overrides, questions) in json.loads((folder / "cases.json").read_text()).items():
        trained(overrides, questions, folder / name)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]))

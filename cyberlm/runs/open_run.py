"""Opens a finished run: its tuned model, base and prompt."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from cyberlm.config.schema import TrainConfig
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import BaseModel, load_tokenizer
from cyberlm.models.methods.method import method_of, saved_folder
from cyberlm.models.saving import read_prompt
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import read_json
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import make_task


def load_tuned(trained: TrainConfig, run: Path, device: torch.device) -> LoadedModel:
    """Loads a run's tuned model."""
    return method_of(trained.method).load(base_of(trained, run, device), saved_folder(trained.method, run))


def base_of(trained: TrainConfig, run: Path, device: torch.device) -> BaseModel:
    """The base that a run was tuned from; its weights are found to be the same when it is loaded."""
    return BaseModel(trained.model, trained.quant, device, partial(check_weights, runs=[run]))


def prompt_of(trained: TrainConfig, run: Path) -> Prompt:
    """The prompt that a run was tuned with."""
    prompt = Prompt(trained.prompt, load_tokenizer(trained.model), make_task(trained))
    check_prompt(prompt, saved_folder(trained.method, run))
    return prompt


def check_weights(now: str, runs: Iterable[Path]) -> None:
    """Refuses base weights that are not those that runs were trained on."""
    for run in runs:
        then = dict(read_json(run / "provenance.json")).get("weights")
        if then != now:
            problem = Problem(f"hash {then} then, {now} now", "the same file or revision")
            raise RunError(f"The base weights are not those that {run} was trained on:", [problem])


def check_prompt(prompt: Prompt, tuned: Path) -> None:
    """Refuses a prompt, or a tokenizer, that is not the one that a model was tuned with."""
    saved, now = read_prompt(tuned), prompt.identity()
    saved.setdefault("tokenizer", now["tokenizer"])  # older runs have not saved it
    problems = [
        Problem(f"{name} {saved.get(name)} in {tuned}, {value} now", "the same template and tokenizer")
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if problems:
        raise RunError("The prompt is not the one that this model was tuned with:", problems)

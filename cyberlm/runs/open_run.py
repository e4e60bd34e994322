"""A finished run's tuned model, opened again for whatever comes after training."""

from pathlib import Path

import torch

from cyberlm.config.schema import (
    TrainConfig,
)
from cyberlm.models.adapters import ADAPTER_FOLDER, MODEL_FOLDER, load_adapter, load_whole, read_prompt
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import hash_weights, load_base, load_tokenizer
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import read_json
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import make_task


def load_tuned(
    trained: TrainConfig, run: Path, device: torch.device, *, trains_all_weights: bool = False
) -> LoadedModel:
    """A run's tuned model: its adapter on its base, or its fully tuned weights alone.

    Args:
        trains_all_weights: Whether fully tuned weights keep the type of training; a GPU answers in bfloat16.

    Raises:
        RunError: If the base is not the one that was tuned.
        ModelError: If the run has no tuned model, or one that does not fit.
    """
    if trained.method.lora is not None:
        return load_adapter(load_base_of(trained, run, device), run / ADAPTER_FOLDER)
    check_weights(hash_weights(trained.model), run)
    return load_whole(trained.model, run / MODEL_FOLDER, device, trains_all_weights=trains_all_weights)


def load_base_of(trained: TrainConfig, run: Path, device: torch.device) -> LoadedModel:
    """The base below a run's adapter, after its weights have been found to be the same."""
    base = load_base(trained.model, trained.quant, device)
    check_weights(base.weights_hash, run)
    return base


def prompt_of(trained: TrainConfig, run: Path) -> Prompt:
    """The prompt that a run was tuned with."""
    prompt = Prompt(trained.prompt, load_tokenizer(trained.model), make_task(trained))
    check_prompt(prompt, tuned_folder(trained, run))
    return prompt


def tuned_folder(trained: TrainConfig, run: Path) -> Path:
    return run / (ADAPTER_FOLDER if trained.method.lora else MODEL_FOLDER)


def check_weights(now: str, run: Path) -> None:
    """Refuses base weights that are not those that a run was trained on."""
    then = dict(read_json(run / "provenance.json")).get("weights")
    if then != now:
        raise RunError(
            f"The base weights are not those that {run} was trained on:",
            [Problem(f"hash {then} then, {now} now", "the same file or revision")],
        )


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

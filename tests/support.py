"""Support of several tests: composed configurations, a tiny model, and training in a few lines.

Fixtures of tests/conftest.py, for the whole session; copy a folder before you change it:

- `lora_run`, `sft_run`, `qlora_run`: folder of a finished run of the tiny model with every pass of `evaluation=full`,
  48 training, 8 validation and 16 test questions, `SHORT` prompts (`RUN`).
- `finished_run("method=lora", "prompt=text", ...)`: the same with other overrides (those of `RUN` come first), trained
  once for all tests that ask with the same ones.
- The cache (`CYBERLM_CACHE_DIR`) is one for all tests, the hub is offline, wandb too.
"""

import copy
import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import hydra
import torch

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import conf_folder
from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig, PromptConfig, Protocol, TrainConfig
from cyberlm.data.sources import load_sources
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_tokenizer
from cyberlm.models.methods.method import attach, load_for_training, method_of, saved_folder
from cyberlm.models.saving import save_tuned
from cyberlm.runs.run_folder import register_resolvers
from cyberlm.runs.train import train
from cyberlm.tasks.multiple_choice import MultipleChoice
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import LETTERS, Example
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit

MULTIPLE_CHOICE = MultipleChoice(PromptConfig(name="letter", protocol=Protocol.letter, question="{question} {options}"))
TINY = ("model=tiny_random", "logger=none", "callbacks=none", "prompt=letter", "trainer.accelerator=cpu")


def compose(*overrides: str, command: str = "train", with_hydra: bool = False):
    """Compose as Hydra does, with interpolations that only a running job can resolve left alone.

    Args:
        with_hydra: Keep Hydra's own node, as a sweep's process has it.
    """
    return copy.deepcopy(_composed(overrides, command, with_hydra))


@functools.cache
def _composed(overrides: tuple[str, ...], command: str, with_hydra: bool):
    register_schemas()
    register_resolvers()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra.compose(command, list(overrides), return_hydra_config=with_hydra)


def config_of(*overrides: str) -> TrainConfig:
    return build_config(compose(*TINY, *overrides), TrainConfig)


def evaluation_of(*overrides: str) -> EvaluateConfig:
    composed = compose("logger=none", "trainer.accelerator=cpu", *overrides, command="evaluate")
    return build_config(composed, EvaluateConfig)


SHORT = ("prompt.system=", "prompt.question='{question} {options}'", "prompt.option='{letter} {text}'")
"""Prompts of a few dozen bytes, for training in seconds."""


def short_questions(count: int) -> tuple[Example, ...]:
    """Questions that can only be memorised, with balanced letters."""
    words = ("key", "hash", "salt", "nonce", "token", "proxy", "vault", "patch")
    return tuple(
        Example(f"short:{k}", f"{words[k % 8]} {k}?", ("one", "two", "three", "four"), (k * 7 // 3) % 4)
        for k in range(count)
    )


def sample_questions(count: int) -> tuple[Example, ...]:
    (main,) = load_sources(config_of("data=sample").data, MULTIPLE_CHOICE)
    return main.questions[:count]


def questions_file(path: Path, questions: Sequence[Example]) -> Path:
    rows = [
        {"question": q.question, "answers": dict(zip(LETTERS, q.options, strict=False)), "solution": q.letter}
        for q in questions
    ]
    path.write_text(json.dumps(rows))
    return path


def tiny(config: TrainConfig) -> tuple[LoadedModel, Prompt]:
    """The tiny model as the configuration wants it trained, and its prompt."""
    torch.manual_seed(config.seed)
    base = load_for_training(config, torch.device("cpu"))
    return attach(base, config), Prompt(config.prompt, load_tokenizer(config.model))


def save(config: TrainConfig, loaded: LoadedModel, prompt: Prompt, run: Path) -> Path:
    """Saves a tuned model into the folder of a run, as a run does."""
    folder = saved_folder(config.method, run)
    save_tuned(method_of(config.method), loaded, prompt.tokenizer, prompt.identity(), folder)
    return folder


def fit_tiny(
    config: TrainConfig, questions: tuple[Example, ...], folder: Path
) -> tuple[LoadedModel, dict[str, float], int]:
    """Trains and validates on the same questions; returns the model, its validation figures and the steps."""
    loaded, prompt = tiny(config)
    encoded = prompt.encode(questions)
    both = {"train": encoded, "validation": encoded}
    figures, steps = fit(config, folder, loaded, prompt, both, [], CostMeter())
    return loaded, figures, steps


RUN = (
    *("data.max_train=48", "data.max_validation=8", "data.max_test=16", "trainer.max_epochs=2"),
    *("optim.learning_rate=1e-2", "evaluation=full", "evaluation.prior_share=0.2", "evaluation.max_new_tokens=4"),
    *SHORT,
)
"""Overrides of the runs that tests share."""


def train_tiny(folder: Path, *overrides: str) -> Path:
    """Trains and evaluates in `folder`, a few seconds; warnings of libraries are not this test's."""
    with warnings.catch_warnings(action="ignore"):
        train(config_of(*RUN, *overrides), folder)
    return folder


def tuned_run(folder: Path, *overrides: str) -> Path:
    """A finished run of the tiny model that has learned something, in a few seconds."""
    sizes = ("data.max_train=48", "data.max_validation=8", "data.max_test=16", "trainer.max_epochs=2")
    fast = ("evaluation.generate=false", "evaluation.base=false", "optim.learning_rate=1e-2")
    train(config_of(*sizes, *fast, *overrides), folder)
    return folder

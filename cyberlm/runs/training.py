"""A training run, from top to bottom."""

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger

from cyberlm import loggers as experiment_loggers
from cyberlm.cache import cache_folder
from cyberlm.callbacks import CostMeter
from cyberlm.cards import write_card
from cyberlm.config import TrainConfig
from cyberlm.data.module import encode_questions
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import split_questions, write_manifest
from cyberlm.errors import ConfigError, Problem, RunError
from cyberlm.evidence import Answers
from cyberlm.models import (
    LoadedModel,
    count_parameters,
    load_base,
    load_tokenizer,
    pick_device,
    save_tuned,
)
from cyberlm.optim import check_optimizer
from cyberlm.planning import Plan
from cyberlm.prompts import Prompt
from cyberlm.records import Cost
from cyberlm.results import environment, write_json, write_results
from cyberlm.runs.answering import Asked, ask, doubtful_items, weigh, write_answers
from cyberlm.runs.fitting import fit, prepare
from cyberlm.runs.parts import (
    SPLIT_MANIFEST,
    Clock,
    announce,
    announce_split,
    conclude,
    config_of,
    opened_loggers,
    plain_config,
    provenance_of,
    results_of,
    save_config,
    status_of,
)
from cyberlm.runs.planning import explained, foresee

RESUMABLE = ("trainer.resume", "logger", "group")
"""Overrides that a resumed run may be given; everything else it keeps."""


def train(config: TrainConfig, folder: Path) -> float:
    """Trains, or continues a run, with its status and loggers; returns the best validation accuracy."""
    if config.trainer.resume is not None:
        config = _resumed_config(config, folder)
    with status_of(folder) as report, opened_loggers(config) as loggers, explained(config):
        objective = run_training(config, folder, loggers)
        report.objective = objective
    return objective


def run_training(config: TrainConfig, folder: Path, loggers: Sequence[Logger]) -> float:
    """Scores the base model, trains, scores the tuned model on the same questions, and writes what was found.

    Args:
        config: Checked.
        folder: The run's folder.
        loggers: Experiment loggers; metrics.csv is written in any case.

    Returns:
        The best validation accuracy.
    """
    clock = Clock()
    announce(config, folder)
    L.seed_everything(config.seed, workers=True, verbose=False)
    main, held_out = load_sources(config.data)
    split = split_questions(config.data, main, held_out)
    resumed = config.trainer.resume is not None
    split_hash = write_manifest(split, config.data, folder / ("split_again.json" if resumed else SPLIT_MANIFEST))
    announce_split(split)

    with clock.phase("load"):
        device = pick_device(config.trainer.accelerator)
        check_optimizer(config.optim, device)
        prompt = Prompt(config.prompt, load_tokenizer(config.model))
        encoded = {
            name: encode_questions(part, prompt, config.data.max_length, cache_folder() / "tokenised")
            for name, part in split.parts().items()
        }
        plan = foresee(config, encoded, prompt, device)
        loaded = load_base(config.model, config.quant, device, trains_all_weights=config.method.lora is None)
    provenance = provenance_of(config, split.sources, split_hash, prompt, loaded)
    _begin(folder, config, provenance)
    experiment_loggers.log_config(loggers, {**plain_config(config), "provenance": provenance})

    seen = (*split.train, *split.validation)
    asked = Asked(
        *(split.test, encoded["test"], split.validation, encoded["validation"]),
        seen,
        doubtful_items(config, split.test),
    )
    answers: dict[str, Answers] = {}
    if config.evaluation.base:
        with clock.phase("score base"):
            answers["base"] = ask(loaded, prompt, asked, config, "the base model")

    loaded = prepare(loaded, config)
    meter = CostMeter()
    with clock.phase("train"):
        objective, steps = fit(config, folder, loaded, prompt, encoded, loggers, meter)
    tuned_folder = save_tuned(loaded, prompt.tokenizer, prompt.fingerprint(), folder)
    with clock.phase("score tuned"):
        answers["tuned"] = ask(loaded, prompt, asked, config, "the tuned model")

    with clock.phase("weigh evidence"):
        results = results_of(config, "train", split.parts(), answers, prompt, provenance)
        evidence = weigh(answers, asked, config)
    results = replace(
        results,
        method=config.method.name.name,
        objective=objective,
        steps=steps,
        cost=_cost(loaded, clock, meter, tuned_folder, plan),
    )
    write_results(results, folder)
    write_answers(folder, answers, evidence)
    write_card(tuned_folder, config, loaded.name, results)
    conclude(folder, results, evidence, split.test, answers, loggers)
    return objective


def _cost(loaded: LoadedModel, clock: Clock, meter: CostMeter, tuned: Path, plan: Plan) -> Cost:
    trainable, total = count_parameters(loaded.model)
    weights = sum(file.stat().st_size for file in tuned.glob("*.safetensors"))
    on_gpu = loaded.device.type == "cuda"
    return Cost(
        trainable_parameters=trainable,
        total_parameters=total,
        seconds={name: round(seconds, 3) for name, seconds in clock.seconds.items()},
        processed_tokens=meter.processed,
        nonpadding_tokens=meter.nonpadding,
        label_tokens=meter.label,
        nonpadding_tokens_per_second=meter.nonpadding / meter.seconds if meter.seconds else 0.0,
        peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_device_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        adapter_bytes=weights,
        predicted_peak_bytes=plan.allocated_peak,
    )


def _resumed_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration that the run began with; nothing but its loggers can be changed.

    Raises:
        RunError: If the folder is not of a run that can go on.
        ConfigError: If anything else is overridden.
    """
    changed = [item for item in HydraConfig.get().overrides.task if not item.lstrip("+~").startswith(RESUMABLE)]
    if changed:
        raise ConfigError(
            "A resumed run keeps its own configuration:",
            [Problem(item, "only trainer.resume and logger") for item in changed],
            f"Type python train.py trainer.resume={folder}",
        )
    resumed = config_of(folder)
    resumed.logger, resumed.group = config.logger, config.group or resumed.group
    for entry in resumed.logger.values():
        if "group" in entry:
            entry["group"] = resumed.group
    resumed.trainer.resume = str(folder)
    return resumed


def _begin(folder: Path, config: TrainConfig, provenance: Mapping[str, str]) -> None:
    """Writes what the run is made of, or, for a resumed run, refuses to go on with anything else."""
    file = folder / "provenance.json"
    if config.trainer.resume is not None and file.is_file():
        before = json.loads(file.read_text())
        differ = [name for name in ("data", "split", "prompt", "weights") if before.get(name) != provenance[name]]
        if differ:
            raise RunError(
                f"{folder} cannot be continued: what it was made of has changed.",
                [Problem(f"{name}: {before.get(name)} then, {provenance[name]} now") for name in differ],
            )
        (folder / "split_again.json").unlink()
        return
    if config.trainer.resume is not None:  # it was stopped before it had begun
        (folder / "split_again.json").replace(folder / SPLIT_MANIFEST)
    save_config(folder, config)
    write_json(file, dict(provenance))
    write_json(folder / "environment.json", environment())

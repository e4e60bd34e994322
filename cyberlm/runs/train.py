"""A training run, from top to bottom."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger

from cyberlm.config.bounds import AUTO
from cyberlm.config.saved import plain_config, save_config
from cyberlm.config.schema import TrainConfig
from cyberlm.data.benchmarks import trained_on_benchmarks
from cyberlm.data.datamodule import check_model_limits, encode_split
from cyberlm.data.label_check import lint_labels
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import SPLIT_MANIFEST, split_questions, write_manifest
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.inference import run_inference
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import Cost, ModelSpec
from cyberlm.evaluation.results import read_status
from cyberlm.export.model_card import write_card
from cyberlm.models.loaded import LoadedModel, count_parameters
from cyberlm.models.loading import load_tokenizer, pick_device, read_shape
from cyberlm.models.memory import MemoryEstimate
from cyberlm.models.methods.method import attach, load_for_training, method_of, saved_folder
from cyberlm.models.model_files import fetch
from cyberlm.models.saving import explain_saving_errors, save_tuned, try_saving
from cyberlm.runs.eval_set import check_metrics
from cyberlm.runs.memory import check_memory, explain_out_of_memory
from cyberlm.runs.model_specs import loaded_spec
from cyberlm.runs.processes import check_nodes, check_work, explain_lost_process
from cyberlm.runs.reporting import (
    Clock,
    announce,
    announce_benchmarks,
    announce_split,
    opened_loggers,
    provenance_of,
    results_of,
    status_of,
    write_outputs,
)
from cyberlm.runs.resume import SPLIT_AGAIN, continues_run, keep_commits, resumed_config, write_or_check_provenance
from cyberlm.runs.run_folder import locked_folder
from cyberlm.runtime import distributed
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.progress import say
from cyberlm.runtime.signals import resume_command
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import make_task
from cyberlm.training import loggers as experiment_loggers
from cyberlm.training.callbacks.meters import CostMeter, peak_host_bytes
from cyberlm.training.checkpointing import CHECKPOINTS
from cyberlm.training.fit import fit
from cyberlm.training.optim import check_optimizer

Encoded = dict[str, list[EncodedQuestion]]
"""Questions in tokens, by part of the split."""


def train(config: TrainConfig, folder: Path) -> float | None:
    """Trains, or continues a run, with its status; returns the validation figure that chose the weights."""
    with locked_folder(folder):
        if continues_run(config, folder):
            if (status := read_status(folder)) is not None and status.state == "finished":
                say(f"{folder} has finished: nothing is left to do.")
                return status.objective
            keep_commits(config, folder)
            config.trainer.resume = str(folder)
        elif config.trainer.resume not in (None, AUTO):
            config = resumed_config(config, folder)
        else:
            config.trainer.resume = None
            save_config(folder, config)  # at once: from here on the run can be resumed
        with status_of(folder) as report, explain_lost_process("train", folder), explain_out_of_memory(config):
            objective = report.objective = run_training(config, folder)
    return objective


def run_training(config: TrainConfig, folder: Path) -> float:
    """Trains, scores the base and the tuned model on the same questions, and writes what was found.

    A frozen base is scored behind the training, with its adapter switched off, so that training begins at once.
    """
    clock = Clock()
    announce(config, folder)
    _make_repeatable(config)
    split = split_questions(config.data, load_sources(config.data, make_task(config)))
    resumed = config.trainer.resume is not None

    with clock.phase("load"):
        device = pick_device(config.trainer.accelerator)
        check_optimizer(config.optim, device)
        prompt = Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
        split, encoded = encode_split(split, prompt, config.data, cache_folder() / "tokenised")
        split_hash = write_manifest(split, config.data, folder / (SPLIT_AGAIN if resumed else SPLIT_MANIFEST))
        announce_split(split)
        own, jaccard = {file.sha256 for file in split.sources}, config.data.near_duplicate_jaccard
        benchmarks = trained_on_benchmarks((*split.train, *split.validation), jaccard, own)
        announce_benchmarks(benchmarks)
        check_model_limits(read_shape(config.model), prompt, chain(*encoded.values()), config.evaluation)
        lint_labels(split.train, encoded["train"], prompt)
        eval_set = EvalSet(config, split.test, split.validation, seen=(*split.train, *split.validation))
        check_metrics(eval_set)
        estimate = check_memory(config, encoded, prompt, device)
        check_work(len(encoded["train"]))

    with opened_loggers(config) as loggers:
        with clock.phase("load"):
            distributed.call_on_other_ranks(take_part, config, folder.absolute())
            check_nodes(folder.absolute())
            fetch([config.model])
            loaded = load_for_training(config, device)
        provenance = provenance_of(config, split.sources, split_hash, prompt, loaded)
        provenance |= {"benchmarks": ", ".join(f"{name} {seen}/{n}" for name, (seen, n) in benchmarks.items())}
        write_or_check_provenance(folder, config, provenance)
        experiment_loggers.log_config(loggers, {**plain_config(config), "provenance": provenance})

        meter = CostMeter()
        learned = train_and_score(config, folder, loaded, prompt, (encoded, eval_set), loggers, meter, clock)
        distributed.release()
        loaded, tuned = learned.loaded, saved_folder(config.method, folder)

        with clock.phase("compute metrics"):
            specs = {name: _spec(name, config, loaded, prompt, tuned) for name in learned.predictions}
            results = results_of(eval_set, learned.predictions, specs, provenance)
        results = replace(
            results,
            kind="train",
            method=config.method.name,
            questions={name: len(part) for name, part in split.parts().items()},
            objective=learned.validation[config.trainer.monitor.name],
            monitor=config.trainer.monitor.name,
            validation=dict(learned.validation),
            steps=learned.steps,
            cost=_cost(loaded, clock, meter, tuned, estimate),
        )
        write_card(tuned, config, loaded.name, results)
        write_outputs(folder, results, eval_set, learned.predictions, loggers)
    return learned.validation[config.trainer.monitor.name]


def _make_repeatable(config: TrainConfig) -> None:
    """Seeds, and settles what must be before the GPU is first used."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without it


def take_part(config: TrainConfig, folder: Path) -> None:
    """The part of a process of a higher rank in a training run."""
    check_nodes(folder)
    fetch([config.model])
    _make_repeatable(config)
    prompt = Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    loaded = load_for_training(config, pick_device(config.trainer.accelerator))
    train_and_score(config, folder, loaded, prompt, None, [], CostMeter(), Clock())


@dataclass(frozen=True)
class TrainingOutcome:
    """Outcome of `train_and_score`.

    Attributes:
        predictions: By name of the model, `base` and `tuned`; none with `evaluation.test=false`.
        validation: The validation figures of the weights that were chosen, by name.
    """

    loaded: LoadedModel
    predictions: dict[str, Predictions]
    validation: dict[str, float]
    steps: int


def train_and_score(
    config: TrainConfig,
    folder: Path,
    loaded: LoadedModel,
    prompt: Prompt,
    given: tuple[Encoded, EvalSet] | None,
    loggers: Sequence[Logger],
    meter: CostMeter,
    clock: Clock,
) -> TrainingOutcome:
    """Trains and answers: what all processes of a run do together, each its share.

    Args:
        loaded: The base, which is changed in place.
        given: Questions to train on, and to answer; only the first process has them before.
    """
    encoded, eval_set = distributed.broadcast(given)  # type: ignore[misc]  # the first process's is not None
    predictions: dict[str, Predictions] = {}
    method = method_of(config.method)
    scores_base = config.evaluation.test and config.evaluation.base

    def score_base() -> None:
        with clock.phase("score base"), method.base_view(loaded):
            predictions["base"] = run_inference(loaded, prompt, eval_set, encoded, "the base model")

    if scores_base and not method.keeps_base:
        score_base()
    loaded = attach(loaded, config)
    writes = loaded.sharded or distributed.rank() == 0  # of a sharded model, all give rank 0 their part
    if writes:
        try_saving(method, loaded, prompt.tokenizer, prompt.identity(), folder)
    with clock.phase("train"):
        validation, steps = fit(config, folder, loaded, prompt, encoded, loggers, meter)
    if writes:
        kept = f"What was trained is kept in {folder / CHECKPOINTS}. To save it from there, type:\n"
        with explain_saving_errors(folder, kept + resume_command(folder)):
            tuned = saved_folder(config.method, folder)
            save_tuned(method, loaded, prompt.tokenizer, prompt.identity(), tuned)
    if scores_base and method.keeps_base:
        score_base()
    if config.evaluation.test:
        with clock.phase("score tuned"):
            predictions["tuned"] = run_inference(loaded, prompt, eval_set, encoded, "the tuned model")
    return TrainingOutcome(loaded, predictions, validation, steps)


def _spec(name: str, config: TrainConfig, loaded: LoadedModel, prompt: Prompt, tuned: Path) -> ModelSpec:
    """The base or the tuned model as results.json has it; of fully tuned weights there is no hash."""
    base = loaded_spec(ModelSpec(config.model.name, "base", quant=config.quant.name.name), loaded, prompt)
    if name == "base":
        return base
    spec = replace(base, source=str(tuned), folder=tuned, tuned_from="base")
    if method_of(config.method).trains_all_weights:
        return replace(spec, kind="weights", weights="")
    return loaded_spec(replace(spec, kind="adapter"), loaded, prompt)


def _cost(loaded: LoadedModel, clock: Clock, meter: CostMeter, tuned: Path, estimate: MemoryEstimate | None) -> Cost:
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
        computed_tokens_per_second=meter.processed / meter.seconds if meter.seconds else 0.0,
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        adapter_bytes=weights,
        predicted_peak_bytes=estimate.measurable if estimate else None,
    )

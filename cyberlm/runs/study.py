"""A study, from top to bottom: methods × seeds on one split, compared on a test set that is opened once."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.rules import build_config, without_hydra
from cyberlm.config.saved import flat_config, load_config, save_config, setting_changes
from cyberlm.config.schema import Monitor, TrainConfig
from cyberlm.config.study import StudyConfig
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.results import read_results
from cyberlm.evaluation.study import TunedRate
from cyberlm.evaluation.study_words import plan_lines, planned_power
from cyberlm.runs.run_folder import relative_folder, state_of
from cyberlm.runs.study_jobs import PLAN, STARTED, TUNING, Job, confirming_jobs, line_of, progress, tuning_jobs
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.files import read_json, write_json
from cyberlm.runtime.progress import say
from cyberlm.runtime.validation import from_json, to_json
from cyberlm.tasks.task import make_task

JOB_SETTINGS = {
    "method": "study.methods=[...]",
    "seed": "study.seeds=[...]",
    "optim.learning_rate": "study.learning_rates.METHOD=[RATE]",
    "evaluation.test": "",
    "evaluation.base": "",
    "trainer.resume": "",
    "hydra.sweep.subdir": "",
}
"""Settings that a study makes for its jobs, and the study's own keys for them."""

Launch = Callable[[Sequence[Sequence[str]]], None]
"""Runs jobs, each given by its overrides."""
Compose = Callable[[Sequence[str]], DictConfig]
"""Configuration of a job, of its overrides."""


def run_study(composed: DictConfig, arguments: Sequence[str], launch: Launch, compose: Compose) -> None:
    """Tunes, trains and compares; what is done already is left as it is.

    Raises:
        ConfigError: If the study cannot be run.
        RunError: If the folder holds another study, or nothing can be chosen or compared.
        SystemExit: With code 1, if jobs have failed; the others are reported.
    """
    _refuse_job_settings(arguments)
    folder = relative_folder(str(composed.hydra.sweep.dir))
    config = build_config(without_hydra(composed), TrainConfig)
    study = config.study
    if study is None:
        raise ConfigError("hydra/sweeper=study runs a study:", [Problem("none is given", fix="study=paper")])
    first_jobs = [job for job in confirming_jobs(study, {}, {}) if job.seed == study.seeds[0]]
    checked = [build_config(without_hydra(compose(line_of(job, arguments))), TrainConfig) for job in first_jobs]
    quants = {job.method: own.quant.name.name for job, own in zip(first_jobs, checked, strict=True)}
    split = split_questions(config.data, load_sources(config.data, make_task(config)))
    for line in (*plan_lines(study), planned_power(study, len(split.test))):
        say(line)
    if config.plan.enabled:
        return
    say(f"Folder {folder}")
    lock_settings(config, folder)
    OmegaConf.save(composed, folder / STARTED)

    say(progress(study, folder))

    def run(jobs: Sequence[Job]) -> None:
        left = [line_of(job, arguments) for job in jobs if state_of(folder / job.name)[0] != "finished"]
        if left:
            launch(left)

    tuning = tune(study, folder, run)
    rates = {rate.method: rate.learning_rate for rate in tuning if rate.chosen}
    jobs = confirming_jobs(study, rates, quants)
    opened = open_test_set(folder, rates)
    run(jobs)

    from cyberlm.runs.study_report import conclude_study  # here: it imports torch

    shared = OmegaConf.select(composed, "hydra.launcher.n_jobs") not in (None, 1)
    if conclude_study(study, folder, tuning, jobs, opened, side_by_side=shared).state != "finished":
        raise SystemExit(1)


def _refuse_job_settings(arguments: Sequence[str]) -> None:
    """Refuses what a study sets for each of its jobs, and values to sweep over."""
    problems = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.key_or_group
        if key in JOB_SETTINGS:
            problems.append(Problem(f"{override.input_line}: a study sets {key} for each job", JOB_SETTINGS[key]))
        elif override.is_sweep_override():
            problems.append(Problem(f"{override.input_line}: a study does not sweep", "one value"))
    if problems:
        raise ConfigError("A study makes its jobs itself:", problems)


def lock_settings(config: TrainConfig, folder: Path) -> None:
    """Writes the settings of a study before its first job, or refuses to continue with others."""
    plan = folder / PLAN
    if not (plan / "config.yaml").is_file():
        save_config(plan, config)
        return
    if problems := setting_changes(flat_config(load_config(plan, TrainConfig)), flat_config(config)):
        opened = "Its test set is open: what it decides by stays. " if (plan / "test_set.json").is_file() else ""
        hint = f"{opened}Type the settings of then, or hydra.sweep.dir=FOLDER of a new study."
        raise RunError(f"{folder} holds a study with other settings, so it cannot be resumed:", problems, hint)


def tune(study: StudyConfig, folder: Path, run: Callable[[Sequence[Job]], None]) -> list[TunedRate]:
    """Chooses a learning rate for each method by validation option NLL alone, once; of equals, the smaller rate."""
    record = folder / TUNING
    if record.is_file():
        return [from_json(TunedRate, rate, str(record)) for rate in read_json(record)]
    jobs = tuning_jobs(study)
    run(jobs)
    found = [_tried(job, folder) for job in jobs]
    tried = {method: [rate for rate in found if rate.method == method] for method in {job.method for job in jobs}}
    failed = [rate for rate in found if all(other.reason for other in tried[rate.method])]
    if failed:
        problems = [Problem(f"{rate.folder}: {rate.reason}") for rate in failed]
        hint = "The test set stays closed. The same command tries these jobs again."
        raise RunError("No learning rate can be chosen, for no tuning job of a method has finished:", problems, hint)
    ranked = sorted(found, key=lambda rate: (rate.option_nll is None, rate.option_nll or 0, rate.learning_rate))
    best = {rate.method: rate for rate in reversed(ranked) if not rate.reason}
    marked = [replace(rate, chosen=rate is best[rate.method]) for rate in found]
    marked += [
        TunedRate(method, rates[0], None, None, chosen=True, folder="", reason="the only one given")
        for method, rates in study.learning_rates.items()
        if study.tune and len(rates) == 1 and method in study.methods
    ]
    write_json(record, [to_json(rate, str(record)) for rate in marked])
    for rate in marked:
        if rate.chosen:
            say(f"Learning rate of {rate.method}: {rate.learning_rate:g}")
    return marked


def _tried(job: Job, folder: Path) -> TunedRate:
    state, reason = state_of(folder / job.name)
    assert job.rate is not None
    if state != "finished":
        return TunedRate(job.method, job.rate, None, None, chosen=False, folder=job.name, reason=reason or state)
    validation: Mapping[str, Any] = read_results(folder / job.name).validation
    figures = validation[Monitor.option_nll.name], validation.get(Monitor.accuracy.name)
    return TunedRate(job.method, job.rate, *figures, chosen=False, folder=job.name)


def open_test_set(folder: Path, rates: Mapping[str, float]) -> str:
    """Locks what a study decides by, once its test questions are to be answered."""
    lock = folder / PLAN / "test_set.json"
    now = {"opened": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}", "learning_rates": dict(rates)}
    if not lock.is_file():
        write_json(lock, now)
    known: dict[str, Any] = read_json(lock)
    if known["learning_rates"] != now["learning_rates"]:
        what = f"with {known['learning_rates']}, and these are {now['learning_rates']} now"
        hint = "A new study has a folder of its own: hydra.sweep.dir=FOLDER"
        raise RunError(f"The test set of {folder} has been opened with other learning rates:", [Problem(what)], hint)
    return str(known["opened"])

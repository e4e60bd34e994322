"""Jobs of a study: their names and overrides, how far each is, and the study's progress in one line."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.results import STATUS_FILE, read_results
from cyberlm.runs.run_folder import state_of
from cyberlm.runtime.progress import clock, say

TUNE, CONFIRM = "tune", "confirm"
"""Stages."""
PLAN = Path("plan")
"""Subfolder of what was settled before any result: config.yaml, tuning.json and test_set.json."""
TUNING = PLAN / "tuning.json"
STARTED = "multirun.yaml"
"""Configuration of a study, written each time that it is started."""


@dataclass(frozen=True)
class Job:
    """A run of a study.

    Attributes:
        name: Its folder within the study's.
        rate: Learning rate; None for the method's own.
    """

    name: str
    stage: str
    method: str
    seed: int
    rate: float | None
    overrides: tuple[str, ...] = ()


def tuning_jobs(study: StudyConfig) -> list[Job]:
    """A job for each learning rate of each method that has several to choose from; none opens the test set."""
    steps = [] if study.tune_steps is None else [f"trainer.max_steps={study.tune_steps}"]
    closed = ("evaluation.test=false", *steps)
    tried = {method: study.learning_rates.get(method, []) for method in study.methods} if study.tune else {}
    return [
        Job(f"{TUNE}/{method}_{rate:g}", TUNE, method, study.tune_seed, rate, _overrides(study, method, rate) + closed)
        for method, rates in tried.items()
        for rate in rates
        if len(rates) > 1
    ]


def confirming_jobs(study: StudyConfig, rates: Mapping[str, float], quants: Mapping[str, str]) -> list[Job]:
    """A job for each seed of each method; the first on each base scores that base too, for all.

    Args:
        rates: Learning rate by method; methods without one have their own.
        quants: Quantisation of the base, by method.
    """
    jobs, scored = [], set[str | None]()
    for method in study.methods:
        for seed in study.seeds:
            rate, quant = rates.get(method), quants.get(method)
            base = f"evaluation.base={'false' if quant in scored else 'true'}"
            scored.add(quant)
            overrides = (*_overrides(study, method, rate), base)
            jobs.append(Job(f"{method}_seed{seed}", CONFIRM, method, seed, rate, overrides))
    return jobs


def _overrides(study: StudyConfig, method: str, rate: float | None) -> tuple[str, ...]:
    own = (f"method={method}", *study.overrides.get(method, []))
    return own if rate is None else (*own, f"optim.learning_rate={rate!r}")


def line_of(job: Job, arguments: Sequence[str]) -> list[str]:
    """Overrides of a job: those of the study's command line, then its own."""
    return [*arguments, *job.overrides, f"seed={job.seed}", f"hydra.sweep.subdir={job.name}"]


def progress(study: StudyConfig, folder: Path, side_by_side: int = 1) -> str:
    """Jobs done, and the time left, from the mean time of finished jobs of the same kind."""
    jobs = [*tuning_jobs(study), *confirming_jobs(study, {}, {})]
    states = {job: state_of(folder / job.name)[0] for job in jobs}
    took: dict[tuple[str, str], list[float]] = {}
    for job in (job for job, state in states.items() if state == "finished"):
        cost = read_results(folder / job.name).cost
        for kind in ((job.stage, job.method), (job.stage, "")) if cost is not None else ():
            took.setdefault(kind, []).append(sum(cost.seconds.values()))  # type: ignore[union-attr]
    failed = [job for job, state in states.items() if state == "failed" and not _runs_again(job, folder)]
    left = [job for job, state in states.items() if state != "finished" and job not in failed]
    known = [took.get((job.stage, job.method)) or took.get((job.stage, "")) for job in left]
    done = len(jobs) - len(left)
    seconds = sum(sum(times) / len(times) for times in known if times) / side_by_side
    eta = clock(seconds) if all(known) else f"over {clock(seconds)}" if any(known) else "unknown"
    failures = f", {len(failed)} failed" if failed else ""
    return f"Study {study.name}: {done} of {len(jobs)} jobs{failures}" + (f", ETA {eta}" if left else "")


def _runs_again(job: Job, folder: Path) -> bool:
    """True for a job that failed before the study was started again; once rates are chosen, none is tuned again."""
    if job.stage == TUNE and (folder / TUNING).is_file():
        return False
    started, status = folder / STARTED, folder / job.name / STATUS_FILE
    return started.is_file() and status.is_file() and status.stat().st_mtime_ns < started.stat().st_mtime_ns


class StudyProgress(Callback):
    """Hydra calls this when a job of a study has ended, in place of a sweep's leaderboard."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Removes the checkpoints of a job that has finished, several times its weights, and prints the progress."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.sweep.dir)
        job = folder / config.hydra.sweep.subdir
        if state_of(job)[0] == "finished":
            from cyberlm.training.checkpointing import CHECKPOINTS  # here: it imports torch

            shutil.rmtree(job / CHECKPOINTS, ignore_errors=True)
        study: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), config.study))
        say(progress(study, folder, max(1, OmegaConf.select(config, "hydra.launcher.n_jobs") or 1)))

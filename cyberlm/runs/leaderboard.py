"""Leaderboard of a sweep: its jobs ranked by their validation, on the terminal and in leaderboard.csv."""

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.schema import Monitor
from cyberlm.evaluation.records import Cost, Results
from cyberlm.evaluation.report import print_leaderboard
from cyberlm.evaluation.results import read_results, read_status
from cyberlm.runs.pages import write_sweep_page
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.progress import say

LEADERBOARD = "leaderboard.csv"
NOT_SWEPT = ("group", "hydra", "sweep")
VALIDATION = {"val option nll": Monitor.option_nll.name, "val accuracy": Monitor.accuracy.name}
"""Columns of validation figures."""
FOUND = {"rank", "job", "state", *VALIDATION, "trainable", "seconds", "reason"}
"""Columns of the leaderboard that are neither overrides nor metrics."""
TEST = "test "
"""Before the name of a metric of the test questions."""


class LeaderboardCallback(Callback):
    """Hydra calls this when a job of a sweep, and when the last one has ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Drops the job's configuration, of which Hydra would keep two copies until the sweep ends."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the process with exit code 1 where no job has finished."""
        try:
            rows = show_leaderboard(Path(config.hydra.sweep.dir))
        except RunError as error:  # of a range without values; Hydra would turn it into a warning
            say(error.title)
            raise SystemExit(1) from None
        finished = sum(row["state"] == "finished" for row in rows)
        if finished < len(rows):
            say(f"{len(rows) - finished} of {len(rows)} jobs have not finished.")
        if not finished:
            raise SystemExit(1)


def show_leaderboard(folder: Path) -> list[dict[str, str]]:
    """Ranks the jobs of a sweep, writes leaderboard.csv into its folder and prints it.

    Raises:
        RunError: If the folder holds no jobs.
    """
    rows = leaderboard(folder)
    with (folder / LEADERBOARD).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = _telling(rows)
    swept = [key for key in told[0] if key not in FOUND and not key.startswith(TEST) and len(rows) > 1]
    write_sweep_page(folder, told, swept, _ranked_by(rows))
    print_leaderboard(told)
    return rows


def _ranked_by(rows: list[dict[str, str]]) -> str | None:
    """The validation figure that the order of the rows follows; of evaluations, which have none, a test figure."""
    finished = [row for row in rows if row["state"] == "finished"]
    columns = (*VALIDATION, *(key for key in rows[0] if key.startswith(TEST)))
    for column in (name for name in columns if finished and all(row[name] for row in finished)):
        values = [float(row[column]) for row in finished]
        if column not in VALIDATION or values == sorted(values, reverse=VALIDATION[column] == Monitor.accuracy.name):
            return column
    return None


def _telling(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows without overrides that were the same in every job; leaderboard.csv keeps them."""
    told = FOUND | {key for key in rows[0] if key.startswith(TEST)}
    kept = [key for key in rows[0] if key in told or len(rows) == 1 or len({row[key] for row in rows}) > 1]
    return [{key: row[key] for key in kept} for row in rows]


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """One row a job, the best in validation first; jobs that failed come last, with their reason.

    Option NLL ranks, or accuracy where that chose the weights of any job; equals go by the other. The test figures are
    shown, and never rank: choosing by them would make them validation figures.

    Raises:
        RunError: If the folder holds no jobs.
    """
    jobs = [_read_job(folder, path) for path in sorted(_jobs(folder), key=_natural)]
    if not jobs:
        raise RunError(f"{folder} holds no jobs of a sweep.", hint="Type python -m cyberlm leaderboard outputs/SWEEP")
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    metrics = list(dict.fromkeys(name for job in jobs for name in job.test))
    by_accuracy = any(job.by_accuracy for job in jobs)
    jobs.sort(key=lambda job: (job.state != "finished", _standing(job, by_accuracy)))
    return [{"rank": str(rank), **_row(job, keys, metrics)} for rank, job in enumerate(jobs, start=1)]


@dataclass(frozen=True)
class _Job:
    """Figures of a job that its row shows; its results are not kept, for a sweep may have thousands of jobs.

    Attributes:
        validation, test: Figures by name; none of a job that has not finished.
        by_accuracy: True if accuracy chose its weights; an evaluation has none.
    """

    name: str
    state: str
    reason: str
    overrides: dict[str, str]
    validation: dict[str, float]
    test: dict[str, float]
    by_accuracy: bool
    cost: Cost | None


def _read_job(sweep: Path, job: Path) -> _Job:
    status = read_status(job)
    state = status.state if status else "not started"
    results = read_results(job) if state == "finished" else None
    return _Job(
        name=str(job.relative_to(sweep)),
        state="killed" if state == "running" else state,
        reason=status.reason if status else "",
        overrides=_overrides(job),
        validation=_validation(results) if results else {},
        test=_headline(results) if results else {},
        by_accuracy=bool(
            results and results.objective is not None and results.monitor in (None, Monitor.accuracy.name)
        ),
        cost=results.cost if results else None,
    )


def _jobs(folder: Path) -> Iterator[Path]:
    """Numbered folders; in a sweep's own folder also those that `hydra.sweep.subdir` has named, at any depth."""
    named = (folder / "multirun.yaml").is_file()
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_dir() and path.name.isdigit():
            yield path
        elif path.is_dir() and named:
            yield from (record.parent for record in path.rglob(".hydra"))


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sorts 10 after 9."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", str(path))]


def _validation(results: Results) -> dict[str, float]:
    """Validation figures of a job; of an older one, accuracy alone."""
    figures = results.validation or {Monitor.accuracy.name: results.objective}
    return {name: value for name, value in figures.items() if value is not None}


def _headline(results: Results) -> dict[str, float]:
    """Headline metrics of the tuned model, or of the base where evaluate.py has scored a model as it is."""
    shown = results.metrics.get("tuned") or results.metrics.get("base") or {}
    return {m.name: m.value for m in shown.values() if m.place == "headline" and m.value is not None}


def _standing(job: _Job, by_accuracy: bool) -> tuple[float, float]:
    """Sorts jobs; lower is better."""
    nll = job.validation.get(Monitor.option_nll.name, math.inf)
    accuracy = job.validation.get(Monitor.accuracy.name, -math.inf)
    return (-accuracy, nll) if by_accuracy else (nll, -accuracy)


def _row(job: _Job, keys: list[str], metrics: list[str]) -> dict[str, str]:
    return {
        "job": job.name,
        "state": job.state,
        **{
            title: f"{job.validation[name]:.4f}" if name in job.validation else "" for title, name in VALIDATION.items()
        },
        **{key: job.overrides.get(key, "") for key in keys},
        **{f"{TEST}{name}": f"{job.test[name]:.4f}" if name in job.test else "" for name in metrics},
        "trainable": f"{job.cost.trainable_parameters}" if job.cost else "",
        "seconds": f"{sum(job.cost.seconds.values()):.0f}" if job.cost else "",
        "reason": job.reason,
    }


def _overrides(job: Path) -> dict[str, str]:
    """Overrides of the job, from Hydra's record."""
    file = job / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return {}
    typed = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    pairs = (str(item).lstrip("+~").partition("=") for item in typed)  # type: ignore[union-attr]
    return {key: value for key, _, value in pairs if key.split(".")[0].split("/")[0] not in NOT_SWEPT}

"""Leaderboard of a sweep: its jobs ranked by their validation, on the terminal and in leaderboard.csv."""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.schema import Monitor
from cyberlm.evaluation.report import print_leaderboard
from cyberlm.evaluation.results import read_results, read_status
from cyberlm.runs.pages import write_sweep_page
from cyberlm.runs.run_folder import recorded_overrides, state_of
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.progress import say

LEADERBOARD = "leaderboard.csv"
NOT_SWEPT = ("group", "hydra", "sweep")
VALIDATION = {"val option nll": Monitor.option_nll.name, "val accuracy": Monitor.accuracy.name}
"""Columns of validation figures."""
FIRST = ("rank", "job", "state", *VALIDATION)
LAST = ("trainable", "seconds", "reason")
"""Columns before and behind those of overrides and metrics."""
TEST = "test "
"""Before the name of a metric of the test questions."""


class LeaderboardCallback(Callback):
    """Hydra calls this when a job of a sweep, and when the last one has ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Drops the job's configuration, of which Hydra would keep two copies until the sweep ends."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the process with exit code 1 where no job has finished."""
        folder = Path(config.hydra.sweep.dir)
        if any(OmegaConf.select(config, key) for key in ("data.preview", "plan.enabled")):
            states = (read_status(job) for job in _jobs(folder))  # jobs that show something leave nothing to rank
            if any(status is not None and status.state == "failed" for status in states):
                raise SystemExit(1)
            return
        try:
            rows = show_leaderboard(folder)
        except RunError as error:  # of a range without values; Hydra would turn it into a warning
            say(error.title)
            raise SystemExit(1) from None
        finished = sum(row["state"] == "finished" for row in rows)
        if finished < len(rows):
            say(f"{len(rows) - finished} of {len(rows)} jobs have not finished.")
        if not finished:
            raise SystemExit(1)


def show_leaderboard(folder: Path) -> list[dict[str, str]]:
    """Ranks the jobs of a sweep, writes leaderboard.csv into its folder and prints it."""
    rows = leaderboard(folder)
    with (folder / LEADERBOARD).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    own = [key for key in rows[0] if key not in (*FIRST, *LAST) and not key.startswith(TEST)]
    constant = {key for key in own if len(rows) > 1 and len({row[key] for row in rows}) == 1}  # in leaderboard.csv
    shown = [{key: text for key, text in row.items() if key not in constant} for row in rows]
    swept = [key for key in own if key not in constant and len(rows) > 1]
    write_sweep_page(folder, shown, swept, _ranked_by(rows))
    print_leaderboard(shown)
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


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """One row a job, the best in validation first; jobs that failed come last, with their reason.

    Option NLL ranks, or accuracy where that chose the weights of any job; equals go by the other. The test figures are
    shown, and never rank: choosing by them would make them validation figures.

    Raises:
        RunError: If the folder holds no jobs.
    """
    jobs = [_read_job(path, folder) for path in sorted(_jobs(folder), key=_natural)]
    if not jobs:
        raise RunError(f"{folder} holds no jobs of a sweep.", hint="Type python -m cyberlm leaderboard outputs/SWEEP")
    between = dict.fromkeys(key for job in jobs for key in job.row if key not in (*FIRST, *LAST))
    columns = (*FIRST, *sorted(between, key=lambda key: key.startswith(TEST)), *LAST)
    by_accuracy = any(job.by_accuracy for job in jobs)
    jobs.sort(key=lambda job: (job.row["state"] != "finished", _standing(job.validation, by_accuracy)))
    return [dict.fromkeys(columns, "") | job.row | {"rank": str(rank)} for rank, job in enumerate(jobs, start=1)]


@dataclass(frozen=True)
class _Job:
    """Row of a job, and what ranks it; its results are not kept, for a sweep may have thousands of jobs.

    Attributes:
        validation: Figures by name; none of a job that has not finished.
        by_accuracy: True if accuracy chose its weights; an evaluation has none.
    """

    row: dict[str, str]
    validation: Mapping[str, float]
    by_accuracy: bool


def _read_job(job: Path, sweep: Path) -> _Job:
    state, reason = state_of(job)
    pairs = (item.lstrip("+~").partition("=") for item in recorded_overrides(job) or ())
    row = {key: value for key, _, value in pairs if key.split(".")[0].split("/")[0] not in NOT_SWEPT}
    row |= {"job": str(job.relative_to(sweep)), "state": state, "reason": reason}
    if state != "finished":
        return _Job(row, {}, by_accuracy=False)
    results = read_results(job)
    figures = results.validation or {Monitor.accuracy.name: results.objective}  # of an older run, accuracy alone
    validation = {name: value for name, value in figures.items() if value is not None}
    row |= {title: f"{validation[name]:.4f}" for title, name in VALIDATION.items() if name in validation}
    shown = results.metrics.get("tuned") or results.metrics.get("base") or {}
    headline = {m.name: m.value for m in shown.values() if m.place == "headline" and m.value is not None}
    row |= {f"{TEST}{name}": f"{value:.4f}" for name, value in headline.items()}
    if (cost := results.cost) is not None:
        row |= {"trainable": f"{cost.trainable_parameters}", "seconds": f"{sum(cost.seconds.values()):.0f}"}
    chosen_by_accuracy = results.objective is not None and results.monitor in (None, Monitor.accuracy.name)
    return _Job(row, validation, chosen_by_accuracy)


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


def _standing(validation: Mapping[str, float], by_accuracy: bool) -> tuple[float, float]:
    """Sorts jobs; lower is better."""
    nll = validation.get(Monitor.option_nll.name, math.inf)
    accuracy = validation.get(Monitor.accuracy.name, -math.inf)
    return (-accuracy, nll) if by_accuracy else (nll, -accuracy)

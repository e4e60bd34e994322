"""What a sweep found: its jobs ranked by their validation, on the terminal and in leaderboard.csv."""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.schema import Monitor
from cyberlm.evaluation.records import Results
from cyberlm.evaluation.report import print_leaderboard
from cyberlm.evaluation.results import read_results, read_status
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.progress import say

LEADERBOARD = "leaderboard.csv"
NOT_SWEPT = ("group", "hydra", "sweep")
VALIDATION = {"val option nll": Monitor.option_nll.name, "val accuracy": Monitor.accuracy.name}
"""Columns of validation figures."""
FOUND = {
    *("rank", "job", "state", *VALIDATION, "test accuracy", "test generation", "test gold nll"),
    *("trainable", "seconds", "reason"),
}
"""Columns of the leaderboard that are not overrides."""


class LeaderboardCallback(Callback):
    """Hydra calls this when the last job of a sweep has ended."""

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
    print_leaderboard(_telling(rows))
    return rows


def _telling(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows without overrides that were the same in every job; leaderboard.csv keeps them."""
    kept = [key for key in rows[0] if key in FOUND or len(rows) == 1 or len({row[key] for row in rows}) > 1]
    return [{key: row[key] for key in kept} for row in rows]


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """One row a job, the best in validation first; jobs that failed come last, with their reason.

    Option NLL ranks, or accuracy where that chose the weights of any job; equals go by the other. The test figures are
    shown, and never rank: choosing by them would make them validation figures.

    Raises:
        RunError: If the folder holds no jobs.
    """
    jobs = sorted(_jobs(folder), key=_natural)
    if not jobs:
        raise RunError(f"{folder} holds no jobs of a sweep.", hint="Type python -m cyberlm leaderboard outputs/SWEEP")
    overrides = {job: _overrides(job) for job in jobs}
    keys = list(dict.fromkeys(key for chosen in overrides.values() for key in chosen))
    found = {job: _results(job) for job in jobs}
    by_accuracy = any(results and _by_accuracy(results) for results in found.values())
    jobs.sort(key=lambda job: (found[job] is None, _standing(found[job], by_accuracy)))
    rows = [_row(folder, job, found[job], overrides[job], keys) for job in jobs]
    return [{"rank": str(rank), **row} for rank, row in enumerate(rows, start=1)]


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


def _results(job: Path) -> Results | None:
    """Results of a job that has finished."""
    status = read_status(job)
    return read_results(job) if status is not None and status.state == "finished" else None


def _by_accuracy(results: Results) -> bool:
    """Whether accuracy chose a job's weights; an evaluation has none."""
    return results.objective is not None and results.monitor in (None, Monitor.accuracy.name)


def _validation(results: Results | None) -> dict[str, float]:
    """Validation figures of a job; of an older one, accuracy alone."""
    if results is None:
        return {}
    figures = results.validation or {Monitor.accuracy.name: results.objective}
    return {name: value for name, value in figures.items() if value is not None}


def _standing(results: Results | None, by_accuracy: bool) -> tuple[float, float]:
    """Sorts jobs; lower is better."""
    figures = _validation(results)
    nll, accuracy = figures.get(Monitor.option_nll.name, math.inf), figures.get(Monitor.accuracy.name, -math.inf)
    return (-accuracy, nll) if by_accuracy else (nll, -accuracy)


def _row(sweep: Path, job: Path, results: Results | None, chosen: dict[str, str], keys: list[str]) -> dict[str, str]:
    status = read_status(job)
    state = status.state if status else "not started"
    row = {"job": str(job.relative_to(sweep)), "state": "killed" if state == "running" else state}
    figures = _validation(results)
    row.update({title: f"{figures[name]:.4f}" if name in figures else "" for title, name in VALIDATION.items()})
    row.update({key: chosen.get(key, "") for key in keys})
    row.update(_figures(results))
    row["reason"] = status.reason if status else ""
    return row


def _figures(results: Results | None) -> dict[str, str]:
    scores = results.scores if results else {}
    shown = scores.get("tuned") or scores.get("base")  # evaluate.py without a run scores a model as it is
    cost = results.cost if results else None
    return {
        "test accuracy": f"{shown.likelihood.value:.4f}" if shown else "",
        "test generation": f"{shown.generation.value:.4f}" if shown and shown.generation else "",
        "test gold nll": f"{shown.gold_nll:.4f}" if shown else "",
        "trainable": f"{cost.trainable_parameters}" if cost else "",
        "seconds": f"{sum(cost.seconds.values()):.0f}" if cost else "",
    }


def _overrides(job: Path) -> dict[str, str]:
    """What the job was given on top of the configuration, from Hydra's record of it."""
    file = job / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return {}
    typed = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    pairs = (str(item).lstrip("+~").partition("=") for item in typed)  # type: ignore[union-attr]
    return {key: value for key, _, value in pairs if key.split(".")[0].split("/")[0] not in NOT_SWEPT}

"""Page of a sweep: its leaderboard, each row with a link to its run's page, and how the settings matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cyberlm.evaluation.pages.rendering import Cell, Picture, Table, picture, render
from cyberlm.evaluation.pages.sweep_figures import heat_map, parallel, short_name

MOST_LINES = 300
"""Jobs in the parallel coordinates, the best ones."""
MOST_MAPS = 6

Row = Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """Jobs of a sweep, as leaderboard.csv has them.

    Attributes:
        name: Of its folder.
        rows: The best first; columns that tell nothing are left out.
        swept: Columns of the settings that differ between jobs.
        figure: Column that the jobs are ranked by; None where no job has finished.
        links: From a job's name to its page, relative to the sweep's.
        commands: From a job's name to what makes it again.
    """

    name: str
    rows: Sequence[Row]
    swept: Sequence[str]
    figure: str | None
    links: Mapping[str, str]
    command: str


def sweep_page(sweep: Sweep) -> str:
    """Renders report.html of a sweep."""
    finished = [row for row in sweep.rows if row["state"] == "finished"]
    return render(
        "sweep.html",
        title=f"Sweep of {len(sweep.rows)} jobs",
        name=sweep.name,
        cards=_cards(sweep, finished),
        leaderboard=_leaderboard(sweep),
        figure=sweep.figure,
        pictures=_pictures(sweep, finished),
        command=sweep.command,
    )


def _lower_is_better(figure: str) -> bool:
    return "nll" in figure


def _cards(sweep: Sweep, finished: Sequence[Row]) -> list[Cell]:
    cards = [Cell(f"{len(finished)} of {len(sweep.rows)}", small="jobs have finished")]
    if sweep.figure is not None:
        best, worst = finished[0], finished[-1]
        settings = ", ".join(f"{short_name(key)} {best[key]}" for key in sweep.swept)
        cards.append(Cell(best[sweep.figure], small=f"{sweep.figure} of the best, job {best['job']}"))
        cards.append(Cell(worst[sweep.figure], small=f"{sweep.figure} of the last, job {worst['job']}"))
        cards.append(Cell(f"job {best['job']}", small=settings, link=sweep.links.get(best["job"], "")))
    return cards


def _leaderboard(sweep: Sweep) -> Table:
    empty = {name for name in sweep.rows[0] if not any(row.get(name) for row in sweep.rows)}
    usual = {"state"} if all(row["state"] == "finished" for row in sweep.rows) else set()
    columns = [name for name in sweep.rows[0] if name not in empty | usual]
    rows = [
        [
            Cell(row["job"], link=sweep.links.get(row["job"], "")) if name == "job" else row.get(name, "")
            for name in columns
        ]
        for row in sweep.rows
    ]
    return Table(["place" if name == "rank" else short_name(name) for name in columns], rows)


def _pictures(sweep: Sweep, finished: Sequence[Row]) -> list[Picture]:
    if sweep.figure is None or not sweep.swept or len(finished) < 2:
        return []
    shown = finished[:MOST_LINES]
    values = np.array([float(row[sweep.figure]) for row in shown])
    settings = {key: [row[key] for row in shown] for key in sweep.swept}
    lower = _lower_is_better(sweep.figure)
    most = f" The best {MOST_LINES} jobs." if len(finished) > MOST_LINES else ""
    better = "lower" if lower else "higher"
    caption = (
        f"A line for each job; the bluer, the better by {sweep.figure} ({better} is better); orange: the best.{most}"
    )
    found = [picture(parallel(settings, sweep.figure, values, lower), "Parallel coordinates", caption)]
    pairs = [pair for pair in combinations(sweep.swept, 2) if all(_fits_a_map(settings[key]) for key in pair)]
    for x, y in pairs[:MOST_MAPS]:
        title = f"{short_name(x)} × {short_name(y)}"
        others = len(sweep.swept) > 2
        caption = f"{sweep.figure}{', the mean over the jobs of a cell' if others else ''}. The bluer, the better."
        found.append(picture(heat_map(settings[x], settings[y], (x, y), values, lower), title, caption))
    return found


def _fits_a_map(texts: Sequence[str]) -> bool:
    return 1 < len(set(texts)) <= 8

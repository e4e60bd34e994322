"""Page of a sweep: its leaderboard, each row with a link to its run's page, and how the settings matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cyberlm.evaluation.pages.rendering import Picture, picture, render
from cyberlm.evaluation.pages.sweep_figures import heat_map, parallel, short_name

MOST_LINES = 300
"""Jobs in the parallel coordinates, the best ones."""
MOST_MAPS, MOST_CELLS = 6, 8
"""Heat maps, and cells of a map in a row or a column."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """Jobs of a sweep, as leaderboard.csv has them.

    Attributes:
        name: Of its folder.
        rows: The best first.
        swept: Columns of the settings that differ between jobs.
        figure: Column that the jobs are ranked by; None where no job has finished.
        links: From a job's name to its page, relative to the sweep's.
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
    rows = sweep.rows
    usual = {"state"} if len(finished) == len(rows) else set()
    columns = [name for name in rows[0] if name not in usual and any(row.get(name) for row in rows)]
    return render(
        "sweep.html",
        title=f"Sweep of {len(rows)} jobs",
        sweep=sweep,
        finished=finished,
        columns={name: "place" if name == "rank" else short_name(name) for name in columns},
        pictures=_pictures(sweep, finished),
        short_name=short_name,
    )


def _pictures(sweep: Sweep, finished: Sequence[Row]) -> list[Picture]:
    if sweep.figure is None or not sweep.swept or len(finished) < 2:
        return []
    shown = finished[:MOST_LINES]
    values = np.array([float(row[sweep.figure]) for row in shown])
    settings = {key: [row[key] for row in shown] for key in sweep.swept}
    lower = "nll" in sweep.figure
    most = f" The best {MOST_LINES} jobs." if len(finished) > MOST_LINES else ""
    by = f"{sweep.figure} ({'lower' if lower else 'higher'} is better)"
    caption = f"A line for each job; the bluer, the better by {by}; orange: the best.{most}"
    found = [picture(parallel(settings, sweep.figure, values, lower), "Parallel coordinates", caption)]
    mapped = [key for key in sweep.swept if 1 < len(set(settings[key])) <= MOST_CELLS]
    for x, y in list(combinations(mapped, 2))[:MOST_MAPS]:
        title = f"{short_name(x)} × {short_name(y)}"
        mean = ", the mean over the jobs of a cell" if len(sweep.swept) > 2 else ""
        caption = f"{sweep.figure}{mean}. The bluer, the better."
        found.append(picture(heat_map(settings[x], settings[y], (x, y), values, lower), title, caption))
    return found

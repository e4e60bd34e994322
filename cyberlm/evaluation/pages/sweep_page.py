"""Page of a sweep: its leaderboard, each row with a link to its run's page, and how the settings matter.

The figures are parallel coordinates, and heat maps of two settings.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from cyberlm.evaluation.pages.figures import COLOURS, HALO, INK, WIDTH, themed
from cyberlm.evaluation.pages.rendering import Picture, picture, render
from cyberlm.evaluation.statistics import FloatArray

MAX_LINES = 300
"""Jobs in the parallel coordinates, the best ones."""
MAX_MAPS, MAX_CELLS = 6, 8
"""Heat maps, and cells of a map in a row or a column."""
MAX_TICKS = 8
"""Values of a setting that have a place of their own; of more, the axis is one of numbers."""
FROM_BAD_TO_GOOD = LinearSegmentedColormap.from_list("quality", ["#c3c9d4", "#7fa8ee", "#1d4ed8"])
Row = Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """Jobs of a sweep, as leaderboard.csv has them.

    Attributes:
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
    shown = finished[:MAX_LINES]
    values = np.array([float(row[sweep.figure]) for row in shown])
    settings = {key: [row[key] for row in shown] for key in sweep.swept}
    lower = "nll" in sweep.figure
    most = f" The best {MAX_LINES} jobs." if len(finished) > MAX_LINES else ""
    by = f"{sweep.figure} ({'lower' if lower else 'higher'} is better)"
    caption = f"A line for each job; the bluer, the better by {by}; orange: the best.{most}"
    found = [picture(parallel(settings, sweep.figure, values, lower), "Parallel coordinates", caption)]
    mapped = [key for key in sweep.swept if 1 < len(set(settings[key])) <= MAX_CELLS]
    for x, y in list(combinations(mapped, 2))[:MAX_MAPS]:
        title = f"{short_name(x)} × {short_name(y)}"
        mean = ", the mean over the jobs of a cell" if len(sweep.swept) > 2 else ""
        caption = f"{sweep.figure}{mean}. The bluer, the better."
        found.append(picture(heat_map(settings[x], settings[y], (x, y), values, lower), title, caption))
    return found


@themed()
def parallel(
    settings: Mapping[str, Sequence[str]], figure_name: str, values: FloatArray, lower_is_better: bool
) -> Figure:
    """Parallel coordinates: an axis for each setting and one for the figure, a line for each job, the best in orange.

    Args:
        settings: Of J jobs, by the setting's name.
        values: (J,) figures that the jobs are ranked by.
    """
    columns = [*(_places(texts) for texts in settings.values()), _number_places(values)]
    figure = Figure((max(WIDTH, 1.1 * len(columns)), 3.0))
    axes = figure.add_subplot()
    places = np.array([found for found, _ in columns])  # (axes, J)
    quality = _quality(values, lower_is_better)
    best = int(np.nanargmax(quality))
    for job in np.argsort(quality):
        colour = COLOURS[2] if job == best else FROM_BAD_TO_GOOD(quality[job])
        axes.plot(places[:, job], color=colour, linewidth=2 if job == best else 1.1, alpha=1 if job == best else 0.75)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color=INK, linewidth=0.8)
        for y, text in ticks.items():
            axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8, gid=HALO)
    names = [textwrap.fill(short_name(name), 14) for name in (*settings, figure_name)]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlim=(-0.05, len(names) - 0.75), ylim=(-0.05, 1.05), yticks=[])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


@themed()
def heat_map(
    x: Sequence[str], y: Sequence[str], names: tuple[str, str], values: FloatArray, lower_is_better: bool
) -> Figure:
    """Heat map of two settings: in each cell the mean of the jobs there; the bluer, the better.

    Args:
        x, y: Settings of J jobs.
    """
    columns, rows = sorted(set(x), key=_order), sorted(set(y), key=_order)
    means = np.full((len(rows), len(columns)), np.nan)
    for row, column in np.ndindex(means.shape):
        inside = [value for value, a, b in zip(values, x, y, strict=True) if (a, b) == (columns[column], rows[row])]
        if inside:
            means[row, column] = np.mean(inside)
    quality = _quality(means, lower_is_better)
    figure = Figure((min(WIDTH, 1.4 + 0.75 * len(columns)), 0.8 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    axes.pcolormesh(np.ma.masked_invalid(quality), cmap=FROM_BAD_TO_GOOD, vmin=0, vmax=1, edgecolors="none")
    for row, column in np.ndindex(means.shape):
        good = quality[row, column]
        text, colour = (
            ("–", INK) if np.isnan(good) else (f"{means[row, column]:.4g}", "white" if good > 0.6 else "#10131a")
        )
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set(xlabel=short_name(names[0]), ylabel=short_name(names[1]))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def short_name(key: str) -> str:
    """Last part of a setting's name."""
    return key.rpartition(".")[2].replace("_", " ")


def _quality(values: FloatArray, lower_is_better: bool) -> FloatArray:
    """From 0 (worst) to 1 (best); 1 where all are equal."""
    low, high = np.nanmin(values), np.nanmax(values)
    if low == high:
        return np.where(np.isnan(values), np.nan, 1.0)
    share = (values - low) / (high - low)
    return 1 - share if lower_is_better else share


def _order(text: str) -> tuple[bool, float, str]:
    """Sorts numbers by their value, before other texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _places(texts: Sequence[str]) -> tuple[FloatArray, dict[float, str]]:
    """Height of each job on a setting's axis, from 0 to 1, and the axis' ticks."""
    different = sorted(set(texts), key=_order)
    if len(different) > MAX_TICKS and not any(_order(text)[0] for text in different):
        return _number_places(np.array([float(text) for text in texts]))
    heights = np.linspace(0, 1, len(different)) if len(different) > 1 else np.array([0.5])
    place = dict(zip(different, heights.tolist(), strict=True))
    shown = different if len(different) <= MAX_TICKS else [different[0], different[-1]]
    return np.array([place[text] for text in texts]), {place[text]: text or "–" for text in shown}


def _number_places(values: FloatArray) -> tuple[FloatArray, dict[float, str]]:
    """The same of numbers, on a logarithmic scale where they span more than a factor of 20."""
    low, high = float(values.min()), float(values.max())
    scale: Callable[[FloatArray], FloatArray] = np.log if low > 0 and high / low > 20 else np.asarray
    ends = scale(np.array([low, high]))
    if low == high:
        return np.full(values.size, 0.5), {0.5: f"{low:.4g}"}
    places = (scale(values) - ends[0]) / (ends[1] - ends[0])
    ticks = np.linspace(0, 1, 5)
    at = ends[0] + ticks * (ends[1] - ends[0])
    return places, {
        float(tick): f"{np.exp(value) if scale is np.log else value:.3g}" for tick, value in zip(ticks, at, strict=True)
    }

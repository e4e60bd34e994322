"""Figures of runs, sweeps and studies, as SVG that fits a light and a dark page, and as PNG.

Text stays text, in the reader's own font; the ink takes the colour of the text around it.
"""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.statistics import IntArray
from cyberlm.runtime.files import write_atomic
from cyberlm.tasks.task import LETTERS

INK = "#1f2430"
COLOURS = ("#8b93a1", "#3b82f6", "#f0803c", "#12a594", "#a46ef0", "#e5484d", "#c99a06", "#0ea5c6")
"""Of models in their order, the base first: readable on white and on black."""
WIDTH = 4.6
"""Inches: at 400 pixels the text is then still 10 pixels high."""
HALO = "halo"
"""Name of texts that stand out from lines behind them."""
PIXELS = 96
"""Of an inch on a page."""
LABEL_WIDTH = 24
"""Characters of a label in one line."""
MAX_POINTS = 400
"""Of a curve; of more, every n-th is drawn."""
STYLE: Any = {
    **{"svg.fonttype": "none", "svg.hashsalt": "cyberlm", "text.parse_math": False, "font.size": 9},
    **{"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK},
    **{"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6},
    **{"xtick.major.size": 0, "ytick.major.size": 0, "figure.facecolor": "none", "axes.facecolor": "none"},
    **{"legend.frameon": False, "legend.fontsize": 8.5, "axes.titlesize": 9, "figure.constrained_layout.use": True},
}
Points = tuple[Sequence[float], Sequence[float]]
"""x and y."""
Interval = tuple[str, float, float, float]
"""Label, difference and its 95% limits."""


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Style of the pages, whatever the user's matplotlibrc says; also a decorator of what draws."""
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}
    with matplotlib.rc_context(style):
        yield


def to_svg(figure: Figure, title: str) -> str:
    """SVG element as wide as it was drawn, in which `INK` is the colour of the text around it."""
    text = _saved(figure, "svg").decode("utf-8")
    text = text[text.index("<svg") :]
    opening, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    rest = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = rest.replace(f'<g id="{HALO}"', f'<g class="{HALO}"')
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)  # the same names in every figure of a page
    rest = rest.replace(INK, "currentColor").replace("\n", " ")
    size = f'width="{figure.get_figwidth() * PIXELS:.0f}" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]}'
    return f'<svg role="img" aria-label="{escape(title)}" {size}>{rest}'


def write_figure(figure: Figure, folder: Path, name: str, title: str) -> str:
    """Writes NAME.svg and NAME.png, both on white, into a folder; returns `to_svg`."""
    write_atomic(folder / f"{name}.svg", lambda file: file.write(_saved(figure, "svg", facecolor="white")))
    write_atomic(folder / f"{name}.png", lambda file: file.write(_saved(figure, "png", facecolor="white", dpi=200)))
    return to_svg(figure, title)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's font has it
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return stream.getvalue()


@themed()
def forest(rows: Sequence[Interval], xlabel: str, band: float | None = None) -> Figure:
    """Forest plot: values with their intervals against 0, from top to bottom.

    Args:
        band: Half width of the margin around 0 within which a difference counts as none.
    """
    labels = [textwrap.fill(label, LABEL_WIDTH) for label, *_ in rows]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure((WIDTH, 0.7 + 0.12 * len(rows) + 0.18 * lines))
    axes = figure.add_subplot()
    if band is not None:
        axes.axvspan(-band, band, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, (_, value, low, high) in enumerate(rows):
        colour = COLOURS[1] if low > 0 else COLOURS[5] if high < 0 else COLOURS[0]
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="round")
        axes.plot(value, place, "o", color=colour, markersize=5)
    name_rows(axes, labels)
    axes.set_xlabel(xlabel)
    return figure


@themed()
def curves(panels: Mapping[str, Mapping[str, Points]]) -> Figure:
    """Learning curves, by panel and name: a panel each, one above the other on one x axis."""
    figure = Figure((WIDTH, 0.4 + 1.35 * len(panels)))
    stacked: list[Axes] = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0].tolist()
    for axes, (title, lines) in zip(stacked, panels.items(), strict=True):
        for place, (name, (x, y)) in enumerate(lines.items()):
            colour, few = COLOURS[(place + 1) % len(COLOURS)], len(x) <= 12
            every = len(x) // MAX_POINTS + 1
            if len(x) > 60:  # what a reader follows is the mean of near steps
                axes.plot(x[::every], y[::every], color=colour, linewidth=0.6, alpha=0.35)
                kernel = np.ones(len(x) // 20) / (len(x) // 20)
                x, y = (np.convolve(values, kernel, "valid").tolist() for values in (x, y))
            marker = "o" if few else ""
            axes.plot(x[::every], y[::every], color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=name)
        axes.set_title(title, loc="left")
        axes.margins(x=0.02)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("optimizer step")
    return figure


@themed()
def reliability(points: Mapping[str, Sequence[tuple[float, Metric]]]) -> Figure:
    """Reliability diagram: share right by confidence with 95% intervals, beside the diagonal of a calibrated model."""
    figure = Figure((WIDTH, 3.4))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for colour, (name, bins) in zip(cycle(COLOURS), points.items(), strict=False):
        values = np.array([[x, m.value, *(m.interval or (m.value, m.value))] for x, m in bins], dtype=np.float64)
        x, share, low, high = values.T
        axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.55)
        axes.plot(x, share, "o-", color=colour, markersize=4, linewidth=1.2, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share right")
    percent(axes, "xy")
    legend_above(axes)
    return figure


@themed()
def letters(counts: Mapping[str, IntArray]) -> Figure:
    """Bars for each letter, of `charts.letter_counts`: how often a model chooses it, beside how often it is right."""
    first = next(iter(counts.values()))
    shares = {"right answers": first.sum(axis=1), **{name: table.sum(axis=0) for name, table in counts.items()}}
    figure = Figure((WIDTH, 2.3))
    axes = figure.add_subplot()
    width = 0.8 / len(shares)
    for place, (name, numbers) in enumerate(shares.items()):
        colour = COLOURS[(place - 1) % len(COLOURS)]
        look: dict[str, Any] = {"color": colour} if place else {"facecolor": "none", "edgecolor": INK, "linewidth": 0.8}
        x = np.arange(len(first)) + (place - (len(shares) - 1) / 2) * width
        axes.bar(x, numbers / max(1, numbers.sum()), width * 0.88, label=name, **look)
    axes.set_xticks(range(len(first)), list(LETTERS[: len(first)]))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("share of questions")
    percent(axes, "y")
    legend_above(axes)
    return figure


@themed()
def shares(rows: Mapping[str, Mapping[str, Metric]]) -> Figure:
    """Shares by topic and model, with their 95% intervals: a row for each topic, a dot for each model."""
    models = list(dict.fromkeys(model for row in rows.values() for model in row))
    colours = dict(zip(models, cycle(COLOURS), strict=False))
    figure = Figure((WIDTH, 0.8 + (0.22 + 0.13 * len(models)) * len(rows)))
    axes = figure.add_subplot()
    for place, row in enumerate(rows.values()):
        for shift, (model, metric) in zip(np.linspace(-0.25, 0.25, len(row) + 2)[1:-1], row.items(), strict=True):
            value, (low, high) = metric.value or 0.0, metric.interval or (0.0, 0.0)
            axes.plot([low, high], [place + shift] * 2, color=colours[model], linewidth=1.4, alpha=0.6)
            axes.plot(value, place + shift, "o", color=colours[model], markersize=4, label="" if place else model)
    name_rows(axes, [textwrap.fill(label, LABEL_WIDTH) for label in rows])
    axes.set_xlim(0, 1)
    percent(axes, "x")
    legend_above(axes)
    return figure


def legend_above(axes: Axes) -> None:
    """Legend over the axes, in as many columns as fit; the figure grows by its further rows."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 2 * LABEL_WIDTH) for label in labels]
    columns = max(1, 60 // (max(map(len, labels)) + 6))
    lines = sum(label.count("\n") + 1 for label in labels[::columns])
    axes.figure.set_figheight(axes.figure.get_figheight() + 0.17 * (lines - 1))  # type: ignore[union-attr]
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0}
    axes.legend(handles, labels, ncols=columns, handlelength=1, columnspacing=1, **place)


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels of rows at 0, 1, ... from top to bottom."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def percent(axes: Axes, which: str) -> None:
    """Percentages on the axes `x`, `y` or `xy`."""
    for name in which:
        getattr(axes, f"{name}axis").set_major_formatter(PercentFormatter(1, decimals=0))

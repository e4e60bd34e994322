"""Page of a study: its findings, table, runs and figures.

The figures are differences with the margin, accuracy against cost, learning curves, format and knowledge.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cyberlm.evaluation.pages.figures import (
    COLOURS,
    INK,
    WIDTH,
    forest,
    legend_above,
    name_rows,
    percent,
    themed,
    write_figure,
)
from cyberlm.evaluation.pages.rendering import render
from cyberlm.evaluation.pages.table import table_columns, table_notes
from cyberlm.evaluation.predictions import GENERATION, NAMED, OUTCOMES
from cyberlm.evaluation.study import Study, StudyJob
from cyberlm.evaluation.verdict import p_text
from cyberlm.runtime.progress import clock


def study_page(study: Study, figures: Mapping[str, str]) -> str:
    """Renders study.html, with figures as SVG elements by name."""
    outcomes = {name: label.strip() for name, label in OUTCOMES.items()}
    return render(
        "study.html",
        title=f"Study {study.name}: {study.model} on {study.data}",
        study=study,
        columns=table_columns(study),
        notes=table_notes(study),
        figures={name: Markup(svg) for name, svg in figures.items()},
        outcomes=outcomes,
        measured={name: outcomes[name] for name in outcomes if any(name in job.figures for job in study.jobs)},
        clock=clock,
        p_text=p_text,
    )


def write_study_figures(study: Study, folder: Path) -> dict[str, str]:
    """Writes each figure as SVG and PNG into `figures/`; returns them as SVG elements, by name."""
    (folder / "figures").mkdir(exist_ok=True)
    return {
        name: write_figure(figure, folder / "figures", name, name.replace("_", " "))
        for name, figure in study_figures(study).items()
    }


def study_figures(study: Study) -> dict[str, Figure]:
    """Figures by name, in the order to be shown, without those that the study lacks."""
    found = {}
    if any(pair.outcome == study.outcome for pair in study.comparisons):
        found["differences"] = differences(study)
    if any(study.outcome in row.figures for row in study.rows):
        found["accuracy"] = accuracy(study)
    if any(study.outcome in job.figures for job in study.jobs):
        found["cost_hours"] = cost_hours(study)
        found["cost_memory"] = _pareto(study, "peak memory, GiB", lambda job: (job.peak_bytes or 0) / 2**30)
    if any(NAMED in row.figures for row in study.rows):
        found["format_and_knowledge"] = format_and_knowledge(study)
    if any(curve.steps for curve in study.curves):
        found["learning_curves"] = learning_curves(study)
    return found


def colours(study: Study) -> dict[str, str]:
    """Colour of each row of the table: bases are grey."""
    methods = [row.name for row in study.methods()]
    bases = [row.name for row in study.rows if row.kind == "base"]
    own = {name: COLOURS[1 + place % (len(COLOURS) - 1)] for place, name in enumerate(methods)}
    return dict.fromkeys(bases, COLOURS[0]) | own


def differences(study: Study) -> Figure:
    """Forest plot of all differences by the outcome that decides, with the margin's band."""
    rows = [
        (f"{pair.second} − {pair.first}", 100 * pair.difference, 100 * pair.ci_lo, 100 * pair.ci_hi)
        for pair in study.comparisons
        if pair.outcome == study.outcome
    ]
    return forest(rows, f"points of accuracy by {study.outcome}", 100 * study.margin)


@themed()
def accuracy(study: Study) -> Figure:
    """Accuracy of each row with its interval, seeds as dots, baselines as lines."""
    rows = [row for row in study.rows if study.outcome in row.figures]
    figure = Figure((WIDTH, 1.1 + 0.3 * len(rows)))
    axes, colour = figure.add_subplot(), colours(study)
    for place, row in enumerate(rows):
        found = row.figures[study.outcome]
        axes.hlines(place, found.ci_lo or 0.0, found.ci_hi or 0.0, color=colour[row.name], linewidth=1.8)
        axes.plot(found.by_seed, [place] * len(found.by_seed), "o", color=colour[row.name], alpha=0.35, markersize=4)
        axes.plot(found.value, place, "o", color=colour[row.name], markersize=5.5)
    for name, value in study.floors.items():
        axes.axvline(value, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(name, (value, -0.6), rotation=90, fontsize=7, va="top", ha="right")
    name_rows(axes, [row.name for row in rows])
    axes.set_ylim(top=-0.6)
    axes.set_xlabel(f"accuracy by {study.outcome}")
    percent(axes, "x")
    return figure


def cost_hours(study: Study) -> Figure:
    seconds = [job.train_seconds for job in study.jobs if job.train_seconds is not None and job.figures]
    by_hours = bool(seconds) and max(seconds) > 7200
    unit, size = ("hours", 3600) if by_hours else ("minutes", 60)
    return _pareto(study, f"training, {unit}", lambda job: (job.train_seconds or 0) / size)


@themed()
def _pareto(study: Study, xlabel: str, cost: Callable[[StudyJob], float]) -> Figure:
    jobs = [job for job in study.jobs if study.outcome in job.figures]
    figure = Figure((WIDTH, 2.8))
    axes, colour = figure.add_subplot(), colours(study)
    for row in study.methods():
        own = [job for job in jobs if job.method == row.name]
        x, y = [cost(job) for job in own], [job.figures[study.outcome] for job in own]
        axes.plot(x, y, "o", color=colour[row.name], markersize=5, alpha=0.8, label=row.name)
    base = next((row for row in study.rows if row.kind == "base" and study.outcome in row.figures), None)
    if base is not None:
        axes.axhline(base.figures[study.outcome].value, color=COLOURS[0], linewidth=1.2, label=base.name)
    axes.set_xlim(0, 1.08 * max(map(cost, jobs)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set(xlabel=xlabel, ylabel=f"accuracy by {study.outcome}")
    percent(axes, "y")
    legend_above(axes)
    return figure


@themed()
def format_and_knowledge(study: Study) -> Figure:
    """Bars of each row: right, wrong though an option is named, and no option named."""
    rows = [row for row in study.rows if NAMED in row.figures]
    right = np.array([row.figures[GENERATION].value for row in rows])
    named = np.array([row.figures[NAMED].value for row in rows])
    figure = Figure((WIDTH, 0.9 + 0.32 * len(rows)))
    axes, left = figure.add_subplot(), np.zeros(len(rows))
    parts: Mapping[str, tuple[np.ndarray, str]] = {
        "right": (right, COLOURS[3]),
        "wrong option": (named - right, COLOURS[2]),
        "no option named": (1 - named, COLOURS[0]),
    }
    for label, (width, colour) in parts.items():
        axes.barh(range(len(rows)), width, 0.6, left, color=colour, label=label)
        left = left + width
    name_rows(axes, [row.name for row in rows])
    axes.set(xlim=(0, 1), xlabel="share of test questions")
    percent(axes, "x")
    legend_above(axes)
    return figure


@themed()
def learning_curves(study: Study) -> Figure:
    """Validation option NLL and accuracy by step: the mean over seeds in a band from the lowest to the highest."""
    figure = Figure((WIDTH, 3.4))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, name in zip(panels, ("option_nll", "accuracy"), strict=True):
        for row in study.methods():
            _band(axes, study, row.name, name)
    panels[0].set_title("option NLL, nats", loc="left")
    panels[0].legend(loc="best", handlelength=1.4)
    panels[1].set_title("accuracy", loc="left")
    percent(panels[1], "y")
    panels[1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[1].set_xlabel("optimizer step")
    return figure


def _band(axes: Axes, study: Study, method: str, name: str) -> None:
    """One method's curve; seeds that stopped early count as far as they went."""
    by_step: dict[int, list[float]] = {}
    for curve in study.curves:
        for step, value in zip(curve.steps, getattr(curve, name), strict=True):
            if curve.method == method and value is not None:
                by_step.setdefault(step, []).append(value)
    steps, colour = sorted(by_step), colours(study)[method]
    low, mean, high = ([float(pick(by_step[step])) for step in steps] for pick in (np.min, np.mean, np.max))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    marker = "o" if len(steps) < 12 else ""
    axes.plot(steps, mean, color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=method)

"""Learning curves of a run, read from metrics.csv."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from cyberlm.evaluation.pages.figures import Points

METRICS_FILE = "metrics.csv"
LABELS = {
    "loss": "loss, nats a token",
    "nll": "loss, nats a token",
    "option_nll": "NLL of the right option, nats",
    "accuracy": "accuracy on the validation questions",
}
"""Titles of panels by the end of a column's name; other columns have a panel of their own."""


def read_curves(folder: Path) -> dict[str, Points]:
    """Every figure of metrics.csv by optimizer step, by the column's name; none where there is no such file."""
    if not (folder / METRICS_FILE).is_file():
        return {}
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in csv.DictReader((folder / METRICS_FILE).read_text("utf-8").splitlines()):
        step = float(row.pop("step", "") or "nan")
        for name, text in row.items():
            value = float(text or "nan")
            if name != "epoch" and math.isfinite(value + step):
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return dict(found)


def panels_of(curves: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Curves by the title of their panel: losses together, then what was validated, then the others."""
    panels: dict[str, dict[str, Points]] = {title: {} for title in LABELS.values()}
    for name in sorted(curves):
        last = name.rpartition("/")[2]
        panels.setdefault(LABELS.get(last, last.replace("_", " ")), {})[name] = curves[name]
    return {title: lines for title, lines in panels.items() if lines}

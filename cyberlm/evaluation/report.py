"""Report at the end of a run or a sweep, no wider than the terminal (80 columns where there is none)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from cyberlm.evaluation.metrics.metric import Metric, Place
from cyberlm.evaluation.records import Cost, Results
from cyberlm.evaluation.verdict import difference_tables, power, verdict, verdict_in_brief
from cyberlm.runtime import progress
from cyberlm.runtime.progress import clock, say

WIDEST_CELL = 40
MAX_MODELS = 4
"""Models that have a line of their own in a summary."""


def print_summary(results: Results, files: Path) -> None:
    """Prints at most eight lines: the run, its models, the verdict on them, the cost, and the files to read."""
    questions = ", ".join(f"{count} {part}" for part, count in results.questions.items())
    say()
    say(f"{results.model}, {results.method}, {results.data}: {questions} questions")
    shown = MAX_MODELS if len(results.metrics) <= MAX_MODELS else MAX_MODELS - 1
    for name, metrics in list(results.metrics.items())[:shown]:
        heads = [m for m in metrics.values() if m.place == "headline" and m.value is not None]
        say(_truncated_line(f"{name}:", [f"{m.label or m.name} {m.text()}" for m in heads]))
    if len(results.metrics) > shown:
        say(f"and {len(results.metrics) - shown} more models")
    for line in verdict_in_brief(results.comparisons, results.differences):
        say(line)
    if (cost := results.cost) is not None:
        memory, saved = map(_size, (cost.peak_bytes, cost.adapter_bytes))
        time, trained = clock(sum(cost.seconds.values())), f"{cost.trainable_parameters:,} parameters trained"
        say(f"Cost: {time}, peak {memory}; {trained}, {saved} saved")
    page = "report.html, " if (files / "report.html").is_file() else ""
    say(f"All tables, {len(notes(results, 'headline', 'evidence', 'note'))} notes: {page}results.json, or report=full")
    say(f"Files: {files}")


def _truncated_line(start: str, parts: Sequence[str]) -> str:
    """As many of the parts, from the first on, as fit on a line of the terminal."""
    line = f"{start} {', '.join(parts[:1])}"
    for part in parts[1:]:
        if len(line) + len(part) + 2 > progress.console.width:
            break
        line += f", {part}"
    return line


def print_results(results: Results, files: Path) -> None:
    """Prints the metrics of all models side by side, what they mean, what the run cost, and its folder."""
    say()
    say(
        f"{results.model}, method {results.method}, quant {results.quant}, prompt {results.prompt}, data {results.data}"
    )
    say("Questions: " + ", ".join(f"{count} {part}" for part, count in results.questions.items()))
    _print_metrics("Test questions", results, "headline")
    for note in notes(results, "headline"):
        say(f"Note: {note}.", wrap=True)
    for sentence in verdict(results.comparisons, results.differences):
        say(sentence, wrap=True)
    _print_metrics("Evidence", results, "evidence")
    for title, columns in difference_tables(results):
        _print_table(title, columns, justify="right")
    for sentence in (*(f"{note}." for note in notes(results, "evidence", "note")), *power(results.comparisons)):
        say(sentence, wrap=True)
    if results.cost is not None:
        cost = cost_rows(results, results.cost)
        _print_table("Cost", {"": list(cost), "run": list(cost.values())}, justify="right")
    say(f"Files: {files}")


def print_leaderboard(rows: Sequence[dict[str, str]]) -> None:
    """Prints the jobs of a sweep, at least one, without columns that are empty in every row."""
    columns = [name for name in rows[0] if any(row.get(name) for row in rows)]
    _print_table("Leaderboard", {name: [row.get(name, "") for row in rows] for name in columns})


def _print_table(title: str, columns: Mapping[str, Sequence[str]], justify: Literal["left", "right"] = "left") -> None:
    """Prints a table; columns that do not fit beside one another stand below, with the first repeated.

    Args:
        justify: Of all columns but the first.
    """
    widths = {name: min(WIDEST_CELL, max(map(len, [name, *cells]))) for name, cells in columns.items()}
    first, *others = columns
    stacked = [[first]]
    for name in others:
        width = sum(widths[column] + 3 for column in (*stacked[-1], name))  # a cell's padding, and what parts two cells
        if width > progress.console.width and len(stacked[-1]) > 1:
            stacked.append([first])
        stacked[-1].append(name)
    for number, shown in enumerate(stacked):
        table = Table(title=None if number else Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
        for name in shown:
            table.add_column(
                Text(name), justify="left" if name == first else justify, overflow="fold", max_width=WIDEST_CELL
            )
        for cells in zip(*(columns[name] for name in shown), strict=True):
            table.add_row(*map(Text, cells))
        say(table, wrap=True)


def metric_rows(results: Results, place: Place) -> list[tuple[str, list[Metric | None]]]:
    """Label of each metric of a place, with that metric of each model."""
    every = [metric for found in results.metrics.values() for metric in found.values() if metric.place == place]
    labels = {metric.name: metric.label or metric.name for metric in every}
    return [(label, [found.get(name) for found in results.metrics.values()]) for name, label in labels.items()]


def _print_metrics(title: str, results: Results, place: Place) -> None:
    """A row for each metric of a place, a column for each model; below, what the value rests on."""
    rows: list[list[str]] = []
    for label, metrics in metric_rows(results, place):
        if place == "headline":
            rows.append([label, *(metric.shown() if metric else "-" for metric in metrics)])
            counted = any(metric and metric.interval for metric in metrics)
            if counted:
                rows.append(["  95% interval", *((metric and metric.limits()) or "-" for metric in metrics)])
        else:
            rows.append([label, *(metric.text() if metric else "-" for metric in metrics)])
            counted = bool({metric.n for metric in metrics if metric} - {None, results.questions.get("test")})
        if counted:
            rows.append(["  questions", *((metric and metric.count()) or "-" for metric in metrics)])
    if rows:
        labels, *columns = zip(*rows, strict=True)
        _print_table(title, {"": labels, **dict(zip(results.metrics, columns, strict=True))}, justify="right")


def notes(results: Results, *places: Place) -> list[str]:
    """Notes of the metrics of some places, each once, with the models that it is about unless these are all."""
    about: dict[str, list[str]] = {}
    for model, metrics in results.metrics.items():
        for note in dict.fromkeys(m.note for m in metrics.values() if m.note and m.place in places):
            about.setdefault(note, []).append(model)
    everyone = len(results.metrics)
    return [note if len(models) == everyone else f"{', '.join(models)}: {note}" for note, models in about.items()]


def cost_rows(results: Results, cost: Cost) -> dict[str, str]:
    """Cost of a run as it is shown, by label."""
    share = f"{cost.trainable_parameters / cost.total_parameters:.3%}"
    planned = "" if cost.predicted_peak_bytes is None else f" (planned {_size(cost.predicted_peak_bytes)})"
    host = _size(cost.peak_host_bytes)
    rows = {
        "trainable parameters": f"{cost.trainable_parameters:,} ({share})",
        "total parameters": f"{cost.total_parameters:,}",
        "peak memory, host": host if cost.peak_device_bytes else f"{host}{planned}",
        "peak memory, GPU": f"{_size(cost.peak_device_bytes)}{planned}" if cost.peak_device_bytes else "-",
        **{f"wall time, {phase}": clock(seconds) for phase, seconds in cost.seconds.items()},
        "effective tokens/s in training": f"{cost.nonpadding_tokens_per_second:,.1f}",
    }
    if cost.computed_tokens_per_second is not None:
        rows["computed tokens/s in training"] = f"{cost.computed_tokens_per_second:,.1f}"
    return rows | {"optimizer steps": str(results.steps), "size of what is saved": _size(cost.adapter_bytes)}


def _size(n_bytes: int) -> str:
    """`5242880` -> `5.0 MiB`."""
    if n_bytes >= 2**30:
        return f"{n_bytes / 2**30:.2f} GiB"
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.1f} KiB"

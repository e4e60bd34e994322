"""What a person reads at the end of a run or a sweep, no wider than the terminal (80 columns where there is none)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from cyberlm.evaluation.intervals import share_text
from cyberlm.evaluation.records import Cost, ModelScores, Proportion, Results
from cyberlm.runtime import progress
from cyberlm.runtime.progress import clock, say

WIDEST_CELL = 40
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def print_results(
    results: Results,
    files: Path,
    evidence: Sequence[Sequence[str]] = (),
    differences: Sequence[tuple[str, Mapping[str, Sequence[str]]]] = (),
    sentences: Sequence[str] = (),
) -> None:
    """Prints the scores of all models side by side, what they mean, what the run cost, and its folder.

    Args:
        results: Of a training or an evaluation.
        files: Folder of the run.
        evidence: Rows of a table: what it is, then the figure of each model.
        differences: Tables of compared models, each with its title and its columns.
        sentences: What is to be said below them.
    """
    scores = results.scores
    say()
    say(
        f"{results.model}, method {results.method}, quant {results.quant}, prompt {results.prompt}, data {results.data}"
    )
    say("Questions: " + ", ".join(f"{count} {part}" for part, count in results.questions.items()))
    _print_models("Test questions", list(scores), _score_rows(list(scores.values())))
    for note in _notes(scores):
        say(f"Note: {note}.", wrap=True)
    for sentence in results.comparison.sentences() if results.comparison else ():
        say(sentence, wrap=True)
    if evidence:
        _print_models("Evidence", list(scores), evidence)
    for title, columns in differences:
        _print_stacked(title, columns, justify="right")
    for sentence in sentences:
        say(sentence, wrap=True)
    if results.cost is not None:
        say(_cost_table(results, results.cost), wrap=True)
    say(f"Files: {files}")


def print_leaderboard(rows: Sequence[dict[str, str]]) -> None:
    """Prints the jobs of a sweep; what does not fit beside one another stands below, with the first column repeated.

    Args:
        rows: At least one; columns are the keys of the first, in its order, without those that are empty in every row.
    """
    columns = [name for name in rows[0] if any(row.get(name) for row in rows)]
    _print_stacked("Leaderboard", {name: [row.get(name, "") for row in rows] for name in columns})


def _print_models(title: str, models: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a column for each model: rows hold what it is, then the figure of each model."""
    labels, *figures = zip(*rows, strict=True)
    _print_stacked(title, {"": labels, **dict(zip(models, figures, strict=True))}, justify="right")


def _print_stacked(
    title: str, columns: Mapping[str, Sequence[str]], justify: Literal["left", "right"] = "left"
) -> None:
    """A table; columns that do not fit beside one another stand below, with the first repeated.

    Args:
        title: Above the first part.
        columns: By heading, the cells from top to bottom.
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


def _score_rows(models: Sequence[ModelScores]) -> list[list[str]]:
    rows = [
        ["accuracy, likelihood", *(_percent(m.likelihood.value) for m in models)],
        ["  95% interval", *(_interval(m.likelihood) for m in models)],
        ["  right", *(_count(m.likelihood) for m in models)],
        ["accuracy, generation", *(_percent(m.generation.value if m.generation else None) for m in models)],
    ]
    if any(m.generation for m in models):
        rows += [
            ["  95% interval", *(_interval(m.generation) for m in models)],
            ["  right", *(_count(m.generation) for m in models)],
            ["  no option named", *(share_text(m.parse_fail_rate, m.likelihood.n) for m in models)],
        ]
    if any(m.truncated_rate for m in models):
        rows.append(["  cut off, none named", *(share_text(m.truncated_rate, m.likelihood.n) for m in models)])
    rows += [[label, *(_rouge(m, name) for m in models)] for label, name in ROUGE.items()]
    rows.append(["gold answer NLL, nats/token", *(f"{m.gold_nll:.4f}" for m in models)])
    rows.append(["questions", *(str(m.likelihood.n) for m in models)])
    return rows


def _notes(scores: dict[str, ModelScores]) -> list[str]:
    """Why a figure is missing, each reason once, and how often options were equally likely."""
    notes = []
    for name, model in scores.items():
        if model.ties:
            notes.append(
                f"{name} finds two or more options equally likely in {model.ties} of {model.likelihood.n} questions; "
                "which of them counts is drawn by a hash of the prompt"
            )
        if model.generation_note:
            notes.append(f"no accuracy by generation: {model.generation_note}")
        if model.rouge is not None and model.rouge.note:
            notes.append(model.rouge.note)
    return list(dict.fromkeys(notes))


def _cost_table(results: Results, cost: Cost) -> Table:
    table = Table(title="Cost", title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    share = _percent(cost.trainable_parameters / cost.total_parameters, digits=3)
    table.add_row("trainable parameters", f"{cost.trainable_parameters:,} ({share})")
    table.add_row("total parameters", f"{cost.total_parameters:,}")
    planned = "" if cost.predicted_peak_bytes is None else f" (planned {_size(cost.predicted_peak_bytes)})"
    host = _size(cost.peak_host_bytes)
    table.add_row("peak memory, host", host if cost.peak_device_bytes else f"{host}{planned}")
    table.add_row("peak memory, GPU", f"{_size(cost.peak_device_bytes)}{planned}" if cost.peak_device_bytes else "-")
    for phase, seconds in cost.seconds.items():
        table.add_row(f"wall time, {phase}", clock(seconds))
    table.add_row("effective tokens/s in training", f"{cost.nonpadding_tokens_per_second:,.1f}")
    if cost.computed_tokens_per_second is not None:
        table.add_row("computed tokens/s in training", f"{cost.computed_tokens_per_second:,.1f}")
    table.add_row("optimizer steps", str(results.steps))
    table.add_row("size of what is saved", _size(cost.adapter_bytes))
    return table


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def _interval(share: Proportion | None) -> str:
    return "-" if share is None else f"{_percent(share.ci_lo)} to {_percent(share.ci_hi)}"


def _count(share: Proportion | None) -> str:
    return "-" if share is None else f"{share.correct} of {share.n}"


def _rouge(scores: ModelScores, name: str) -> str:
    if scores.rouge is None:
        return "-"
    value = getattr(scores.rouge, name)
    return "undefined" if value is None else f"{value:.4f}"


def _size(n_bytes: int) -> str:
    """`5242880` -> `5.0 MiB`."""
    if n_bytes >= 2**30:
        return f"{n_bytes / 2**30:.2f} GiB"
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.1f} KiB"

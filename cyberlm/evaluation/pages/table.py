"""A study's table in Markdown and LaTeX: a column a model, with intervals over seeds and questions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, ROUGE
from cyberlm.evaluation.study import AGAINST_BASE, AGAINST_REFERENCE, Study, StudyComparison, StudyCost, StudyRow
from cyberlm.evaluation.verdict import p_cell
from cyberlm.runtime.files import write_text
from cyberlm.runtime.progress import clock

NONE = "–"
Columns = Mapping[str, Sequence[str]]
"""By figure, a cell for each model; the models themselves come first."""
TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "−": "$-$", "<": "$<$"}


def write_table(study: Study, folder: Path) -> None:
    """Writes table.md and table.tex into the study's folder."""
    columns, notes = table_columns(study), table_notes(study)
    write_text(folder / "table.md", as_markdown(columns, notes))
    write_text(folder / "table.tex", as_latex(columns, notes))


def table_columns(study: Study) -> dict[str, list[str]]:
    """Figures of the table in their order; one that no model has is left out."""
    rows = study.rows
    columns = {"model": [row.name for row in rows], "seeds": [str(row.seeds) for row in rows]}
    for outcome in (GENERATION, LIKELIHOOD):
        columns[f"accuracy, {outcome}, %"] = [_share(row, outcome) for row in rows]
        for family, other in ((AGAINST_BASE, "base"), (AGAINST_REFERENCE, study.reference)):
            pairs = [study.comparison(row.name, family, outcome) for row in rows]
            columns[f"minus {other}, {outcome}, points"] = [_difference(pair) if pair else NONE for pair in pairs]
            columns[f"Holm p, {other}, {outcome}"] = [p_cell(pair.p_holm) if pair else NONE for pair in pairs]
    for name, label in ROUGE.items():
        columns[label] = [f"{row.figures[name].value:.3f}" if name in row.figures else NONE for row in rows]
    columns |= {heading: [text(row.cost) if row.cost else NONE for row in rows] for heading, text in COSTS.items()}
    columns["published accuracy, %"] = [NONE if row.published is None else _percent(row.published) for row in rows]
    return {heading: cells for heading, cells in columns.items() if set(cells) != {NONE}}


def table_notes(study: Study) -> list[str]:
    """Lines below the table: what its figures are of."""
    questions = ", ".join(f"{count} {part}" for part, count in study.questions.items())
    rates = ", ".join(f"{row.name} {row.learning_rate:g}" for row in study.methods() if row.learning_rate is not None)
    return [
        f"{study.model}, {study.data}, prompt {study.prompt}; questions: {questions} "
        f"({study.clusters} near-duplicate clusters in the test).",
        "Intervals are 95%, over seeds and questions; p-values are two-sided, with Holm's correction over the methods.",
        *([f"Learning rates: {rates}."] if rates else []),
        f"Made by: {study.command}",
    ]


def as_markdown(columns: Columns, notes: Sequence[str]) -> str:
    (_, models), *figures = columns.items()
    lines = [f"| | {' | '.join(models)} |", f"|---{'|---:' * len(models)}|"]
    lines += [f"| {heading} | {' | '.join(cells)} |" for heading, cells in figures]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def as_latex(columns: Columns, notes: Sequence[str]) -> str:
    """A tabular in the style of booktabs."""
    (_, models), *figures = columns.items()
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(models)}}}",
        r"\toprule",
        " & ".join(["", *map(_tex, models)]) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex, [heading, *cells])) + r" \\" for heading, cells in figures),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _share(row: StudyRow, outcome: str) -> str:
    figure = row.figures.get(outcome)
    if figure is None or figure.ci_lo is None or figure.ci_hi is None:
        return NONE
    return f"{_percent(figure.value)} ({_percent(figure.ci_lo)} to {_percent(figure.ci_hi)})"


def _difference(pair: StudyComparison) -> str:
    return f"{100 * pair.difference:+.1f} ({100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f})"


COSTS: dict[str, Callable[[StudyCost], str]] = {
    "trainable parameters": lambda cost: f"{cost.trainable_parameters:,}",
    "peak memory, GiB": lambda cost: f"{cost.peak_bytes / 2**30:.2f}",
    "wall time, training": lambda cost: clock(cost.train_seconds),
    "effective tokens/s": lambda cost: f"{cost.tokens_per_second:,.0f}",
    "size on disk, MiB": lambda cost: f"{cost.adapter_bytes / 2**20:,.1f}",
}
"""Cells by heading."""

"""Page of a study: its findings, its table, its figures, and each of its runs."""

from collections.abc import Mapping

from markupsafe import Markup

from cyberlm.evaluation.pages.rendering import Cell, Picture, Table, render
from cyberlm.evaluation.pages.table import table_columns, table_notes
from cyberlm.evaluation.predictions import OUTCOMES
from cyberlm.evaluation.study import Figure, Study, StudyComparison
from cyberlm.evaluation.verdict import p_text
from cyberlm.runtime.progress import clock

TITLES = {
    "differences": "Differences",
    "accuracy": "Accuracy",
    "cost_hours": "Accuracy against time",
    "cost_memory": "Accuracy against memory",
    "format_and_knowledge": "Format and knowledge",
    "learning_curves": "Learning curves",
}
"""Of figures, by name."""


def study_page(study: Study, figures: Mapping[str, str], captions: Mapping[str, str]) -> str:
    """Renders study.html.

    Args:
        figures: SVG elements by name, in the order to be shown.
        captions: By the figure's name.
    """
    pictures = [Picture(TITLES.get(name, name), Markup(svg), captions[name]) for name, svg in figures.items()]
    return render(
        "study.html",
        title=f"Study {study.name}: {study.model} on {study.data}",
        study=study,
        cards=_cards(study),
        facts=_facts(study),
        table=_table(study),
        notes=table_notes(study),
        claims=_claims(study),
        comparisons=_comparisons(study),
        pictures=pictures,
        tuning=_tuning(study),
        jobs=_jobs(study),
        floors={name: f"{value:.1%}" for name, value in study.floors.items()},
    )


def _cards(study: Study) -> list[Cell]:
    """Accuracy of each row by the outcome that decides."""
    cards = []
    for row in study.rows:
        figure = row.figures.get(study.outcome)
        if figure is not None:
            small = f"{row.name}: accuracy by {study.outcome}. {_interval(figure)}"
            cards.append(Cell(f"{figure.value:.1%}", figure.value, small.strip()))
    return cards


def _interval(figure: Figure) -> str:
    if figure.ci_lo is None or figure.ci_hi is None:
        return ""
    return f"95%: {figure.ci_lo:.1%} to {figure.ci_hi:.1%}"


def _facts(study: Study) -> dict[str, str]:
    return {
        "model": study.model,
        "data": study.data,
        "prompt": study.prompt,
        "questions": ", ".join(f"{count:,} {part}" for part, count in study.questions.items()),
        "near-duplicate clusters of the test": f"{study.clusters:,}",
        "seeds": ", ".join(map(str, study.seeds)),
        "outcome that decides": study.outcome,
        "margin, named before any result": f"{100 * study.margin:g} points, against {study.reference}",
        "state": study.state,
    }


def _table(study: Study) -> Table:
    """The study's table, turned: a row a figure, a column a model."""
    (_, models), *figures = table_columns(study).items()
    return Table(["figure", *models], [[heading, *cells] for heading, cells in figures])


def _claims(study: Study) -> Table:
    rows: list[list[Cell | str]] = []
    for claim in study.claims:
        p_value = "not tested" if claim.p_value is None else p_text(claim.p_value)
        rows.append(
            [
                f"{claim.method}: {claim.name}",
                claim.against,
                "holds" if claim.holds else "not shown",
                p_value,
                claim.reason,
            ]
        )
    return Table(["claim", "against", "result", "p", "reason"], rows)


def _comparisons(study: Study) -> Table:
    rows: list[list[Cell | str]] = [
        [
            f"{pair.second} minus {pair.first}",
            OUTCOMES.get(pair.outcome, pair.outcome).strip(),
            *_compared(pair),
            pair.words,
        ]
        for pair in study.comparisons
    ]
    return Table(["pair", "outcome", "difference", "95% interval", "bootstrap", "Holm p", "in words"], rows)


def _compared(pair: StudyComparison) -> list[Cell | str]:
    """Difference and intervals, in points where the outcome is a share."""
    scale, spec = (100, "+.1f") if pair.outcome in OUTCOMES else (1, "+.4f")

    def shown(value: float) -> str:
        return format(scale * value, spec)

    return [
        Cell(shown(pair.difference), pair.difference),
        f"{shown(pair.ci_lo)} to {shown(pair.ci_hi)}",
        f"{shown(pair.boot_lo)} to {shown(pair.boot_hi)}",
        Cell(p_text(pair.p_holm).removeprefix("p ").removeprefix("= "), pair.p_holm),
    ]


def _tuning(study: Study) -> Table:
    rows: list[list[Cell | str]] = []
    for rate in study.tuning:
        figures = ["-" if value is None else f"{value:.4f}" for value in (rate.option_nll, rate.accuracy)]
        name = Cell(rate.method, link=f"{rate.folder}/report.html")
        rows.append([name, f"{rate.learning_rate:g}", *figures, "chosen" if rate.chosen else rate.reason])
    return Table(["method", "learning rate", "validation NLL of the options", "validation accuracy", "note"], rows)


def _jobs(study: Study) -> Table:
    outcomes = [name for name in OUTCOMES if any(name in job.figures for job in study.jobs)]
    rows: list[list[Cell | str]] = []
    for job in study.jobs:
        link = f"{job.folder}/report.html" if job.state == "finished" else ""
        shares = [f"{job.figures[name]:.1%}" if name in job.figures else "-" for name in outcomes]
        time = "-" if job.seconds is None else Cell(clock(job.seconds), job.seconds)
        memory = "-" if job.peak_bytes is None else f"{job.peak_bytes / 2**30:.2f}"
        rate = "-" if job.learning_rate is None else f"{job.learning_rate:g}"
        state = f"{job.state}: {job.reason}" if job.reason else job.state
        rows.append(
            [Cell(job.name, link=link), job.stage, job.method, str(job.seed), rate, *shares, time, memory, state]
        )
    labels = [OUTCOMES[name].strip() for name in outcomes]
    return Table(["run", "stage", "method", "seed", "learning rate", *labels, "wall time", "peak GiB", "state"], rows)

"""Analysis of a study: from the answers of its runs to its table, its comparisons and its findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cyberlm.evaluation.comparison import question_figures
from cyberlm.evaluation.equivalence import StudyAnalysis, analyse
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.outcomes import NO_CHOICE, FloatArray, IntArray, choices, right
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, NAMED, Prediction
from cyberlm.evaluation.seeds import estimate, method_mean
from cyberlm.evaluation.study import AGAINST_BASE, AGAINST_REFERENCE, RIGHT_WHERE_NAMED, Figure, StudyComparison

NO_SCORE = ("gold_nll", "option_nll")
"""Outcomes that are no share and no score in [0, 1]: compared by nothing but their means."""


@dataclass(frozen=True)
class Answers:
    """Outcomes of one row of the table.

    Attributes:
        by_outcome: (S, Q) each: a row a run, the same questions in one order.
    """

    name: str
    kind: str
    quant: str
    by_outcome: Mapping[str, FloatArray]


def outcomes_of(rows: Sequence[Prediction], context: EvalSet) -> dict[str, FloatArray]:
    """Outcomes of one run's answers, by name: (Q,) each."""
    completed = all(row.generated is not None for row in rows)
    found = {LIKELIHOOD: right(rows).astype(np.float64)}
    if completed and context.options_shown:
        found[GENERATION] = right(rows, generated=True).astype(np.float64)
        found[NAMED] = (choices(rows, generated=True) != NO_CHOICE).astype(np.float64)
    figures = question_figures(rows, context, completed)
    return found | {name: np.asarray(figure(rows), dtype=np.float64) for name, figure in figures.items()}


def stacked(runs: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Outcomes of several runs as (S, Q) arrays; only what all of them have."""
    return {name: np.stack([run[name] for run in runs]) for name in runs[0] if all(name in run for run in runs)}


def figures_of(by_outcome: Mapping[str, FloatArray], clusters: IntArray) -> dict[str, Figure]:
    """Figures of a row of the table, with their intervals over seeds and questions."""
    found = {}
    for name, rows in by_outcome.items():
        by_seed = tuple(rows.mean(axis=1).tolist())
        if name in NO_SCORE:
            mean = estimate([rows], [1.0], clusters)
            found[name] = Figure(mean.value, *mean.interval(), by_seed)
        else:
            share = method_mean(name, rows, clusters)
            found[name] = Figure(share.mean, share.ci_lo, share.ci_hi, by_seed)
    if NAMED in by_outcome:
        named, hits = by_outcome[NAMED].sum(axis=1), by_outcome[GENERATION].sum(axis=1)  # (S,)
        if named.all():
            shares = hits / named
            found[RIGHT_WHERE_NAMED] = Figure(float(shares.mean()), None, None, tuple(shares.tolist()))
    return found


def analyse_all(
    answers: Sequence[Answers], reference: str, clusters: IntArray, margin: float
) -> dict[str, StudyAnalysis]:
    """Comparisons by each outcome: every method with the first base, and with the reference.

    Args:
        answers: Bases first. Only the first base is compared with; the others are rows of the table alone.
    """
    base = answers[0].name
    compared = [row for row in answers if row.kind == "method" or row.name == base]
    names = [name for name in answers[0].by_outcome if all(name in row.by_outcome for row in compared)]
    return {
        name: analyse({row.name: row.by_outcome[name] for row in compared}, base, reference, clusters, margin)
        for name in names
        if name not in NO_SCORE
    }


def comparisons_of(outcome: str, analysis: StudyAnalysis) -> list[StudyComparison]:
    """Comparisons of one outcome as study.json has them."""
    found = []
    for family, pairs in ((AGAINST_BASE, analysis.against_base), (AGAINST_REFERENCE, analysis.against_reference)):
        for pair in pairs:
            words = analysis.verdicts.get(pair.second, "") if family == AGAINST_REFERENCE else ""
            found.append(
                StudyComparison(
                    *(pair.first, pair.second, outcome, family, pair.difference, pair.ci_lo, pair.ci_hi),
                    *(pair.boot_lo, pair.boot_hi, pair.p_value, pair.p_holm, words, pair.mcnemar),
                )
            )
    return found

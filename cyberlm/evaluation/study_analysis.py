"""Analysis of a study: from the answers of its runs to its table, comparisons and claims.

Equivalence and non-inferiority are within a margin that is named beforehand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.power import measured_variability, needed_questions, powered_margin
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, NAMED, NO_CHOICE, Prediction, choices, right
from cyberlm.evaluation.seeds import bootstrap_means, estimate, mcnemar_by_seed, method_mean
from cyberlm.evaluation.statistics import Clusters, Estimate, FloatArray, IntArray, holm
from cyberlm.evaluation.study import AGAINST_BASE, AGAINST_REFERENCE, RIGHT_WHERE_NAMED, Claim, Figure, StudyComparison

ABOVE_BASE, NON_INFERIOR, EQUIVALENT, SUPERIOR = "above base", "non-inferior", "equivalent", "superior"
LEVELS = {ABOVE_BASE: 0.05, NON_INFERIOR: 0.025, EQUIVALENT: 0.05, SUPERIOR: 0.05}
"""Of each claim's p-value after Holm's correction. Non-inferiority is one-sided: half of 5%."""
DIFFERS, NOT_SHOWN = "differs", "not shown to differ"
KEPT = 0.5
"""Share of the reference's gain over the base that a non-inferior method keeps at least."""
NO_SCORE = ("gold_nll", "option_nll")
"""Outcomes that are no share and no score in [0, 1]: compared by nothing but their means."""

Outcomes = Mapping[str, FloatArray]
"""By method, (S, Q) of 0 and 1 or of a score in [0, 1]: a row a run with its own seed, the same questions in one order.

The base has one row; S may differ between methods.
"""


@dataclass(frozen=True)
class Answers:
    """Outcomes of one row of the table, (S, Q) each: a row a run, the same questions in one order."""

    name: str
    kind: str
    quant: str
    by_outcome: Mapping[str, FloatArray]


@dataclass(frozen=True)
class StudyAnalysis:
    """Comparisons of a study by one outcome.

    Attributes:
        comparisons: Every other method minus the base; every method but these two minus the reference.
        claims: In the order in which they are tested.
        supported_margin: Smallest margin for which a method that is as good as the reference would be found
            non-inferior in 90 of 100 studies like this one: the largest over the methods. None without such methods.
        needed_questions: Questions that the margin would need for that, with as many seeds; None where no number is
            enough, and without such methods.
    """

    questions: int
    comparisons: tuple[StudyComparison, ...]
    claims: tuple[Claim, ...]
    supported_margin: float | None
    needed_questions: int | None


def outcomes_of(rows: Sequence[Prediction], context: EvalSet) -> dict[str, FloatArray]:
    """Outcomes of one run's answers, by name: (Q,) each."""
    from cyberlm.evaluation.comparison import question_figures  # here: it imports torch

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
        if name in NO_SCORE:
            mean = estimate([rows], [1.0], clusters)
            found[name] = Figure(mean.value, *mean.interval(), tuple(rows.mean(axis=1).tolist()))
        else:
            found[name] = method_mean(rows, clusters)
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
        name: analyse({row.name: row.by_outcome[name] for row in compared}, base, reference, clusters, margin, name)
        for name in names
        if name not in NO_SCORE
    }


def analyse(
    outcomes: Outcomes,
    base: str,
    reference: str,
    clusters: Clusters = None,
    margin: float = 0.02,
    outcome: str = "",
    resamples: int = 10_000,
) -> StudyAnalysis:
    """Every comparison of a study, tested in an order that is fixed beforehand.

    1. Each method is above the base: two-sided at 5%.
    2. Each other method is non-inferior to the reference: its difference is above -margin, and it keeps at least half
       of the reference's gain over the base, both one-sided at 2.5%.
    3. It is equivalent to the reference within the margin: two one-sided tests at 5% (Schuirmann 1987, doi
       10.1007/BF01068419).
    4. It is superior to the reference: two-sided at 5%.

    Each is corrected by Holm over the methods. 2 is tested for methods that are above the base, if the reference is
    too; 3 and 4 for those that are non-inferior. 4 does not wait for 3: a method that is better by more than the margin
    is not equivalent, and as both are of one difference, one at most can be claimed wrongly. The chance of any
    wrong claim is at most 5% in 1, and 5% in 2 to 4 together.

    A method "differs" from the reference where it is not shown to be equivalent, and the two-sided p of their
    difference, corrected over the methods, is at most 5%.

    Args:
        base, reference: Keys of `outcomes`: the untuned model, and the method that others are held against.
        clusters: Near-duplicate cluster of each question, (Q,) int.
        margin: In the outcome's units, for accuracy in shares: 0.02 is two points.
    """
    tuned = [method for method in outcomes if method != base]
    others = [method for method in tuned if method != reference]
    means = bootstrap_means(outcomes, clusters, resamples)
    above_base = _compared(outcomes, means, AGAINST_BASE, base, tuned, outcome, clusters)
    to_reference = _compared(outcomes, means, AGAINST_REFERENCE, reference, others, outcome, clusters)
    claims = []
    for pair in above_base:
        holds = pair.difference > 0 and pair.p_holm <= LEVELS[ABOVE_BASE]
        reason = f"{pair.second} is {'' if holds else 'not shown to be '}above {pair.first}."
        level = LEVELS[ABOVE_BASE]
        claims.append(Claim(ABOVE_BASE, pair.second, pair.first, pair.p, pair.p_holm, level, holds, reason))
    above = [claim.method for claim in claims if claim.holds]
    p_values = {method: _p_values(outcomes, base, reference, method, margin, clusters) for method in others}
    claims += _against_reference(p_values, reference, above, margin)
    equivalent = {claim.method for claim in claims if claim.name == EQUIVALENT and claim.holds}
    words = [verdict(pair.p_holm, pair.second in equivalent, margin) for pair in to_reference]
    with_words = [replace(pair, words=text) for pair, text in zip(to_reference, words, strict=True)]
    margins = [powered_margin(_difference(outcomes, reference, method, clusters), NON_INFERIOR) for method in others]
    wanted = []
    for method in others:
        first, second = outcomes[reference], outcomes[method]
        variability = measured_variability(first, second, clusters)
        wanted.append(needed_questions(margin, min(len(first), len(second)), variability))
    needed = None if None in wanted else max((number for number in wanted if number), default=None)
    questions = outcomes[base].shape[1]
    return StudyAnalysis(questions, (*above_base, *with_words), tuple(claims), max(margins, default=None), needed)


def verdict(p_difference: float, equivalent: bool, margin: float) -> str:
    """Words for a difference: equivalent comes before "differs", for a small difference can be both."""
    if equivalent:
        return f"equivalent within {100 * margin:g} points"
    return DIFFERS if p_difference <= LEVELS[SUPERIOR] else NOT_SHOWN


def tost(difference: Estimate, margin: float) -> float:
    """p-value of two one-sided tests, of a difference ≤ -margin and of one ≥ margin: the larger of the two."""
    return max(difference.p_above(-margin), difference.p_below(margin))


def _difference(outcomes: Outcomes, first: str, second: str, clusters: Clusters) -> Estimate:
    return estimate([outcomes[first], outcomes[second]], [-1.0, 1.0], clusters)


def _compared(
    outcomes: Outcomes,
    means: Mapping[str, FloatArray],
    family: str,
    first: str,
    seconds: Sequence[str],
    outcome: str,
    clusters: Clusters,
) -> list[StudyComparison]:
    """A family of comparisons with Holm's correction, with the means of `bootstrap_means`."""
    found = []
    for second in seconds:
        pair = _difference(outcomes, first, second, clusters)
        boot_lo, boot_hi = np.quantile(means[second] - means[first], [0.025, 0.975]).tolist()
        limits, p_value = (*pair.interval(), float(boot_lo), float(boot_hi)), pair.p_not(0.0)
        tests = mcnemar_by_seed(outcomes[first], outcomes[second], clusters)
        found.append(StudyComparison(first, second, outcome, family, pair.value, *limits, p_value, p_value, "", tests))
    corrected = holm([pair.p for pair in found]).tolist()
    return [replace(pair, p_holm=p) for pair, p in zip(found, corrected, strict=True)]


def _p_values(
    outcomes: Outcomes, base: str, reference: str, method: str, margin: float, clusters: Clusters
) -> dict[str, float]:
    """p-values of the claims about a method against the reference, by their names."""
    pair = _difference(outcomes, reference, method, clusters)
    methods = [outcomes[name] for name in (base, reference, method)]
    kept = estimate(methods, [KEPT - 1, -KEPT, 1.0], clusters)
    return {
        NON_INFERIOR: max(pair.p_above(-margin), kept.p_above(0.0)),  # both must be shown: no correction
        EQUIVALENT: tost(pair, margin),
        SUPERIOR: pair.p_not(0.0) if pair.value > 0 else 1.0,
    }


def _against_reference(
    p_values: Mapping[str, Mapping[str, float]], reference: str, above: Sequence[str], margin: float
) -> list[Claim]:
    """Claims 2 to 4, by method in each; one that is not tested counts in Holm's correction, too."""
    points = f"{100 * margin:g} points"
    sentences = {
        NON_INFERIOR: f"is less than {points} below {reference} and keeps more than {KEPT:.0%} of its gain",
        EQUIVALENT: f"differs from {reference} by less than {points}",
        SUPERIOR: f"is better than {reference}",
    }
    closed = {method: name for method in p_values for name in (method, reference) if name not in above}
    reasons = {method: f"{name} is not shown to be above the base" for method, name in closed.items()}
    claims = []
    for name, sentence in sentences.items():
        used = {method: 1.0 if method in reasons else p[name] for method, p in p_values.items()}
        corrected = dict(zip(used, holm(list(used.values())).tolist(), strict=True))
        for method, p in used.items():
            if method in reasons:
                reason = f"Not tested: {reasons[method]}."
                claims.append(Claim(name, method, reference, None, None, LEVELS[name], False, reason))
                continue
            holds = corrected[method] <= LEVELS[name]
            reason = f"{'' if holds else 'Not shown: '}{method} {sentence}."
            claims.append(Claim(name, method, reference, p, corrected[method], LEVELS[name], holds, reason))
        if name == NON_INFERIOR:
            failed = [claim.method for claim in claims if not claim.holds]
            reasons |= {m: f"{m} is not shown to be non-inferior" for m in failed if m not in reasons}
    return claims

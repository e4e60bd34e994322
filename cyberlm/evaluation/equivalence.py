"""Equivalence and non-inferiority within a margin named beforehand, and the family of a study's comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.outcomes import Clusters, FloatArray
from cyberlm.evaluation.paired_tests import holm
from cyberlm.evaluation.power import measured_variability, needed_questions, powered_margin
from cyberlm.evaluation.seeds import (
    Estimate,
    MethodDifference,
    MethodMean,
    as_outcomes,
    bootstrap_means,
    estimate,
    mcnemar_by_seed,
    method_mean,
)

ABOVE_BASE, NON_INFERIOR, EQUIVALENT, SUPERIOR = "above base", "non-inferior", "equivalent", "superior"
LEVELS = {ABOVE_BASE: 0.05, NON_INFERIOR: 0.025, EQUIVALENT: 0.05, SUPERIOR: 0.05}
"""Of each claim's p-value after Holm's correction. Non-inferiority is one-sided: half of 5%."""
DIFFERS, NOT_SHOWN = "differs", "not shown to differ"
KEPT = 0.5
"""Share of the reference's gain over the base that a non-inferior method keeps at least."""


@dataclass(frozen=True)
class Claim:
    """A claim about one method, and the test that decides it.

    Attributes:
        name: `above base`, `non-inferior`, `equivalent` or `superior`.
        against: The base, or the reference.
        p_value: None where it was not tested, for an earlier claim does not hold.
        p_holm: After Holm's correction over the methods.
        level: The claim holds where `p_holm` is at most this.
        reason: One sentence.
    """

    name: str
    method: str
    against: str
    p_value: float | None
    p_holm: float | None
    level: float
    holds: bool
    reason: str


@dataclass(frozen=True)
class StudyAnalysis:
    """Comparisons of a study.

    Attributes:
        margin: In the outcome's units: 0.02 for two points of accuracy.
        means: Of every method.
        against_base: Every other method minus the base.
        against_reference: Every method but these two, minus the reference.
        claims: In the order in which they are tested.
        verdicts: On each of `against_reference`, by method.
        supported_margin: Smallest margin for which a method that is as good as the reference would be found
            non-inferior in 90 of 100 studies like this one: the largest over the methods. None without such methods.
        needed_questions: Questions that `margin` would need for that, with as many seeds; None where no number is
            enough, and without such methods.
    """

    base: str
    reference: str
    margin: float
    questions: int
    clusters: int
    means: tuple[MethodMean, ...]
    against_base: tuple[MethodDifference, ...]
    against_reference: tuple[MethodDifference, ...]
    claims: tuple[Claim, ...]
    verdicts: dict[str, str]
    supported_margin: float | None
    needed_questions: int | None


def analyse(
    outcomes: Mapping[str, ArrayLike],
    base: str,
    reference: str,
    clusters: Clusters = None,
    margin: float = 0.02,
    resamples: int = 10_000,
    seed: int = 0,
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
        outcomes: By method, (S, Q) of 0 and 1 or of a score in [0, 1]: a row a run with its own seed, the same Q
            questions in one order. One row, or (Q,), for what has no seeds: the base. S may differ.
        base, reference: Keys of `outcomes`: the untuned model, and the method that others are held against.
        clusters: Near-duplicate cluster of each question, (Q,) int.
        margin: In the outcome's units, for accuracy in shares: 0.02 is two points.
        resamples, seed: Of the crossed bootstrap.

    Raises:
        ValueError: If a name is missing, numbers of questions differ, or outcomes lie outside [0, 1].
    """
    rows = _checked(outcomes, base, reference, clusters, margin)
    drawn = bootstrap_means(rows, clusters, resamples, seed)
    tuned = [method for method in rows if method != base]
    others = [method for method in tuned if method != reference]
    against_base = _differences(rows, drawn, base, tuned, clusters)
    against_reference = _differences(rows, drawn, reference, others, clusters)
    claims = _above_base(against_base)
    above = [claim.method for claim in claims if claim.holds]
    p_values = {method: _p_values(rows, base, reference, method, clusters, margin) for method in others}
    claims += _against_reference(p_values, reference, above, margin)
    equivalent = {claim.method for claim in claims if claim.name == EQUIVALENT and claim.holds}
    questions = rows[base].shape[1]
    wanted = [_questions_for(margin, rows[reference], rows[method], clusters) for method in others]
    return StudyAnalysis(
        base,
        reference,
        margin,
        questions,
        questions if clusters is None else np.unique(np.asarray(clusters)).size,
        tuple(method_mean(method, values, clusters) for method, values in rows.items()),
        against_base,
        against_reference,
        tuple(claims),
        {pair.second: verdict(pair.p_holm, pair.second in equivalent, margin) for pair in against_reference},
        max((powered_margin(pair.error, pair.freedom, NON_INFERIOR) for pair in against_reference), default=None),
        None if None in wanted else max((number for number in wanted if number), default=None),
    )


def verdict(p_difference: float, equivalent: bool, margin: float) -> str:
    """Words for a difference: equivalent comes before "differs", for a small difference can be both."""
    if equivalent:
        return f"equivalent within {100 * margin:g} points"
    return DIFFERS if p_difference <= LEVELS[SUPERIOR] else NOT_SHOWN


def tost(difference: Estimate, margin: float) -> float:
    """p-value of two one-sided tests, of a difference ≤ -margin and of one ≥ margin: the larger of the two."""
    return max(difference.p_above(-margin), difference.p_below(margin))


def _checked(
    outcomes: Mapping[str, ArrayLike], base: str, reference: str, clusters: Clusters, margin: float
) -> dict[str, FloatArray]:
    rows = {method: as_outcomes(values) for method, values in outcomes.items()}
    for name in (base, reference):
        if name not in rows:
            raise ValueError(f"no outcomes of {name}; there are those of {', '.join(rows)}")
    if base == reference:
        raise ValueError(f"base and reference are both {base}")
    if margin <= 0:
        raise ValueError(f"margin is {margin}; it must be above 0")
    questions = {method: values.shape[1] for method, values in rows.items()}
    if clusters is not None:
        questions["clusters"] = np.asarray(clusters).size
    if len(set(questions.values())) > 1:
        raise ValueError(f"numbers of questions differ: {questions}")
    return rows


def _differences(
    rows: Mapping[str, FloatArray],
    drawn: Mapping[str, FloatArray],
    first: str,
    seconds: Sequence[str],
    clusters: Clusters,
) -> tuple[MethodDifference, ...]:
    found = []
    for second in seconds:
        pair = estimate([rows[first], rows[second]], [-1.0, 1.0], clusters)
        boot_lo, boot_hi = np.quantile(drawn[second] - drawn[first], [0.025, 0.975]).tolist()
        tests = mcnemar_by_seed(rows[first], rows[second], clusters)
        p_value = pair.p_not(0.0)
        found.append(
            MethodDifference(
                *(first, second, pair.value, *pair.interval(), p_value, p_value),
                *(pair.error, pair.freedom, boot_lo, boot_hi, tests),
            )
        )
    corrected = holm([pair.p_value for pair in found]).tolist()
    return tuple(replace(pair, p_holm=p) for pair, p in zip(found, corrected, strict=True))


def _questions_for(margin: float, reference: FloatArray, method: FloatArray, clusters: Clusters) -> int | None:
    seeds = min(len(reference), len(method))
    return needed_questions(margin, seeds, measured_variability(reference, method, clusters), NON_INFERIOR)


def _above_base(against_base: Sequence[MethodDifference]) -> list[Claim]:
    claims = []
    for pair in against_base:
        holds = pair.difference > 0 and pair.p_holm <= LEVELS[ABOVE_BASE]
        reason = f"{pair.second} is {'' if holds else 'not shown to be '}above {pair.first}."
        names = ABOVE_BASE, pair.second, pair.first
        claims.append(Claim(*names, pair.p_value, pair.p_holm, LEVELS[ABOVE_BASE], holds, reason))
    return claims


def _p_values(
    rows: Mapping[str, FloatArray], base: str, reference: str, method: str, clusters: Clusters, margin: float
) -> dict[str, float]:
    """Of the claims about a method against the reference, by their names."""
    pair = estimate([rows[reference], rows[method]], [-1.0, 1.0], clusters)
    kept = estimate([rows[base], rows[reference], rows[method]], [KEPT - 1, -KEPT, 1.0], clusters)
    return {
        NON_INFERIOR: max(pair.p_above(-margin), kept.p_above(0.0)),  # both must be shown: no correction
        EQUIVALENT: tost(pair, margin),
        SUPERIOR: pair.p_not(0.0) if pair.value > 0 else 1.0,
    }


def _against_reference(
    p_values: Mapping[str, Mapping[str, float]], reference: str, above: Sequence[str], margin: float
) -> list[Claim]:
    """Claims 2 to 4, by method in each; one that is not tested counts in Holm's correction all the same."""
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

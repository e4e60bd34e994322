"""Equivalence and non-inferiority within a margin named beforehand, and the family of a study's comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.outcomes import Clusters, FloatArray
from cyberlm.evaluation.paired_tests import holm
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
DIFFERS, NOT_SHOWN = "differs", "not shown to differ"
ONE_SIDED, TWO_SIDED = 0.025, 0.05
KEPT = 0.5
"""Share of the reference's gain over the base that a non-inferior method keeps at least."""


@dataclass(frozen=True)
class Claim:
    """A claim about one method, and the test that decides it.

    Attributes:
        name: `above base`, `non-inferior`, `equivalent` or `superior`.
        p_value: None where it was not tested, for an earlier claim in the order does not hold.
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
        supported_margin: Largest over the methods of the margin that would be found non-inferior in 90 of 100 studies
            like this one, if there were no difference; None without methods beside the reference.
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

    (i) Each method is above the base: two-sided at 5%, Holm over the methods. (ii) Each other method is non-inferior to
    the reference: the difference is above -margin and at least half of the reference's gain is kept, both one-sided at
    2.5%. (iii) Equivalence: two one-sided tests at 5% (Schuirmann 1987, doi 10.1007/BF01068419). (iv) Superiority,
    two-sided at 5%. (ii) to (iv) are corrected by Holm over the methods; a method is tested only while what comes
    before holds for it, and for (ii) the reference must be above the base too.

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
    claims += _against_reference(rows, base, reference, others, clusters, margin, claims)
    held = {(claim.method, claim.name) for claim in claims if claim.holds}
    verdicts = {
        pair.second: within(margin)
        if (pair.second, EQUIVALENT) in held
        else (DIFFERS if pair.p_holm <= TWO_SIDED else NOT_SHOWN)
        for pair in against_reference
    }
    questions = rows[base].shape[1]
    return StudyAnalysis(
        base,
        reference,
        margin,
        questions,
        questions if clusters is None else int(np.unique(np.asarray(clusters)).size),
        tuple(method_mean(method, values, clusters) for method, values in rows.items()),
        against_base,
        against_reference,
        tuple(claims),
        verdicts,
        max((3.24 * pair.error for pair in against_reference), default=None),
    )


def within(margin: float) -> str:
    """Verdict of equivalence, with the margin in points."""
    return f"equivalent within {100 * margin:g} points"


def tost(difference: Estimate, margin: float) -> float:
    """p-value of two one-sided tests: the larger of those of a difference ≤ -margin and of one ≥ margin."""
    return max(difference.p_above(-margin), 1 - difference.p_above(margin))


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
    seconds: list[str],
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


def _above_base(against_base: tuple[MethodDifference, ...]) -> list[Claim]:
    return [
        Claim(
            *(ABOVE_BASE, pair.second, pair.first, pair.p_value, pair.p_holm, TWO_SIDED),
            holds=(holds := pair.difference > 0 and pair.p_holm <= TWO_SIDED),
            reason="" if holds else f"{pair.second} is not shown to be above {pair.first}",
        )
        for pair in against_base
    ]


def _against_reference(
    rows: Mapping[str, FloatArray],
    base: str,
    reference: str,
    others: list[str],
    clusters: Clusters,
    margin: float,
    before: list[Claim],
) -> list[Claim]:
    """Claims (ii) to (iv)."""
    above = {claim.method for claim in before if claim.holds}
    open_for = [method for method in others if {method, reference} <= above]
    p_values: dict[str, dict[str, float]] = {NON_INFERIOR: {}, EQUIVALENT: {}, SUPERIOR: {}}
    for method in open_for:
        pair = estimate([rows[reference], rows[method]], [-1.0, 1.0], clusters)
        kept = estimate([rows[base], rows[reference], rows[method]], [KEPT - 1, -KEPT, 1.0], clusters)
        p_values[NON_INFERIOR][method] = max(pair.p_above(-margin), kept.p_above(0.0))
        p_values[EQUIVALENT][method] = tost(pair, margin)
        p_values[SUPERIOR][method] = pair.p_not(0.0) if pair.value > 0 else 1.0
    claims = []
    for name, level in ((NON_INFERIOR, ONE_SIDED), (EQUIVALENT, TWO_SIDED), (SUPERIOR, TWO_SIDED)):
        tested = [p_values[name][method] for method in open_for]
        corrected = dict(zip(open_for, holm(tested).tolist(), strict=True))
        for method in others:
            p_holm = corrected.get(method)
            holds = p_holm is not None and p_holm <= level
            reason = "" if holds else (f"not shown to be {name}" if p_holm is not None else "an earlier claim fails")
            claims.append(Claim(name, method, reference, p_values[name].get(method), p_holm, level, holds, reason))
        if name == NON_INFERIOR:
            open_for = [method for method in open_for if corrected[method] <= level]
    return claims

"""Models compared two by two on the same questions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.outcomes import NO_CHOICE, BoolArray, IntArray, choices, cluster_numbers, right
from cyberlm.evaluation.paired_tests import (
    design_effect,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar,
    mean_difference_test,
)
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, Prediction
from cyberlm.runtime.errors import Problem, RunError

NAMED, NAMED_BY_BOTH = "option_named", "named_by_both"
OUTCOMES = (LIKELIHOOD, GENERATION, NAMED, NAMED_BY_BOTH)
"""Right by likelihood; right by generation; the completion names an option (format); right by generation where both
models' completions name one (knowledge)."""

ALL_PAIRS = "all pairs"
AGAINST_BASE = "each tuned model against its base"
AGAINST_OTHERS = "tuned models against bases of others"
AMONG_TUNED = "tuned models among each other"
AMONG_BASES = "base models among each other"
"""Questions that a comparison answers: p-values are corrected over those that ask the same."""


@dataclass(frozen=True)
class PairComparison:
    """Two models on the same questions, by one outcome.

    Attributes:
        first, second: Their names.
        n: Questions; of `named_by_both`, those on which both completions name an option.
        difference: Share right of the second minus that of the first.
        ci_lo, ci_hi: 95% interval of the difference: Tango's score interval, widened where near-duplicates make the
            variance larger. (-1, 1) where all questions are one cluster.
        only_first_right, only_second_right: Discordant questions b and c.
        p_value: Exact McNemar test, two-sided, near-duplicate clusters changing sides as one.
        p_holm: `p_mid` after Holm's correction over the family.
        detectable: Smallest difference that so many questions would show at 80% power.
        lost, gained: Ids (of the first model's predictions) of the questions that only the first, and only the second,
            got right, sorted.
        outcome: What is counted as right, one of `OUTCOMES`.
        p_mid: Mid-p of the same test, which decides whether a difference is significant; None in older files.
        family: What was asked, over which Holm corrects; empty in older files, which correct over all pairs.
        first_right, second_right: Questions that each got right; None in older files.
    """

    first: str
    second: str
    n: int
    difference: float
    ci_lo: float
    ci_hi: float
    only_first_right: int
    only_second_right: int
    p_value: float
    p_holm: float
    detectable: float | None
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    outcome: str = LIKELIHOOD
    p_mid: float | None = None
    family: str = ""
    first_right: int | None = None
    second_right: int | None = None

    @property
    def p(self) -> float:
        """What decides, before correction: `p_mid`, or what an older file has."""
        return self.p_value if self.p_mid is None else self.p_mid


@dataclass(frozen=True)
class MeanDifference:
    """Two models on the same questions, by the mean of a figure that each question has.

    Attributes:
        first, second: Their names.
        outcome: The figure: `gold_nll`, `option_nll`, `rouge1`, `rouge2`, `rougeL`.
        n: Questions.
        difference: Mean of the second minus that of the first.
        ci_lo, ci_hi: 95% interval by t, near-duplicates counted as one; None where all differ
            alike or not at all, or are one cluster.
        p_value: Two-sided; None where the interval is.
        p_holm: The same after Holm's correction over the family.
        family: What was asked, over which Holm corrects.
    """

    first: str
    second: str
    outcome: str
    n: int
    difference: float
    ci_lo: float | None
    ci_hi: float | None
    p_value: float | None
    p_holm: float | None
    family: str

    @property
    def p(self) -> float | None:
        """What decides, before correction."""
        return self.p_value


Compared = TypeVar("Compared", PairComparison, MeanDifference)


def compare_models(
    models: Mapping[str, Sequence[Prediction]],
    clusters: Mapping[str, int] | None = None,
    tuned_from: Mapping[str, str | None] | None = None,
    generated: bool = False,
) -> tuple[PairComparison, ...]:
    """Compares every two of several models by likelihood, and by generation where that is asked for.

    Args:
        models: Predictions by the model's name: the same questions, in any order.
        clusters: From a question's hash to the number of its near-duplicate cluster.
        tuned_from: From each tuned model to its base among `models`, None where that is not one of them; other models
            are bases. p-values are corrected over pairs that ask the same; without it, over all pairs.
        generated: Whether the generated answers are compared too.

    Returns:
        For each of `OUTCOMES`, one comparison for each pair in the order of `models`, a tuned model behind a base.
        `named_by_both` is left out where there is no such question.

    Raises:
        RunError: If there are fewer than two models or no questions, the models did not answer the same questions, or
            completions are missing.
    """
    aligned = _aligned(models)
    numbers = _clusters_of(aligned, clusters)
    found = []
    for outcome in OUTCOMES if generated else OUTCOMES[:1]:
        for first, second, family in _pairs(models, tuned_from):
            one, other = aligned[first], aligned[second]
            asked = np.ones(numbers.size, dtype=bool)
            if outcome == NAMED_BY_BOTH:
                asked = _outcome(one, NAMED) & _outcome(other, NAMED)
            if asked.any():
                sides = _outcome(one, outcome)[asked], _outcome(other, outcome)[asked]
                ids = [prediction.id for prediction, is_asked in zip(one, asked, strict=True) if is_asked]
                compared = _compared(sides, ids, numbers[asked])
                found.append(replace(compared, first=first, second=second, outcome=outcome, family=family))
    return _corrected(found)


def compare_means(
    models: Mapping[str, Sequence[Prediction]],
    figures: Mapping[str, Callable[[Sequence[Prediction]], ArrayLike]],
    clusters: Mapping[str, int] | None = None,
    tuned_from: Mapping[str, str | None] | None = None,
) -> tuple[MeanDifference, ...]:
    """Compares the means of figures that every question has.

    Args:
        models, clusters, tuned_from: As `compare_models`.
        figures: By name, from N predictions to their figures, (N,) float.

    Raises:
        RunError: As `compare_models`.
    """
    aligned = _aligned(models)
    numbers = _clusters_of(aligned, clusters)
    found = []
    for outcome, figure in figures.items():
        values = {name: np.asarray(figure(rows), dtype=np.float64) for name, rows in aligned.items()}
        for first, second, family in _pairs(models, tuned_from):
            changes = values[second] - values[first]  # (N,)
            low, high, p_value = mean_difference_test(changes, numbers) or (None, None, None)
            found.append(
                MeanDifference(
                    *(first, second, outcome, changes.size, float(changes.mean())),
                    *(low, high, p_value, p_value, family),
                )
            )
    return _corrected(found)


def _compared(sides: tuple[BoolArray, BoolArray], ids: Sequence[str], clusters: IntArray) -> PairComparison:
    """A comparison whose models are still to be named."""
    changes = sides[1].astype(np.int64) - sides[0]  # (N,): -1 lost, 1 gained
    lost, gained = (sorted(ids[i] for i in np.flatnonzero(changes == sign).tolist()) for sign in (-1, 1))
    low, high = difference_interval(changes, clusters)
    exact, mid = mcnemar(changes, clusters)
    effect = design_effect(changes, clusters)
    return PairComparison(
        first="",
        second="",
        n=changes.size,
        difference=float(changes.mean()),
        ci_lo=low,
        ci_hi=high,
        only_first_right=len(lost),
        only_second_right=len(gained),
        p_value=exact,
        p_holm=mid,
        detectable=detectable_difference(len(lost), len(gained), changes.size, effect),
        lost=tuple(lost),
        gained=tuple(gained),
        p_mid=mid,
        first_right=int(sides[0].sum()),
        second_right=int(sides[1].sum()),
    )


def _outcome(rows: Sequence[Prediction], outcome: str) -> BoolArray:
    if outcome == NAMED:
        return choices(rows, generated=True) != NO_CHOICE
    return right(rows, generated=outcome != LIKELIHOOD)


def _pairs(models: Mapping[str, object], tuned_from: Mapping[str, str | None] | None) -> list[tuple[str, str, str]]:
    """Every two models and what their comparison asks; a base stands before a tuned model."""
    if tuned_from is None:
        return [(first, second, ALL_PAIRS) for first, second in combinations(models, 2)]
    found = []
    for first, second in combinations(models, 2):
        if (first in tuned_from) == (second in tuned_from):
            found.append((first, second, AMONG_TUNED if first in tuned_from else AMONG_BASES))
            continue
        base, tuned = (second, first) if first in tuned_from else (first, second)
        found.append((base, tuned, AGAINST_BASE if tuned_from[tuned] == base else AGAINST_OTHERS))
    return found


def _corrected(compared: Sequence[Compared]) -> tuple[Compared, ...]:
    """The same with Holm's correction over the comparisons of one outcome that ask the same."""
    families: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for place, pair in enumerate(compared):
        if pair.p is not None:
            families[pair.outcome, pair.family][place] = pair.p
    corrected = list(compared)
    for p_values in families.values():
        for place, p_holm in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
            corrected[place] = replace(compared[place], p_holm=p_holm)
    return tuple(corrected)


def _clusters_of(aligned: Mapping[str, Sequence[Prediction]], clusters: Mapping[str, int] | None) -> IntArray:
    return cluster_numbers([prediction.hash for prediction in next(iter(aligned.values()))], clusters)


def _aligned(models: Mapping[str, Sequence[Prediction]]) -> dict[str, list[Prediction]]:
    """Every model's predictions in one order of the questions.

    Equal questions (one hash, several ids) are paired in the order of their ids.
    """
    if len(models) < 2:
        raise RunError("There is nothing to compare.", [Problem(f"models given: {len(models)}", "two or more")])
    ordered = {name: sorted(rows, key=lambda p: (p.hash, p.id)) for name, rows in models.items()}
    reference, *others = ordered
    expected = [p.hash for p in ordered[reference]]
    for name in others:
        if [p.hash for p in ordered[name]] != expected:
            raise _other_questions(reference, ordered[reference], name, ordered[name])
    if not expected:
        raise RunError("There are no questions to score.")
    return ordered


def _other_questions(
    first: str, first_rows: Sequence[Prediction], second: str, second_rows: Sequence[Prediction]
) -> RunError:
    problems = []
    for name, rows, other, other_rows in (
        (first, first_rows, second, second_rows),
        (second, second_rows, first, first_rows),
    ):
        left = Counter(p.hash for p in rows) - Counter(p.hash for p in other_rows)
        if left:
            example = next(p for p in rows if p.hash in left)
            problems.append(
                Problem(
                    f"{left.total()} of the {len(rows)} questions that {name} answered were not answered by {other}, "
                    f"for example {example.id} ({example.hash})",
                    allowed="the same questions",
                )
            )
    hint = "Score both on the same questions: python evaluate.py 'runs=[outputs/A,outputs/B]'"
    return RunError(f"{first} and {second} cannot be compared.", problems, hint)

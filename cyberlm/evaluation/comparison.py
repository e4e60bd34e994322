"""Comparison of models, two by two, on the same questions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.outcomes import NO_CHOICE, IntArray, choices, cluster_numbers, right
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
"""Outcomes by question: right by likelihood; right by generation; the completion names an option (format); right by
generation where both models' completions name one (knowledge)."""

ALL_PAIRS = "all pairs"
AGAINST_BASE = "each tuned model against its base"
AGAINST_OTHERS = "tuned models against bases of others"
AMONG_TUNED = "tuned models among each other"
AMONG_BASES = "base models among each other"
"""Families of comparisons that ask the same: p-values are corrected over each."""


@dataclass(frozen=True)
class PairComparison:
    """Comparison of two models by one outcome.

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
        outcome: Outcome that is counted, one of `OUTCOMES`.
        p_mid: Mid-p of the same test, which decides whether a difference is significant; None in older files.
        family: Comparisons over which Holm corrects; empty in older files, which correct over all pairs.
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
        """p-value that decides, before correction: `p_mid`, or that of an older file."""
        return self.p_value if self.p_mid is None else self.p_mid


@dataclass(frozen=True)
class MeanDifference:
    """Comparison of two models by the mean of a figure that each question has.

    Attributes:
        first, second: Their names.
        outcome: The figure: `gold_nll`, `option_nll`, `rouge1`, `rouge2`, `rougeL`.
        n: Questions.
        difference: Mean of the second minus that of the first.
        ci_lo, ci_hi: 95% interval by t, near-duplicates counted as one; None where all differ
            alike or not at all, or are one cluster.
        p_value: Two-sided; None where the interval is.
        p_holm: The same after Holm's correction over the family.
        family: Comparisons over which Holm corrects.
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
        """p-value that decides, before correction."""
        return self.p_value


Compared = TypeVar("Compared", PairComparison, MeanDifference)
Predicted = Sequence[Prediction]


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
    aligned, numbers = _aligned(models, clusters)
    found = []
    for outcome in OUTCOMES if generated else OUTCOMES[:1]:
        for first, second, family in _pairs(models, tuned_from):
            pair = _compared((first, second), (aligned[first], aligned[second]), outcome, family, numbers)
            if pair is not None:
                found.append(pair)
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
    aligned, numbers = _aligned(models, clusters)
    found = []
    for outcome, figure in figures.items():
        values = {name: np.asarray(figure(rows), dtype=np.float64) for name, rows in aligned.items()}
        for first, second, family in _pairs(models, tuned_from):
            changes = values[second] - values[first]  # (N,)
            low, high, p_value = mean_difference_test(changes, numbers) or (None, None, None)
            pair = first, second, outcome, changes.size, float(changes.mean())
            found.append(MeanDifference(*pair, low, high, p_value, p_holm=p_value, family=family))
    return _corrected(found)


def _compared(
    names: tuple[str, str], rows: tuple[Predicted, Predicted], outcome: str, family: str, clusters: IntArray
) -> PairComparison | None:
    """One comparison, not yet corrected; None where no question is asked."""
    ids = np.array([row.id for row in rows[0]])
    sides = [right(side, generated=outcome != LIKELIHOOD) for side in rows]  # (N,) each
    if outcome in (NAMED, NAMED_BY_BOTH):
        named = [choices(side, generated=True) != NO_CHOICE for side in rows]
        if outcome == NAMED:
            sides = named
        else:
            asked = named[0] & named[1]
            ids, clusters, sides = ids[asked], clusters[asked], [side[asked] for side in sides]
    if not ids.size:
        return None
    changes = sides[1].astype(np.int64) - sides[0]  # (N,): -1 lost, 1 gained
    lost, gained = (tuple(sorted(ids[changes == sign].tolist())) for sign in (-1, 1))
    low, high = difference_interval(changes, clusters)
    exact, mid = mcnemar(changes, clusters)
    effect = design_effect(changes, clusters)
    return PairComparison(
        first=names[0],
        second=names[1],
        n=changes.size,
        difference=float(changes.mean()),
        ci_lo=low,
        ci_hi=high,
        only_first_right=len(lost),
        only_second_right=len(gained),
        p_value=exact,
        p_holm=mid,
        detectable=detectable_difference(len(lost), len(gained), changes.size, effect),
        lost=lost,
        gained=gained,
        outcome=outcome,
        p_mid=mid,
        family=family,
        first_right=int(sides[0].sum()),
        second_right=int(sides[1].sum()),
    )


def _pairs(models: Mapping[str, object], tuned_from: Mapping[str, str | None] | None) -> list[tuple[str, str, str]]:
    """Every two models and the family of their comparison; a base comes before a tuned model."""
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
    """Comparisons with Holm's correction over those of one outcome and family."""
    families: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for place, pair in enumerate(compared):
        if pair.p is not None:
            families[pair.outcome, pair.family][place] = pair.p
    corrected = list(compared)
    for p_values in families.values():
        for place, p_holm in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
            corrected[place] = replace(compared[place], p_holm=p_holm)
    return tuple(corrected)


def _aligned(
    models: Mapping[str, Predicted], clusters: Mapping[str, int] | None
) -> tuple[dict[str, Predicted], IntArray]:
    """Every model's predictions in one order of the questions, and the cluster of each.

    Equal questions (one hash, several ids) are paired in the order of their ids.
    """
    if len(models) < 2:
        raise RunError("There is nothing to compare.", [Problem(f"models given: {len(models)}", "two or more")])
    ordered: dict[str, Predicted] = {
        name: sorted(rows, key=lambda row: (row.hash, row.id)) for name, rows in models.items()
    }
    reference, *others = ordered
    hashes = [row.hash for row in ordered[reference]]
    for name in others:
        if [row.hash for row in ordered[name]] != hashes:
            hint = "Score both on the same questions: python evaluate.py 'runs=[outputs/A,outputs/B]'"
            problems = [*_unanswered(ordered, reference, name), *_unanswered(ordered, name, reference)]
            raise RunError(f"{reference} and {name} cannot be compared.", problems, hint)
    if not hashes:
        raise RunError("There are no questions to score.")
    return ordered, cluster_numbers(hashes, clusters)


def _unanswered(models: Mapping[str, Predicted], name: str, other: str) -> list[Problem]:
    """The questions that only the first of two models answered, if any."""
    left = Counter(row.hash for row in models[name]) - Counter(row.hash for row in models[other])
    if not left:
        return []
    example = next(row for row in models[name] if row.hash in left)
    what = (
        f"{left.total()} of the {len(models[name])} questions that {name} answered were not answered by {other}, "
        f"for example {example.id} ({example.hash})"
    )
    return [Problem(what, "the same questions")]

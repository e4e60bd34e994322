"""Models compared two by two on the same questions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from cyberlm.errors import Problem, RunError
from cyberlm.records import Prediction
from cyberlm.statistics.outcomes import BoolArray, FloatArray, cluster_numbers, right

RESAMPLES = 10_000
POWER_FACTOR = 2.8
"""z(0.975) + z(0.80) = 1.96 + 0.84: a two-sided test at 5% that finds the difference 80 times in 100."""


@dataclass(frozen=True)
class PairComparison:
    """Two models on the same questions.

    Attributes:
        first, second: Their names.
        n: Questions.
        difference: Accuracy of the second minus accuracy of the first.
        ci_lo, ci_hi: 95% paired-bootstrap interval of the difference, by cluster where clusters are given. It is as
            narrow as a point where no question changed sides, and (-1, 1) where all questions are one cluster.
        only_first_right, only_second_right: Discordant questions b and c.
        p_value: Exact McNemar test, two-sided. It takes questions as independent; where it and the clustered interval
            disagree, near-duplicates are why, and the interval is the one to believe.
        p_holm: The same after Holm's correction over all pairs that were compared together.
        detectable: Smallest difference that so many questions would show at 80% power; None where no question changed
            sides, for then there is nothing to estimate it from.
        lost, gained: Ids (of the first model's predictions) of the questions that only the first, and only the second,
            got right, sorted.
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


def compare_models(
    models: Mapping[str, Sequence[Prediction]],
    clusters: Mapping[str, int] | None = None,
    generated: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[PairComparison, ...]:
    """Compares every two of several models; p-values are corrected over all these pairs.

    Args:
        models: Predictions by the model's name: the same questions, in any order.
        clusters: From a question's hash to the number of its near-duplicate cluster.
        generated: Whether to judge the generated answers instead of the choice by likelihood.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        One comparison for each pair, in the order of `models`.

    Raises:
        RunError: If there are fewer than two models, or they did not answer the same questions.
    """
    if len(models) < 2:
        raise RunError("There is nothing to compare.", [Problem(f"models given: {len(models)}", "two or more")])
    ids, hashes, outcomes = _aligned(models, generated)
    numbers = cluster_numbers(hashes, clusters)
    rows = []
    for first, second in combinations(models, 2):
        changes = outcomes[second].astype(np.int64) - outcomes[first]  # (N,): -1 lost, 1 gained
        lost, gained = (sorted(ids[i] for i in np.flatnonzero(changes == sign)) for sign in (-1, 1))
        rows.append((first, second, changes, lost, gained, mcnemar(len(lost), len(gained))))
    adjusted = holm([row[-1] for row in rows])
    comparisons = []
    for (first, second, changes, lost, gained, p_value), p_holm in zip(rows, adjusted.tolist(), strict=True):
        low, high = bootstrap_difference(changes, numbers, resamples, seed)
        comparisons.append(
            PairComparison(
                first=first,
                second=second,
                n=changes.size,
                difference=float(changes.mean()),
                ci_lo=low,
                ci_hi=high,
                only_first_right=len(lost),
                only_second_right=len(gained),
                p_value=p_value,
                p_holm=p_holm,
                detectable=detectable_difference(len(lost), len(gained), changes.size),
                lost=tuple(lost),
                gained=tuple(gained),
            )
        )
    return tuple(comparisons)


def _aligned(
    models: Mapping[str, Sequence[Prediction]], generated: bool
) -> tuple[list[str], list[str], dict[str, BoolArray]]:
    """Ids and hashes of the questions, and whether each model was right, all in one order.

    Equal questions (one hash, several ids) are paired in the order of their ids.
    """
    ordered = {name: sorted(rows, key=lambda p: (p.hash, p.id)) for name, rows in models.items()}
    reference, *others = ordered
    expected = [p.hash for p in ordered[reference]]
    for name in others:
        if [p.hash for p in ordered[name]] != expected:
            raise _other_questions(reference, ordered[reference], name, ordered[name])
    outcomes = {name: right(rows, generated) for name, rows in ordered.items()}
    return [p.id for p in ordered[reference]], expected, outcomes


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


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: p = min(1, 2 P(Bin(b+c, 1/2) ≤ min(b, c))); 1 where b + c = 0.

    McNemar 1947, Psychometrika 12:153; exact form: Fagerland et al. 2013, doi 10.1186/1471-2288-13-91.

    Args:
        only_first: b, questions that only the first model got right.
        only_second: c, questions that only the second got right.
    """
    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))


def bootstrap_difference(
    changes: ArrayLike, clusters: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean change, over resampled questions or clusters of questions.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; clusters are drawn whole (Davison and
    Hinkley 1997, Bootstrap Methods and their Application, section 3.8). Clusters of equal size and equal total change
    are interchangeable, so a resample is one multinomial draw of how often each kind occurs, not n draws of questions.

    Args:
        changes: (N,) int, -1 for a question that only the first model got right, 1 for only the second, else 0.
        clusters: (N,) int, number of each question's cluster; None if all are independent.
        resamples: Number of resamples.
        seed: Of the random numbers; the same inputs in any order of questions give the same interval.

    Returns:
        Lower and upper limit; (-1, 1), which says nothing, where all questions are one cluster.
    """
    values = np.asarray(changes, dtype=np.int64)
    if clusters is None:
        totals, sizes = values, np.ones_like(values)
    else:
        _, members = np.unique(np.asarray(clusters), return_inverse=True)
        sizes = np.bincount(members)
        totals = np.rint(np.bincount(members, weights=values)).astype(np.int64)
    if sizes.size == 1:
        return -1.0, 1.0
    kinds, counts = np.unique(np.stack([totals, sizes], axis=1), axis=0, return_counts=True)  # (T, 2), (T,)
    drawn = np.random.default_rng(seed).multinomial(sizes.size, counts / sizes.size, size=resamples)  # (R, T)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])  # (R,)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values of a family of m tests after Holm's step-down correction, in their order.

    Sorted ascending, the i-th becomes max over j ≤ i of min(1, (m - j + 1) p_j): under 0.05 means significant with at
    most 5% chance of any false finding in the family (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Args:
        p_values: (m,) in [0, 1].

    Returns:
        (m,) float64.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def detectable_difference(only_first: int, only_second: int, n: int) -> float | None:
    """Smallest difference of accuracy that n questions show in 80 of 100 tries, at 5%: 2.8 √((b+c)/n²).

    (b+c)/n² is the variance of the difference where the models are equally good; the factor is z(0.975) + z(0.80)
    (Connor 1987, Biometrics 43:207; Miller 2024, arXiv 2411.00640).

    Args:
        only_first: b, questions that only the first model got right.
        only_second: c, questions that only the second got right.
        n: All questions.

    Returns:
        In shares, not points; None where b + c = 0: the variance is then unknown, not 0.
    """
    changed = only_first + only_second
    return POWER_FACTOR * math.sqrt(changed) / n if changed else None

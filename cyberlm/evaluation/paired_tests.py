"""Tests and intervals of a difference between two models that answered the same questions; near-duplicates as one."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom

from cyberlm.evaluation.intervals import Z95, Clusters, FloatArray, cluster_sums, design_effect

Changes = ArrayLike
"""(N,) int: -1 for a question that only the first model got right, 1 for one that only the second did, else 0."""

POWER_FACTOR = 2.8
"""z(0.975) + z(0.80) = 1.96 + 0.84: a two-sided test at 5% that finds the difference 80 times in 100."""
FEWEST_CHANGED = 8
"""2.8 √m ≤ m from 8 on: with fewer changed questions the detectable difference would be more than all of them."""


def mcnemar(changes: Changes, clusters: Clusters = None) -> tuple[float, float]:
    """McNemar's test, exact and mid-p, two-sided; near-duplicate questions change sides as one.

    Without clusters the exact test is p = min(1, 2 P(Bin(b+c, 1/2) ≤ min(b, c))) (McNemar 1947, Psychometrika 12:153),
    and mid-p counts half of the probability of what was found: less conservative, and advised by Fagerland et al. 2013
    (doi 10.1186/1471-2288-13-91). With clusters it is the exact sign-flip test of the clusters' total changes: where
    the models are equally good, a cluster's total is as likely to have the other sign (Fisher 1935, The Design
    of Experiments, section 21). With clusters of one question each both are the same test.

    Returns:
        The exact p and the mid-p; both are 1 where no cluster changed.
    """
    totals = cluster_sums(changes, clusters)
    sizes, counts = np.unique(np.abs(totals[totals != 0]), return_counts=True)
    if not sizes.size:
        return 1.0, 1.0
    chances = np.ones(1)  # of each sum of the totals that are positive
    for size, count in zip(sizes.astype(int).tolist(), counts.tolist(), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    up = int(totals[totals > 0].sum())
    least = min(up, chances.size - 1 - up)
    tail, found = float(chances[: least + 1].sum()), float(chances[least])
    if 2 * least == chances.size - 1:
        return 1.0, 1 - found / 2
    return min(1.0, 2 * tail), min(1.0, 2 * tail - found)


def difference_interval(changes: Changes, clusters: Clusters = None) -> tuple[float, float]:
    """95% interval of the mean change: Tango's score interval on the effective number of questions.

    Returns:
        Lower and upper limit; (-1, 1), which excludes no difference, where several questions are one cluster.
    """
    values = np.asarray(changes, dtype=np.int64)
    if clusters is not None and values.size > 1 and np.unique(np.asarray(clusters)).size == 1:
        return -1.0, 1.0
    effect = design_effect(values, clusters)
    return score_interval(*(count / effect for count in ((values < 0).sum(), (values > 0).sum(), values.size)))


def score_interval(only_first: float, only_second: float, n: float) -> tuple[float, float]:
    """95% score interval of the difference of two paired shares, (c - b)/n (Tango 1998, Statistics in Medicine 17:891).

    It holds each difference δ with |c - b - nδ| ≤ 1.96 √(n (2q + δ(1 - δ))), q being the likeliest share of questions
    that only the first gets right where the difference is δ. Unlike a bootstrap it is informative where few questions
    changed sides: with none, ±1.96²/(n + 1.96²). Counts need not be whole, so that effective ones can be put in.

    Args:
        only_first, only_second: b and c, of the n questions those that only one model got right.
    """
    upper = _upper_limit(only_first, only_second, n)
    return -_upper_limit(only_second, only_first, n), upper


def _upper_limit(b: float, c: float, n: float) -> float:
    found = (c - b) / n

    def excess(delta: float) -> float:
        linear = (2 * n - c + b) * delta - b - c
        root = math.sqrt(max(0.0, linear**2 + 8 * n * b * delta * (1 - delta)))
        share = (root - linear) / (4 * n)  # q
        return c - b - n * delta + Z95 * math.sqrt(max(0.0, n * (2 * share + delta * (1 - delta))))

    start = found + 1e-9  # at `found` itself the equation is 0 where nothing changed
    return 1.0 if start >= 1 else float(brentq(excess, start, 1.0, xtol=1e-14))


def detectable_difference(only_first: int, only_second: int, n: int, effect: float = 1.0) -> float:
    """Smallest difference of accuracy that n questions show in 80 of 100 tries, at 5%: 2.8 √max(b+c, 8) / n.

    (b+c)/n² is the variance of the difference where the models are equally good; the factor is z(0.975) + z(0.80)
    (Connor 1987, Biometrics 43:207; Miller 2024, arXiv 2411.00640). The least is 7.9/n: no fewer questions could show
    anything. In shares, not points; at most 1.

    Args:
        only_first, only_second: b and c, of the n questions those that only one model got right.
        effect: By how much near-duplicates raise the variance.
    """
    return min(1.0, POWER_FACTOR * math.sqrt(max(only_first + only_second, FEWEST_CHANGED) * effect) / n)


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values (m,) of a family of m tests after Holm's step-down correction, in their order.

    Sorted ascending, the i-th becomes max over j ≤ i of min(1, (m - j + 1) p_j): under 0.05 means significant with at
    most 5% chance of any false finding in the family (Holm 1979, Scandinavian Journal of Statistics 6:65).
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted

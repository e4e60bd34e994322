"""Intervals and tests of shares, means and differences, in which near-duplicate questions count once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm
from scipy.stats import t as student

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Clusters = ArrayLike | None
"""Number of each question's near-duplicate cluster, (N,) int; None where all are independent."""
Z95 = float(norm.ppf(0.975))
"""Two-sided 95% quantile of the normal distribution, 1.95996."""
ROUNDING = 1e-12
"""Sums of deviations no larger than this, relative to what was summed, are 0 but for rounding."""
Changes = ArrayLike
"""(N,) int: -1 for a question that only the first model got right, 1 for one that only the second did, else 0."""

POWER_FACTOR = 2.8
"""z(0.975) + z(0.80) = 1.96 + 0.84: a two-sided test at 5% that finds the difference 80 times in 100."""
MIN_CHANGED = 8
"""2.8 √m ≤ m from 8 on: with fewer changed questions the detectable difference would be more than all of them."""


def cluster_sums(values: ArrayLike, clusters: Clusters = None) -> FloatArray:
    """Sums (G, ...) of the values (N, ...) of each near-duplicate cluster; without clusters, the values."""
    each = np.asarray(values, dtype=np.float64)
    if clusters is None:
        return each
    members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.zeros((members.max() + 1, *each.shape[1:]))
    np.add.at(sums, members, each)
    return sums


@dataclass(frozen=True)
class Estimate:
    """Estimated value, with its standard error (above 0) and the degrees of freedom of that error."""

    value: float
    error: float
    df: float

    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval by t."""
        half = self.error * float(student.ppf(0.975, self.df))
        return self.value - half, self.value + half

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true value is at most `bound`."""
        return float(student.sf((self.value - bound) / self.error, self.df))

    def p_below(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true value is at least `bound`."""
        return float(student.cdf((self.value - bound) / self.error, self.df))

    def p_not(self, bound: float) -> float:
        """Two-sided p-value of the hypothesis that the true value is `bound`."""
        return 2 * min(self.p_above(bound), self.p_below(bound))


def mean_estimate(values: ArrayLike, clusters: Clusters = None) -> Estimate | None:
    """Mean of values (N,) with its cluster-robust standard error.

    The degrees of freedom are those of the variance that was found, 2G/(κ - 1) for G clusters of kurtosis κ (at most
    G - 1): few where few questions differ at all (Satterthwaite 1946, Biometrics Bulletin 2:110).

    Returns:
        None where nothing varies: all values are alike, or there is one cluster.
    """
    each = np.asarray(values, dtype=np.float64)
    sums = cluster_sums(each - each.mean(), clusters)
    squares, count = float((sums**2).sum()), sums.size
    if count < 2 or np.abs(sums).max() <= ROUNDING * np.abs(each).sum():
        return None
    kurtosis = count * float((sums**4).sum()) / squares**2
    df = min(count - 1.0, 2 * count / (kurtosis - 1)) if kurtosis > 1 else count - 1.0
    return Estimate(float(each.mean()), math.sqrt(count / (count - 1) * squares) / each.size, df)


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """95% score interval (Wilson 1927, JASA 22:209, doi 10.1080/01621459.1927.10502953), no continuity correction.

    With z = 1.96: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). `n` need not be whole, so that an effective
    number of questions can be put in (as surveys do: Korn and Graubard 1998, Survey Methodology 24:193).
    """
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The interval holds its share; rounding alone can put it outside, where the share is 0 or 1.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def design_effect(values: ArrayLike, clusters: Clusters = None) -> float:
    """Factor by which near-duplicates raise the variance of a mean of values (N,), at least 1 (Kish 1965).

    The cluster-robust variance (Liang and Zeger 1986, Biometrika 73:13, doi 10.1093/biomet/73.1.13; for evaluations
    Miller 2024, arXiv 2411.00640) over that of independent questions, without a correction for few clusters, so that
    clusters of one question each give 1. Where all values are alike, and in a single cluster, it is unknown, and each
    cluster counts as one question.
    """
    each = np.asarray(values, dtype=np.float64)
    deviations = each - each.mean()
    sums = cluster_sums(deviations, clusters)  # (G,)
    if not deviations.any() or sums.size == 1:
        return float(each.size / sums.size)
    return max(1.0, float((sums**2).sum() / (deviations**2).sum()))


def effective_questions(correct: ArrayLike, clusters: Clusters) -> float:
    """Independent questions that would give accuracy the same variance, in (0, n]."""
    return float(np.size(correct) / design_effect(correct, clusters))


def skill_interval(
    correct: ArrayLike, credits: ArrayLike, clusters: Clusters, z_high: float = Z95
) -> tuple[float, float]:
    """Interval of skill 1 - (1 - a)/(1 - f), of accuracies a and f that are both estimated on the same questions.

    The ratio of the two shares of errors, by MOVER (Donner and Zou 2012, Stat. Methods Med. Res. 21:347): each share's
    Wilson limits on its effective number of questions, and their correlation. Half a question in each of the four
    cells (both wrong, ...; Agresti and Min 2005) keeps the correlation below 1 where the two answer alike.

    Args:
        correct: (N,) bool, whether the model is right.
        credits: (N,) float in [0, 1], the baseline's share of a right answer; not all 1.
        z_high: Quantile of the normal distribution for the upper limit.
    """
    errors = 1 - np.array([correct, credits], dtype=np.float64)  # (2, N)
    (model, baseline), n = errors.mean(axis=1).tolist(), errors.shape[1]
    sums: FloatArray = np.array([cluster_sums(row - row.mean(), clusters) for row in errors])  # (2, G)
    sums[np.abs(sums) < 1e-9] = 0  # rounding: one cluster must not count as many questions that agree
    products = sums @ sums.T  # (2, 2)
    half = (n / sums.shape[1]) ** 2 / 2
    correlation = products[0, 1] / math.sqrt((products[0, 0] + half) * (products[1, 1] + half))

    def limits(z: float) -> list[tuple[float, float]]:
        """Of the model's errors, and of the baseline's."""
        found = []
        for share, square in ((model, products[0, 0]), (baseline, products[1, 1])):
            effective = share * (1 - share) * n**2 / square if square else sums.shape[1]
            found.append(wilson(share, min(effective, n), z))
        return found

    (_, up), (baseline_low, _) = limits(Z95)
    (low, _), (_, baseline_up) = limits(z_high)
    centre = model * baseline - correlation * (up - model) * (baseline - baseline_low)
    square = baseline_low * (2 * baseline - baseline_low)
    highest = (centre + math.sqrt(max(0.0, centre**2 - up * (2 * model - up) * square))) / square
    centre = model * baseline - correlation * (model - low) * (baseline_up - baseline)
    square = low * (2 * model - low)
    root = math.sqrt(max(0.0, centre**2 - square * baseline_up * (2 * baseline - baseline_up)))
    lowest = square / (centre + root) if square else 0.0
    return float(1 - highest), float(1 - lowest)


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
    return min(1.0, POWER_FACTOR * math.sqrt(max(only_first + only_second, MIN_CHANGED) * effect) / n)


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

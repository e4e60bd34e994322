"""95% intervals of means, accuracy and skill, in which near-duplicate questions count once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
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
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval by t."""
        half = self.error * float(student.ppf((1 + level) / 2, self.freedom))
        return self.value - half, self.value + half

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true value is at most `bound`."""
        return float(student.sf((self.value - bound) / self.error, self.freedom))

    def p_below(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true value is at least `bound`."""
        return float(student.cdf((self.value - bound) / self.error, self.freedom))

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
    freedom = min(count - 1.0, 2 * count / (kurtosis - 1)) if kurtosis > 1 else count - 1.0
    return Estimate(float(each.mean()), math.sqrt(count / (count - 1) * squares) / each.size, freedom)


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

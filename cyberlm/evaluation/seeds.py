"""Means and differences of methods over seeds and questions, both of them random: intervals and p-values.

A method is trained with S seeds, and every run answers the same Q questions, which stand for all questions of their
kind; near-duplicates are one. Outcome y of seed s and question i is modelled as μ + a_s + b_i + e_si.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from cyberlm.evaluation.intervals import wilson
from cyberlm.evaluation.outcomes import Clusters, FloatArray, cluster_sums
from cyberlm.evaluation.paired_tests import ROUNDING, mcnemar

RESAMPLES_AT_ONCE = 500
"""Of the bootstrap: a block of cluster counts takes 500 x clusters x 8 bytes."""


@dataclass(frozen=True)
class Estimate:
    """Weighted sum of the means of methods, over seeds and questions.

    Attributes:
        error: Standard error; 0 where nothing varies.
        freedom: Degrees of freedom of the error (Satterthwaite).
    """

    value: float
    error: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval by t."""
        half = self.error * self.quantile(level)
        return self.value - half, self.value + half

    def quantile(self, level: float = 0.95) -> float:
        """Two-sided quantile of t."""
        return float(student.ppf((1 + level) / 2, self.freedom))

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true value is at most `bound`."""
        if not self.error:
            return 0.0 if self.value > bound else 1.0
        return float(student.sf((self.value - bound) / self.error, self.freedom))

    def p_not(self, bound: float) -> float:
        """Two-sided p-value of the hypothesis that the true value is `bound`."""
        above = self.p_above(bound)
        return min(1.0, 2 * min(above, 1 - above)) if self.error else float(self.value == bound)


@dataclass(frozen=True)
class MethodMean:
    """Mean outcome of a method: accuracy, or a score.

    Attributes:
        seeds: Runs; where there is one, the interval is of questions alone.
        ci_lo, ci_hi: 95%, Wilson's on the effective number of questions, with the quantile of t.
        by_seed: Mean of each run.
        seed_sd: Standard deviation of the mean over seeds, without what the choice of questions adds; None for one run.
    """

    method: str
    seeds: int
    questions: int
    mean: float
    ci_lo: float
    ci_hi: float
    by_seed: tuple[float, ...]
    seed_sd: float | None


@dataclass(frozen=True)
class MethodDifference:
    """Difference of the means of two methods, the second minus the first.

    Attributes:
        ci_lo, ci_hi: 95%, by t.
        p_value: Two-sided, of no difference.
        p_holm: After Holm's correction over the family.
        error, freedom: As `Estimate`.
        boot_lo, boot_hi: 95%, crossed bootstrap: a check, too narrow for few seeds.
        mcnemar: Mid-p of McNemar's test of each pair of runs (`mcnemar_by_seed`); empty where outcomes are not 0 or 1.
    """

    first: str
    second: str
    difference: float
    ci_lo: float
    ci_hi: float
    p_value: float
    p_holm: float
    error: float
    freedom: float
    boot_lo: float
    boot_hi: float
    mcnemar: tuple[float, ...]


def as_outcomes(values: ArrayLike) -> FloatArray:
    """Outcomes as (S, Q) float; (Q,) is one run.

    Raises:
        ValueError: If they are not in [0, 1], or there are fewer than two questions.
    """
    found = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if found.ndim != 2 or not found.shape[0] or found.shape[1] < 2:
        raise ValueError(f"outcomes have shape {found.shape}; expected (seeds, questions), of at least 2 questions")
    if not np.all((found >= 0) & (found <= 1)):
        raise ValueError("outcomes must lie in [0, 1]: 0 and 1 for wrong and right, or a score such as ROUGE")
    return found


def estimate(methods: Sequence[FloatArray], weights: Sequence[float], clusters: Clusters = None) -> Estimate:
    """Weighted sum of methods' means, Σ w ȳ, with the error of a two-way layout of seeds and questions.

    The variance is V = V_q + max(0, Σ w² (V_s - V_e)): V_q the cluster-robust variance of the weighted sum's mean over
    questions, V_s = σ_a²/S + σ_e²/(SQ) the variance of the S runs' means over S, V_e = σ_e²/(SQ) what the interaction
    of seeds and questions alone makes of it, which V_q holds already. Degrees of freedom are Satterthwaite's (1946,
    Biometrics Bulletin 2:110), with those of V_q as in `paired_tests.mean_difference_test`.

    Args:
        methods: Outcomes (S, Q) of each; S may differ, and the Q questions are the same.
        weights: One for each: (1,) for a mean, (-1, 1) for a difference.
    """
    profile = sum(weight * rows.mean(axis=0) for weight, rows in zip(weights, methods, strict=True))  # (Q,)
    values = np.asarray(profile, dtype=np.float64)
    sums = cluster_sums(values - values.mean(), clusters)  # (G,)
    sums[np.abs(sums) <= ROUNDING * np.abs(values).sum()] = 0.0
    count, size = sums.size, values.size
    robust = count / max(1, count - 1) / size**2
    squares = float((sums**2).sum())
    of_questions = robust * squares
    kurtosis = count * float((sums**4).sum()) / squares**2 if squares else 1.0
    freedom = min(count - 1.0, 2 * count / (kurtosis - 1)) if kurtosis > 1 else count - 1.0
    spread = of_questions**2 / max(1.0, freedom)
    extra = 0.0
    for weight, rows in zip(weights, methods, strict=True):
        seeds = rows.shape[0]
        if seeds == 1:
            continue
        means = rows.mean(axis=1)
        of_seeds = weight**2 * float(means.var(ddof=1)) / seeds
        residuals = rows - rows.mean(axis=0) - (means - means.mean())[:, None]  # (S, Q)
        interaction = cluster_sums(residuals.T, clusters)  # (G, S)
        extra += of_seeds - weight**2 * robust * float((interaction**2).sum()) / (seeds * (seeds - 1))
        spread += of_seeds**2 / (seeds - 1)
    variance = of_questions + max(0.0, extra)
    return Estimate(
        float(values.mean()), math.sqrt(variance), max(1.0, min(count - 1.0, variance**2 / spread)) if spread else 1.0
    )


def seed_sd(rows: FloatArray, clusters: Clusters = None) -> float | None:
    """Standard deviation σ_a of a method's mean over its seeds, questions' noise taken out; None for one run."""
    seeds, size = rows.shape
    if seeds == 1:
        return None
    means = rows.mean(axis=1)
    residuals = rows - rows.mean(axis=0) - (means - means.mean())[:, None]
    interaction = cluster_sums(residuals.T, clusters)
    count = interaction.shape[0]
    noise = count / max(1, count - 1) / size**2 * float((interaction**2).sum()) / (seeds - 1)
    return math.sqrt(max(0.0, float(means.var(ddof=1)) - noise))


def method_mean(method: str, rows: FloatArray, clusters: Clusters = None) -> MethodMean:
    """Mean of a method's outcomes (S, Q), with its interval."""
    found = estimate([rows], [1.0], clusters)
    count = cluster_sums(np.ones(rows.shape[1]), clusters).size
    share = found.value
    effective = share * (1 - share) / found.error**2 if found.error and 0 < share < 1 else float(count)
    low, high = wilson(share, min(effective, rows.shape[1]), found.quantile() if found.error else 1.96)
    by_seed = tuple(rows.mean(axis=1).tolist())
    return MethodMean(method, rows.shape[0], rows.shape[1], share, low, high, by_seed, seed_sd(rows, clusters))


def mcnemar_by_seed(first: FloatArray, second: FloatArray, clusters: Clusters = None) -> tuple[float, ...]:
    """McNemar's mid-p of each pair of runs: seed by seed where both have as many, every run against a lone one.

    Returns:
        Nothing where outcomes are not 0 or 1, or the two have several seeds and not as many.
    """
    one_or_alike = min(len(first), len(second)) == 1 or len(first) == len(second)
    if not one_or_alike or any(np.any(rows * (1 - rows)) for rows in (first, second)):
        return ()
    pairs = np.broadcast_arrays(first, second)
    return tuple(mcnemar((b - a).astype(np.int64), clusters)[1] for a, b in zip(*pairs, strict=True))


def bootstrap_means(
    outcomes: Mapping[str, FloatArray], clusters: Clusters = None, resamples: int = 10_000, seed: int = 0
) -> dict[str, FloatArray]:
    """Crossed bootstrap of every method's mean (Owen 2007, Annals of Applied Statistics 1:386): (resamples,) each.

    A resample draws clusters of questions with replacement, the same for all methods, and seeds within each method.
    """
    rng = np.random.default_rng(seed)
    totals = {method: cluster_sums(rows.T, clusters) for method, rows in outcomes.items()}  # (G, S)
    sizes = cluster_sums(np.ones(next(iter(outcomes.values())).shape[1]), clusters)  # (G,)
    means: dict[str, list[FloatArray]] = {method: [] for method in outcomes}
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - start)
        counts = _drawn_counts(rng, rows, sizes.size)
        questions = counts @ sizes
        for method, sums in totals.items():
            seeds = sums.shape[1]
            chosen = _drawn_counts(rng, rows, seeds)
            means[method].append(((counts @ sums) * chosen).sum(axis=1) / (seeds * questions))
    return {method: np.concatenate(blocks) for method, blocks in means.items()}


def _drawn_counts(rng: np.random.Generator, rows: int, of: int) -> FloatArray:
    """How often each of `of` is drawn in `of` draws with replacement, (rows, of)."""
    drawn = rng.integers(0, of, (rows, of)) + of * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * of).reshape(rows, of).astype(np.float64)

"""95% intervals of a share, and of skill: how much smaller one share of errors is than another."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

Z95 = float(norm.ppf(0.975))
"""Two-sided 95% quantile of the normal distribution, 1.95996."""


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """95% score interval (Wilson 1927, JASA 22:209, doi 10.1080/01621459.1927.10502953), no continuity correction.

    With z = 1.96: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). `n` need not be whole, so that an effective
    number of questions can be put in (as surveys do: Korn and Graubard 1998, Survey Methodology 24:193).

    Args:
        share: p, in [0, 1].
        n: Above 0.
        z: Quantile of the normal distribution on each side.

    Returns:
        Lower and upper limit, in [0, 1].
    """
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The interval holds its share; rounding alone can put it outside, where the share is 0 or 1.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def share_text(share: float | None, n: int) -> str:
    """A share of n questions with its interval, as text: `41.2% (37-46%)`; `-` where there is none."""
    return "-" if share is None or not n else with_limits(share, *wilson(share, n))


def with_limits(share: float, low: float, high: float) -> str:
    return f"{share:.1%} ({100 * low:.0f}-{high:.0%})"


def skill_interval(
    correct: ArrayLike, credits: ArrayLike, clusters: ArrayLike, z_low: float = Z95, z_high: float = Z95
) -> tuple[float, float]:
    """Interval of skill 1 - (1 - a)/(1 - f), of accuracies a and f that are both estimated on the same questions.

    The ratio of the two shares of errors, by MOVER (Donner and Zou 2012, Stat. Methods Med. Res. 21:347): each share's
    Wilson limits on its effective number of questions, and their correlation. Half a question in each of the four
    cells (both wrong, ...; Agresti and Min 2005) keeps the correlation below 1 where the two answer alike.

    Args:
        correct: (N,) bool, whether the model is right.
        credits: (N,) float in [0, 1], the floor's share of a right answer; not all 1.
        clusters: (N,) int, number of each question's near-duplicate cluster.
        z_low, z_high: Quantiles of the normal distribution for the lower and the upper limit.
    """
    errors = 1 - np.array([correct, credits], dtype=np.float64)  # (2, N)
    (model, floor), n = errors.mean(axis=1).tolist(), errors.shape[1]
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.array([np.bincount(members, weights=row - row.mean()) for row in errors])  # (2, clusters)
    sums[np.abs(sums) < 1e-9] = 0  # rounding: one cluster must not count as many questions that agree
    products = sums @ sums.T  # (2, 2)
    half = (n / sums.shape[1]) ** 2 / 2
    correlation = products[0, 1] / math.sqrt((products[0, 0] + half) * (products[1, 1] + half))

    def limits(share: float, square: float, z: float) -> tuple[float, float]:
        effective = share * (1 - share) * n**2 / square if square else sums.shape[1]
        return wilson(share, min(effective, n), z)

    (_, up), (floor_low, _) = (limits(*each, z_low) for each in ((model, products[0, 0]), (floor, products[1, 1])))
    (low, _), (_, floor_up) = (limits(*each, z_high) for each in ((model, products[0, 0]), (floor, products[1, 1])))
    centre = model * floor - correlation * (up - model) * (floor - floor_low)
    square = floor_low * (2 * floor - floor_low)
    highest = (centre + math.sqrt(max(0.0, centre**2 - up * (2 * model - up) * square))) / square
    centre = model * floor - correlation * (model - low) * (floor_up - floor)
    square = low * (2 * model - low)
    root = math.sqrt(max(0.0, centre**2 - square * floor_up * (2 * floor - floor_up)))
    lowest = square / (centre + root) if square else 0.0
    return 1 - highest, 1 - lowest

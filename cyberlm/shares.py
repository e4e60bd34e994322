"""The 95% interval of a share."""

import math

from scipy.stats import norm

Z95 = float(norm.ppf(0.975))
"""Two-sided 95% quantile of the normal distribution, 1.95996."""


def wilson(share: float, n: float) -> tuple[float, float]:
    """95% score interval (Wilson 1927, JASA 22:209, doi 10.1080/01621459.1927.10502953), no continuity correction.

    With z = 1.96: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). `n` need not be whole, so that an effective
    number of questions can be put in (as surveys do: Korn and Graubard 1998, Survey Methodology 24:193).

    Args:
        share: p, in [0, 1].
        n: Above 0.

    Returns:
        Lower and upper limit, in [0, 1].
    """
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    # The interval holds its share; rounding alone can put it outside, where the share is 0 or 1.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))

"""Power of studies against statsmodels; test_statistics_coverage.py simulates it."""

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.power import TTestPower

from cyberlm.evaluation.power import (
    LEVELS_AND_POWERS,
    Variability,
    measured_variability,
    needed_questions,
    planned_error,
    powered_margin,
    supported_margin,
)
from cyberlm.evaluation.statistics import Estimate

SMALL = Variability(0.08, 0.05, 0.004)


def test_powered_margins_have_the_power_of_statsmodels_and_of_the_normal_distribution() -> None:
    distance = powered_margin(Estimate(0.0, 1.0, 19.0), "non-inferior")
    found = TTestPower().power(distance / 20**0.5, 20, alpha=0.025, alternative="larger")
    assert found == pytest.approx(0.9)
    distances = norm.ppf(0.975) + norm.ppf(0.9), norm.ppf(0.95) + norm.ppf(0.9)
    large = [powered_margin(Estimate(0.0, 0.01, 1e6), claim) for claim in LEVELS_AND_POWERS]
    assert large == pytest.approx([0.01 * distance for distance in distances], rel=1e-4)


def test_margins_of_one_seed_with_eight_in_a_hundred_discordant() -> None:
    for questions, expected in ((500, (4.1, 3.7)), (2036, (2.0, 1.8))):
        found = [100 * supported_margin(questions, 1, Variability(0.08), claim) for claim in LEVELS_AND_POWERS]
        assert found == pytest.approx(expected, abs=0.06)


def test_error_and_needed_questions_of_five_seeds() -> None:
    # (0.08 - 0.05 + 0.05/5)/2000 + 2 (0.004²)/5 = 2e-5 + 6.4e-6
    error, df = planned_error(2000, 5, SMALL)
    assert error**2 == pytest.approx(2.64e-5)
    of_seeds = 0.004**2 / 5 + 0.025 / 2000 / 5
    spread = 2 * of_seeds**2 / 4
    assert df == pytest.approx((2.64e-5**2 + 2 * spread) / (2e-5**2 / 320 + spread * 6 / 4))
    # the fewest questions
    questions = needed_questions(0.02, 5, SMALL)
    assert supported_margin(questions, 5, SMALL) <= 0.02 < supported_margin(questions - 1, 5, SMALL)
    assert needed_questions(0.005, 3, SMALL) is None  # seeds vary too much


def test_variability_is_found_again() -> None:
    rng = np.random.default_rng(0)
    ability = rng.normal(size=4000)
    first, second = (
        (ability + rng.normal(0, 0.2, (2, 1)) + rng.normal(0, 0.3, (2, 4000)) > -0.5).astype(float) for _ in range(2)
    )
    found = measured_variability(first, second)
    assert found.discordance == pytest.approx(np.mean([np.mean(a != b) for a in first for b in second]))
    assert found.seed_discordance == pytest.approx(np.mean([np.mean(x[0] != x[1]) for x in (first, second)]))
    assert 0.005 < found.seed_sd < 0.1
    doubled = measured_variability(*(np.repeat(x, 2, axis=1) for x in (first, second)), np.arange(8000) // 2)
    assert doubled.effect == pytest.approx(2)
    assert measured_variability(first[:1], second[:1]).seed_sd == 0

"""Intervals against scipy and statsmodels; test_statistics_coverage.py simulates them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statistics_support import calmly
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from cyberlm.evaluation.metrics.metric import share_metric
from cyberlm.evaluation.statistics import effective_questions, skill_interval, wilson
from cyberlm.runtime.errors import RunError


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (56, 150), (8581, 10180), (23.31, 33.3)])
def test_wilson_equals_scipy_and_statsmodels(correct: float, n: float) -> None:
    found = wilson(correct / n, n)
    assert found == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)
    if n == int(n):
        expected = binomtest(int(correct), int(n)).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_effective_questions_equal_the_clustered_variance_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 80, 300)
    correct = rng.random(300) < 0.3 + 0.4 * (clusters % 2)
    fit = OLS(correct.astype(float), np.ones((300, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    variance = correct.mean() * (1 - correct.mean()) / effective_questions(correct, clusters)
    assert variance == pytest.approx(float(fit.bse[0] ** 2), rel=1e-9)


@pytest.mark.parametrize(
    ("correct", "clusters", "effective"),
    [
        (np.arange(50) % 3 == 0, np.arange(50)[::-1], 50),  # no duplicates
        (np.repeat(np.arange(40) % 4 == 0, 2), np.repeat(np.arange(40), 2), 40),  # every question twice
        ([True] * 6, [0, 0, 0, 1, 1, 2], 3),  # all right, or all wrong: clusters
        ([False] * 6, [0, 0, 0, 1, 1, 2], 3),
        ([True, False, True], [5, 5, 5], 1),  # one cluster
        ([True, False] * 10, np.repeat(np.arange(10), 2), 20),  # answered unlike one another: v = 0, yet no more than n
    ],
)
def test_effective_questions_where_they_are_known(correct: object, clusters: object, effective: float) -> None:
    assert effective_questions(correct, clusters) == pytest.approx(effective)
    found = share_metric("accuracy", correct, clusters)
    assert found.interval == pytest.approx(wilson(found.value, effective))


def test_no_questions_are_an_error() -> None:
    with pytest.raises(RunError, match="no questions"):
        share_metric("accuracy", [])


@calmly
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_interval_holds_its_share_and_ignores_order(rows: list[tuple[bool, int]]) -> None:
    correct, clusters = zip(*rows, strict=True)
    for found in (share_metric("accuracy", correct), share_metric("accuracy", correct, clusters)):
        low, high = found.interval
        assert 0 <= low <= found.value <= high <= 1
    assert 1 <= effective_questions(correct, clusters) <= len(correct)
    assert share_metric("accuracy", correct[::-1], clusters[::-1]).interval == pytest.approx(found.interval)


def test_interval_of_skill_at_its_ends() -> None:
    """A model that is always right, or that is the baseline itself, has no interval of one point."""
    half = [1.0, 0.0] * 50
    low, high = skill_interval([True] * 100, half, None)
    assert 0.9 < low < 0.95 and high == 1
    low, high = skill_interval([True, False] * 50, half, None)
    assert -0.06 < low < 0 < high < 0.06
    alike = [k % 8 < 6 for k in range(200)]
    twice = skill_interval(alike, [1.0, 1.0, 0.0, 0.0] * 50, np.arange(200) // 2)
    assert twice == pytest.approx(skill_interval(alike[::2], half, None))


def test_interval_of_skill_of_one_cluster_is_that_of_one_question() -> None:
    """Deviations of one cluster sum to 0: rounding must not make them many questions that agree."""
    credits, correct = (1 / 3, 0.0, 1.0, 0.5, 1 / 3, 0.0, 0.0, 1.0, 0.5, 1 / 3), [k % 3 > 0 for k in range(10)]
    low, high = skill_interval(correct, credits, np.zeros(10))
    apart = skill_interval(correct, credits, None)
    assert low < 2 * apart[0] < apart[1] < high

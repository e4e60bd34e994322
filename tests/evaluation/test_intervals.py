"""Intervals against scipy and statsmodels, by hand, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statistics_support import calmly
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from cyberlm.evaluation.intervals import accuracy_interval, clustered_variance, effective_questions
from cyberlm.evaluation.shares import wilson
from cyberlm.runtime.errors import RunError

CLUSTERED = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60)


def test_wilson_by_hand() -> None:
    # z²/n = 0.384146; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
    # half width 1.959964 √(0.016 + 0.384146/40) / 1.384146 = 0.226570.
    interval = accuracy_interval([True] * 8 + [False] * 2)
    assert (interval.acc, interval.n, interval.n_eff) == (0.8, 10, 10.0)
    assert interval.ci_lo == pytest.approx(0.490162, abs=1e-6)
    assert interval.ci_hi == pytest.approx(0.943318, abs=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (56, 150), (8581, 10180)])
def test_wilson_equals_scipy_and_statsmodels(correct: int, n: int) -> None:
    found = wilson(correct / n, n)
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


def test_wilson_of_a_number_that_is_not_whole() -> None:
    assert wilson(0.7, 33.3) == pytest.approx(proportion_confint(0.7 * 33.3, 33.3, method="wilson"), abs=1e-12)


def test_clusters_by_hand() -> None:
    # p = 3/5. Clusters {1, 1}, {0, 0}, {1}: sums of x - p are 0.8, -1.2, 0.4, so v = (0.64 + 1.44 + 0.16) / 25 =
    # 0.0896 and n_eff = 0.24 / 0.0896 = 2.678571.
    correct, clusters = [True, True, False, False, True], [4, 4, 9, 9, 1]
    assert clustered_variance(correct, clusters) == pytest.approx(0.0896, abs=1e-15)
    interval = accuracy_interval(correct, clusters)
    assert (interval.acc, interval.n) == (0.6, 5)
    assert interval.n_eff == pytest.approx(2.678571, abs=1e-6)
    assert (interval.ci_lo, interval.ci_hi) == pytest.approx(wilson(0.6, 0.24 / 0.0896), abs=1e-12)


def test_clustered_variance_equals_statsmodels() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 80, 300)
    correct = rng.random(300) < 0.3 + 0.4 * (clusters % 2)
    fit = OLS(correct.astype(float), np.ones((300, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    assert clustered_variance(correct, clusters) == pytest.approx(float(fit.bse[0] ** 2), rel=1e-9)


def test_single_questions_give_the_plain_interval() -> None:
    correct = np.arange(50) % 3 == 0
    plain, clustered = accuracy_interval(correct), accuracy_interval(correct, np.arange(50)[::-1])
    assert (clustered.ci_lo, clustered.ci_hi, clustered.n_eff) == pytest.approx((plain.ci_lo, plain.ci_hi, 50.0))


def test_doubled_questions_count_once() -> None:
    correct = np.arange(40) % 4 == 0
    once = accuracy_interval(correct)
    twice = accuracy_interval(np.repeat(correct, 2), np.repeat(np.arange(40), 2))
    assert (twice.n, twice.n_eff) == (80, pytest.approx(40))
    assert (twice.ci_lo, twice.ci_hi) == pytest.approx((once.ci_lo, once.ci_hi))


@pytest.mark.parametrize("share", [True, False])
def test_all_right_or_all_wrong_counts_clusters(share: bool) -> None:
    interval = accuracy_interval([share] * 6, [0, 0, 0, 1, 1, 2])
    assert interval.n_eff == 3
    expected = binomtest(3 * share, 3).proportion_ci(0.95, method="wilson")
    assert (interval.ci_lo, interval.ci_hi) == pytest.approx((expected.low, expected.high))


def test_one_cluster_is_one_question() -> None:
    assert effective_questions([True, False, True], [5, 5, 5]) == 1


def test_answers_unlike_one_another_do_not_count_double() -> None:
    # Each pair has one right and one wrong: v = 0, which would make n_eff infinite.
    assert effective_questions([True, False] * 10, np.repeat(np.arange(10), 2)) == 20


def test_no_questions_are_an_error() -> None:
    with pytest.raises(RunError, match="no questions"):
        accuracy_interval([])


@calmly
@given(CLUSTERED)
def test_interval_holds_its_share_and_ignores_order(rows: list[tuple[bool, int]]) -> None:
    correct, clusters = zip(*rows, strict=True)
    for interval in (accuracy_interval(correct), accuracy_interval(correct, clusters)):
        assert 0 <= interval.ci_lo <= interval.acc <= interval.ci_hi <= 1
        assert 1 <= interval.n_eff <= interval.n
    backwards = accuracy_interval(correct[::-1], clusters[::-1])
    assert backwards.n_eff == pytest.approx(interval.n_eff)
    assert (backwards.acc, backwards.ci_lo, backwards.ci_hi) == pytest.approx(
        (interval.acc, interval.ci_lo, interval.ci_hi)
    )


def test_clustered_interval_covers_what_the_plain_one_misses() -> None:
    # 100 clusters of 5 near-duplicates that are mostly answered alike; the true accuracy is 0.8.
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(100), 5)
    plain = clustered = 0
    for _ in range(400):
        skill = rng.beta(0.8, 0.2, 100)  # mean 0.8
        correct = rng.random(500) < skill[clusters]
        for interval in (accuracy_interval(correct), accuracy_interval(correct, clusters)):
            covered = interval.ci_lo <= 0.8 <= interval.ci_hi
            if interval.n_eff == 500:
                plain += covered
            else:
                clustered += covered
    assert plain / 400 < 0.8
    assert clustered / 400 > 0.92

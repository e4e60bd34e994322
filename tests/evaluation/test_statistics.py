"""Intervals and paired tests against scipy and statsmodels; test_statistics_coverage.py simulates them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, norm, permutation_test, ttest_1samp
from statistics_support import calmly
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cyberlm.evaluation.metrics.metric import share_metric
from cyberlm.evaluation.statistics import (
    POWER_FACTOR,
    design_effect,
    detectable_difference,
    difference_interval,
    effective_questions,
    holm,
    mcnemar,
    mean_estimate,
    score_interval,
    skill_interval,
    wilson,
)
from cyberlm.runtime.errors import RunError

COUNTS = st.one_of(st.integers(0, 6), st.integers(0, 400))


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (56, 150), (8581, 10180), (23.31, 33.3)])
def test_wilson_equals_statsmodels(correct: float, n: float) -> None:
    found = wilson(correct / n, n)
    assert found == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


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
    with pytest.raises(RunError, match="no questions"):
        share_metric("accuracy", [])


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
    # deviations of one cluster sum to 0: rounding must not make them many questions that agree
    credits, correct = (1 / 3, 0.0, 1.0, 0.5, 1 / 3, 0.0, 0.0, 1.0, 0.5, 1 / 3), [k % 3 > 0 for k in range(10)]
    low, high = skill_interval(correct, credits, np.zeros(10))
    apart = skill_interval(correct, credits, None)
    assert low < 2 * apart[0] < apart[1] < high


def changes_of(b: int, c: int, n: int = 0) -> np.ndarray:
    return np.repeat([-1, 1, 0], [b, c, max(0, n - b - c)])


@calmly
@given(COUNTS, COUNTS)
def test_mcnemar_equals_statsmodels_and_scipy(b: int, c: int) -> None:
    exact, mid = mcnemar(changes_of(b, c, b + c + 4))
    assert mcnemar(changes_of(c, b)) == (exact, mid) and 0 < mid <= exact <= 1
    assert exact == pytest.approx(reference_mcnemar([[2, b], [c, 2]], exact=True).pvalue, rel=1e-9)
    if b + c:
        found = binom.pmf(b, b + c, 0.5)
        assert mid == pytest.approx(exact - (found / 2 if b == c else found), rel=1e-9)
    # Fagerland et al. 2013, airway hyper-responsiveness before and after transplantation: b = 1, c = 7 of 21
    assert mcnemar(changes_of(1, 7, 21)) == pytest.approx((0.0703, 0.0391), abs=5e-5)


def test_mcnemar_of_clusters_equals_scipy_flipping_all_signs() -> None:
    rng = np.random.default_rng(0)
    clusters, changes = rng.integers(0, 9, 30), rng.choice([-1, 0, 1, 1], 30)
    totals = np.bincount(clusters, weights=changes)
    flipped = permutation_test((totals,), np.sum, permutation_type="samples", n_resamples=np.inf)
    exact, mid = mcnemar(changes, clusters)
    assert exact == pytest.approx(flipped.pvalue, abs=1e-12)
    ties = np.mean(np.abs(flipped.null_distribution) == abs(totals.sum()))
    assert mid == pytest.approx(exact - ties / 2, abs=1e-12)


def test_doubled_questions_count_once() -> None:
    once, pairs = changes_of(2, 11, 60), np.repeat(np.arange(60), 2)
    twice = np.repeat(once, 2)
    assert mcnemar(twice, pairs) == pytest.approx(mcnemar(once), rel=1e-12)
    assert mcnemar(twice)[0] < mcnemar(once)[0] / 10  # taken as independent
    assert design_effect(twice, pairs) == pytest.approx(2)
    assert difference_interval(twice, pairs) == pytest.approx(difference_interval(once))
    nothing = np.zeros(120)
    assert difference_interval(nothing, pairs) == pytest.approx(difference_interval(nothing[:60]))
    assert design_effect(changes_of(1, 3, 10), np.zeros(10)) == 10  # one cluster counts as one question
    assert design_effect([1], [0]) == 1


@calmly
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_equals_statsmodels(values: list[float]) -> None:
    adjusted = holm(values)
    assert adjusted == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)
    assert (adjusted >= values).all() and (adjusted <= 1).all()
    # Ascending 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04; the last is raised to the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_detectable_difference() -> None:
    assert pytest.approx(norm.ppf(0.975) + norm.ppf(0.8), abs=2e-3) == POWER_FACTOR
    assert detectable_difference(30, 20, 1000) == pytest.approx(2.8 * math.sqrt(50 / 1000**2))
    assert detectable_difference(0, 0, 1000) == pytest.approx(7.9196e-3, abs=1e-7)
    assert detectable_difference(0, 2, 500) == pytest.approx(7.9196 / 500, abs=1e-6)
    assert detectable_difference(30, 20, 1000, effect=4) == 2 * detectable_difference(30, 20, 1000)
    assert detectable_difference(1, 0, 3) == 1
    for b, c, n in ((0, 0, 9), (0, 9, 10), (5, 3, 8), (40, 60, 400)):  # no more than change sides, or would have to
        assert detectable_difference(b, c, n) <= min(1, max(b + c, 8) / n)


def inverted_score_test(b: int, c: int, n: int) -> tuple[float, float]:
    """Tango's limits without his formula: the likelihood is maximised and the score statistic inverted by search."""

    def statistic(delta: float) -> float:
        def loss(q: float) -> float:
            shares = (b, q), (c, q + delta), (n - b - c, 1 - 2 * q - delta)
            return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

        least, most = max(0.0, -delta), (1 - delta) / 2
        inside = minimize_scalar(loss, bounds=(least, most), method="bounded", options={"xatol": 1e-13}).x
        q = min((inside, least, most), key=loss)
        return (c - b - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))

    found, z = (c - b) / n, norm.ppf(0.975)
    low = brentq(lambda delta: statistic(delta) - z, -1 + 1e-9, found - 1e-7)
    return low, brentq(lambda delta: statistic(delta) + z, found + 1e-7, 1 - 1e-9)


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(0, 0, 150), (0, 3, 150), (0, 5, 500), (7, 23, 150), (1, 7, 10), (16, 12, 150), (3, 12, 80), (20, 45, 500)],
)
def test_interval_equals_the_score_test_inverted(b: int, c: int, n: int) -> None:
    assert score_interval(b, c, n) == pytest.approx(inverted_score_test(b, c, n), abs=1e-6)
    assert difference_interval(changes_of(b, c, n)) == score_interval(b, c, n)
    assert score_interval(c, b, n) == tuple(-limit for limit in score_interval(b, c, n)[::-1])
    # at its ends
    assert score_interval(0, 10, 10)[1] == 1 and 0.4 < score_interval(0, 10, 10)[0] < 0.5
    assert difference_interval([0]) == pytest.approx((-0.79345, 0.79345), abs=1e-5)
    assert difference_interval([1, 1, 0], [2, 2, 2]) == (-1.0, 1.0)


def test_mean_difference_equals_statsmodels_and_scipy_or_has_no_error() -> None:
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 80, 300)
    values = rng.normal(0.1, 1, 300) + rng.normal(0, 1, 80)[clusters]
    fit = OLS(values, np.ones((300, 1))).fit(cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": True})
    low, high = mean_estimate(values, clusters).interval()
    scale = math.sqrt(300 / 299)  # statsmodels also corrects for the number of questions
    half = fit.conf_int()[0, 1] - values.mean()
    assert (high - low) / 2 == pytest.approx(half / scale, rel=0.03)  # other degrees of freedom
    values = np.where(np.arange(300) % 2, 1.0, -0.5)  # of kurtosis 1, so that all degrees of freedom are there
    found, plain = mean_estimate(values), ttest_1samp(values, 0)
    expected = (*plain.confidence_interval(0.95), plain.pvalue)
    assert (*found.interval(), found.p_not(0)) == pytest.approx(expected, rel=1e-9)
    # few differences have few degrees of freedom, or none
    # 3 of 150 differ by 1: mean 0.02, standard error √(150/149 · 2.94)/150 = 0.01147; κ = 48.02, so 300/47.02 = 6.38
    found = mean_estimate(changes_of(0, 3, 150))
    assert (*found.interval(), found.p_not(0)) == pytest.approx((-0.00767, 0.04767, 0.1289), abs=5e-5)
    # All clusters differ alike: the standard error is unknown, not the 1e-17 that sums of 0.1 are off by.
    alike = ([0.1, 0.2, 0.1, 0.2], [0, 0, 1, 1])
    for values, clusters in ((np.zeros(150), None), ([0.5, 0.1], [1, 1]), ([0.1] * 3, None), alike):
        assert mean_estimate(values, clusters) is None
    assert mean_estimate([1.0, 1.0 + 1e-9]) is not None

"""Means and differences over seeds and questions, against scipy, statsmodels and hand-worked layouts.

test_statistics_coverage.py simulates their intervals.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_rel
from statsmodels.stats.proportion import proportion_confint

from cyberlm.evaluation.seeds import bootstrap_means, estimate, mcnemar_by_seed, method_mean
from cyberlm.evaluation.statistics import mcnemar, mean_estimate

Array = NDArray[np.float64]
LAYOUT = np.array([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
"""Three seeds, four questions: seeds' means 1/2, 1/4, 3/4; questions' 1, 2/3, 1/3, 0."""


def drawn(seeds: int, questions: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    ability = rng.normal(size=questions) + rng.normal(0, 0.1, (seeds, 1))
    return (ability + rng.normal(0, 0.4, (seeds, questions)) > -0.5).astype(np.float64)


def test_estimate_of_a_layout_worked_by_hand() -> None:
    # V_q = (5/9)/3/4 = 5/108, V_s = 1/48, V_e = 5/432: V = 5/108 + 1/48 - 5/432 = 1/18. The fourth moments of the
    # questions' means, 2 (1/2)^4 + 2 (1/6)^4 = 41/324, give kurtosis 4 (41/324) / (5/9)^2 = 1.64: f_q = 3.
    found = estimate([LAYOUT], [1.0])
    assert (found.value, found.error**2) == pytest.approx((1 / 2, 1 / 18))
    assert found.df == pytest.approx((1 / 18) ** 2 / ((5 / 108) ** 2 / 3 + (1 / 48) ** 2 / 2))
    low, high = found.interval()
    assert (found.p_not(low), found.p_not(high)) == pytest.approx((0.05, 0.05))
    assert (found.p_above(low), found.p_below(high)) == pytest.approx((0.025, 0.025))
    row = drawn(1, 100)  # seeds that all answer alike add nothing
    assert estimate([np.repeat(row, 5, axis=0)], [1.0]) == estimate([row], [1.0])


def test_clusters_of_copies_count_once_and_nothing_that_changed_is_not_certainty() -> None:
    rows, others = drawn(3, 40), drawn(5, 40, seed=1)
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 2))
    once = estimate([rows, others], [-1.0, 1.0])
    found = estimate([rows[:, numbers], others[:, numbers]], [-1.0, 1.0], numbers)
    assert (found.value, found.error, found.df) == pytest.approx((once.value, once.error, once.df))
    # nothing that changed is not certainty
    rows = drawn(1, 300)
    found = estimate([rows, rows], [-1.0, 1.0])
    low, high = found.interval()
    assert (low, high) == pytest.approx((-4.303 / 300, 4.303 / 300), rel=1e-3)
    one_cluster = estimate([rows, 1 - rows], [-1.0, 1.0], np.zeros(300))
    assert one_cluster.p_not(0.0) > 0.5


@pytest.mark.parametrize("clusters", [None, np.arange(200) // 3])
def test_one_run_of_each_is_the_paired_test_of_questions(clusters: Array | None) -> None:
    first, second = np.random.default_rng(0).random((2, 200))
    found = estimate([first[None], second[None]], [-1, 1], clusters)
    assert found == mean_estimate(second - first, clusters)
    if clusters is None:
        assert found.value / found.error == pytest.approx(ttest_rel(second, first).statistic)


def test_seeds_that_differ_far_more_than_questions_leave_their_degrees_of_freedom() -> None:
    """A t-test of the seeds' means, where each seed shifts every question alike."""
    shift = np.array([[0.1], [0.2], [0.6]])
    found = estimate([np.broadcast_to(shift, (3, 5000))], [1.0])
    assert found.df == pytest.approx(2, rel=1e-3)
    assert found.error == pytest.approx(float(shift.std(ddof=1)) / 3**0.5, rel=1e-3)


def test_accuracy_of_one_run_is_near_wilson() -> None:
    row = drawn(1, 800)
    found = method_mean(row)
    expected = proportion_confint(int(row.sum()), 800, method="wilson")
    assert (found.ci_lo, found.ci_hi) == pytest.approx(expected, abs=2e-4)
    assert found.by_seed == (found.value,)
    for right in (0.0, 1.0):  # none or all, on clusters
        found = method_mean(np.full((3, 60), right), np.arange(60) // 2)
        expected = proportion_confint(right * 30, 30, method="wilson")
        assert (found.ci_lo, found.ci_hi) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_of_each_seed_is_that_of_its_questions() -> None:
    base, tuned = drawn(1, 60, seed=3), drawn(3, 60)
    assert mcnemar_by_seed(base, tuned) == tuple(mcnemar(row - base[0])[1] for row in tuned)
    assert mcnemar_by_seed(tuned, tuned) == (1.0, 1.0, 1.0)
    assert mcnemar_by_seed(tuned, tuned[:2]) == ()  # runs that make no pairs
    assert mcnemar_by_seed(tuned / 2, tuned) == ()  # scores


def test_bootstrap_is_the_crossed_one() -> None:
    """Its mean and variance: V_q and V_s of the resampled layout, with the interaction counted in both (Owen 2007)."""
    rows, other = drawn(5, 200), drawn(3, 200)
    means = bootstrap_means({"sft": rows, "lora": other}, np.arange(200) // 2, 20_000, seed=1)
    assert means["sft"].mean() == pytest.approx(rows.mean(), abs=1e-3)
    of_seeds = rows.mean(axis=1).var() / 5
    profile = rows.mean(axis=0).reshape(100, 2).mean(axis=1)
    residuals = rows.reshape(5, 100, 2).mean(axis=2) - rows.mean(axis=1)[:, None] - profile + profile.mean()
    expected = of_seeds + profile.var() / 100 + (residuals**2).mean() / 500
    assert means["sft"].var() == pytest.approx(expected, rel=0.05)
    assert np.corrcoef(means["sft"], means["lora"])[0, 1] > 0.5  # the same questions

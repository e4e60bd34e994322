"""Paired comparisons against statsmodels and scipy, and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest, norm, permutation_test, ttest_1samp
from statistics_support import answered, calmly, outcomes, predictions, question
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from cyberlm.evaluation.comparison import (
    AGAINST_BASE,
    AGAINST_OTHERS,
    AMONG_BASES,
    AMONG_TUNED,
    compare_means,
    compare_models,
)
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.statistics import (
    POWER_FACTOR,
    Estimate,
    design_effect,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar,
    mean_estimate,
    score_interval,
)
from cyberlm.runtime.errors import RunError

COUNTS = st.one_of(st.integers(0, 6), st.integers(0, 400))


def test_pair_by_hand() -> None:
    # b = 1, c = 7 of 10: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256; detectable 2.8 √8 / 10 = 0.791960.
    base = outcomes([True, *[False] * 7, True, False])
    tuned = outcomes([False, *[True] * 7, True, False])
    (pair,) = compare_models({"base": base, "tuned": tuned})
    assert (pair.first, pair.second, pair.n) == ("base", "tuned", 10)
    assert (pair.only_first_right, pair.only_second_right) == (1, 7)
    assert pair.p_value == pytest.approx(18 / 256, abs=1e-15)
    assert pair.p_mid == pair.p_holm == pytest.approx(18 / 256 - 8 / 256, abs=1e-15)  # less P(Bin(8, 1/2) = 1)
    assert (pair.first_right, pair.second_right) == (2, 8)
    assert pair.difference == pytest.approx(0.6)
    assert pair.detectable == pytest.approx(0.791960, abs=1e-6)
    assert pair.lost == ("q:0000",)
    assert pair.gained == tuple(f"q:{i:04}" for i in range(1, 8))
    assert pair.ci_lo < 0.6 < pair.ci_hi


def changes_of(b: int, c: int, n: int = 0) -> np.ndarray:
    return np.repeat([-1, 1, 0], [b, c, max(0, n - b - c)])


@calmly
@given(COUNTS, COUNTS)
def test_mcnemar_equals_statsmodels_and_scipy(b: int, c: int) -> None:
    exact, mid = mcnemar(changes_of(b, c, b + c + 4))
    assert mcnemar(changes_of(c, b)) == (exact, mid) and 0 < mid <= exact <= 1
    assert exact == pytest.approx(reference_mcnemar([[2, b], [c, 2]], exact=True).pvalue, rel=1e-9)
    if b + c:
        assert exact == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)
        found = binom.pmf(b, b + c, 0.5)
        assert mid == pytest.approx(exact - (found / 2 if b == c else found), rel=1e-9)
    # Fagerland et al. 2013, airway hyper-responsiveness before and after transplantation: b = 1, c = 7 of 21
    assert mcnemar(changes_of(1, 7, 21)) == pytest.approx((0.0703, 0.0391), abs=5e-5)


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_of_clusters_equals_scipy_flipping_all_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 9, 30)
    changes = rng.choice([-1, 0, 1, 1], 30)
    totals = np.bincount(clusters, weights=changes)
    flipped = permutation_test((totals,), np.sum, permutation_type="samples", n_resamples=np.inf)
    sums = np.abs(flipped.null_distribution)
    exact, mid = mcnemar(changes, clusters)
    assert exact == pytest.approx(flipped.pvalue, abs=1e-12)
    assert exact == pytest.approx(np.mean(sums >= abs(totals.sum())), abs=1e-12)
    assert mid == pytest.approx(exact - np.mean(sums == abs(totals.sum())) / 2, abs=1e-12)


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


def test_interval_at_its_ends() -> None:
    assert score_interval(0, 10, 10)[1] == 1 and 0.4 < score_interval(0, 10, 10)[0] < 0.5
    assert score_interval(10, 0, 10)[0] == -1
    assert difference_interval([0]) == pytest.approx((-0.79345, 0.79345), abs=1e-5)
    assert difference_interval([1, 1, 0], [2, 2, 2]) == (-1.0, 1.0)


@calmly
@given(st.lists(st.tuples(st.sampled_from([-1, 0, 0, 1]), st.integers(0, 6)), min_size=1, max_size=40))
def test_interval_holds_the_difference(rows: list[tuple[int, int]]) -> None:
    changes, clusters = (np.array(side) for side in zip(*rows, strict=True))
    for low, high in (difference_interval(changes), difference_interval(changes, clusters)):
        assert -1 <= low <= changes.mean() <= high <= 1
        assert low < high


def by_t(values: object, clusters: object = None) -> tuple[float, float, float]:
    """Interval of a mean, and p-value of a mean of 0."""
    found = mean_estimate(values, clusters)
    assert isinstance(found, Estimate)
    return *found.interval(), found.p_not(0)


def test_mean_difference_equals_statsmodels_and_scipy() -> None:
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 80, 300)
    values = rng.normal(0.1, 1, 300) + rng.normal(0, 1, 80)[clusters]
    fit = OLS(values, np.ones((300, 1))).fit(cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": True})
    low, high, _ = by_t(values, clusters)
    scale = math.sqrt(300 / 299)  # statsmodels also corrects for the number of questions
    half = fit.conf_int()[0, 1] - values.mean()
    assert (high - low) / 2 == pytest.approx(half / scale, rel=0.03)  # other degrees of freedom
    values = np.where(np.arange(300) % 2, 1.0, -0.5)  # of kurtosis 1, so that all degrees of freedom are there
    plain = ttest_1samp(values, 0)
    expected = (*plain.confidence_interval(0.95), plain.pvalue)
    assert by_t(values) == pytest.approx(expected, rel=1e-9)


def test_few_differences_have_few_degrees_of_freedom_or_none() -> None:
    # 3 of 150 differ by 1: mean 0.02, standard error √(150/149 · 2.94)/150 = 0.01147; κ = 48.02, so 300/47.02 = 6.38
    assert by_t(changes_of(0, 3, 150)) == pytest.approx((-0.00767, 0.04767, 0.1289), abs=5e-5)
    # All clusters differ alike: the standard error is unknown, not the 1e-17 that sums of 0.1 are off by.
    for values, clusters in (
        *((np.zeros(150), None), ([0.5, 0.1], [1, 1]), ([0.1] * 3, None)),
        ([0.1, 0.2, 0.1, 0.2], [0, 0, 1, 1]),
    ):
        assert mean_estimate(values, clusters) is None
    assert mean_estimate([1.0, 1.0 + 1e-9]) is not None


@calmly
@given(st.permutations(range(12)), st.lists(st.tuples(st.booleans(), st.booleans()), min_size=12, max_size=12))
def test_order_of_questions_and_of_models(order: list[int], rows: list[tuple[bool, bool]]) -> None:
    first, second = (outcomes(side) for side in zip(*rows, strict=True))
    clusters = np.arange(12) // 3
    (there,) = compare_models({"a": first, "b": second}, clusters)
    assert compare_models({"a": first, "b": [second[i] for i in order]}, clusters) == (there,)
    assert compare_models({"a": [first[i] for i in order], "b": second}, clusters[order]) == (there,)
    (back,) = compare_models({"b": second, "a": first}, clusters)
    assert there.difference == -back.difference
    assert (there.lost, there.gained, there.p_value) == (back.gained, back.lost, back.p_value)
    assert there.detectable == back.detectable


def several(names: str) -> dict[str, list[Prediction]]:
    rng = np.random.default_rng(7)
    return {name: outcomes((rng.random(300) < 0.3 + 0.1 * k).tolist()) for k, name in enumerate(names)}


def test_families_are_what_is_asked() -> None:
    """Two bases, three models tuned from them, the first of which comes before its base, and one from elsewhere."""
    tuned_from = {"t": "b", "u": "b", "v": "c", "w": None}
    pairs = compare_models(several("tbucvw"), tuned_from=tuned_from)
    families: dict[str, dict[tuple[str, str], float]] = {}
    for pair in pairs:
        families.setdefault(pair.family, {})[pair.first, pair.second] = pair.p_holm
    assert {family: len(members) for family, members in families.items()} == {
        AGAINST_BASE: 3,
        AMONG_TUNED: 6,
        AGAINST_OTHERS: 5,
        AMONG_BASES: 1,
    }
    assert set(families[AGAINST_BASE]) == {("b", "t"), ("b", "u"), ("c", "v")}
    by_names = {(pair.first, pair.second): pair.p_mid for pair in pairs}
    for members in families.values():
        expected = multipletests([by_names[names] for names in members], method="holm")[1]
        assert list(members.values()) == pytest.approx(expected)


def generations(*parsed: int) -> list[Prediction]:
    """One question a model's answer, gold A; -1 names no option. By likelihood all are right."""
    return [answered(question(i, 0), 0, parsed=choice) for i, choice in enumerate(parsed)]


def test_generated_answers_are_compared_with_format_apart_from_knowledge() -> None:
    #                    gained: format, knowledge; lost: format, knowledge; neither; both wrong; unread twice
    first = generations(-1, -1, 1, 0, 0, 0, 0, -1, -1)
    second = generations(0, 0, 0, -1, 2, 3, 0, 1, -1)
    assert [pair.difference for pair in compare_models({"a": first, "b": second})] == [0]
    pairs = {pair.outcome: pair for pair in compare_models({"a": first, "b": second}, generated=True)}
    found = {name: (pair.n, pair.only_first_right, pair.only_second_right) for name, pair in pairs.items()}
    assert found == {
        "likelihood": (9, 0, 0),
        "generation": (9, 3, 3),
        "option_named": (9, 1, 3),
        "named_by_both": (4, 2, 1),
    }
    assert (pairs["option_named"].first_right, pairs["option_named"].second_right) == (5, 7)
    assert pairs["named_by_both"].lost == ("q:0004", "q:0005")
    assert "named_by_both" not in {
        pair.outcome for pair in compare_models({"a": generations(0, -1), "b": generations(-1, 0)}, generated=True)
    }


def test_means_are_compared_by_question_and_cluster() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((2, 40))
    models = {
        name: [replace(row, gold_nll=nll) for row, nll in zip(outcomes([True] * 40), side.tolist(), strict=True)]
        for name, side in zip("ab", values, strict=True)
    }
    clusters = np.arange(40) // 2
    figures = {"gold_nll": lambda rows: [row.gold_nll for row in rows], "zero": lambda rows: [0.0] * len(rows)}
    found, nothing = compare_means({"a": models["a"], "b": models["b"][::-1]}, figures, clusters)
    assert found.difference == pytest.approx(values[1].mean() - values[0].mean())
    assert (found.ci_lo, found.ci_hi, found.p_value) == pytest.approx(by_t(values[1] - values[0], clusters))
    assert found.p_holm == found.p_value and found.outcome == "gold_nll"
    assert (nothing.difference, nothing.ci_lo, nothing.p_value, nothing.p_holm) == (0, None, None, None)


@pytest.mark.parametrize(
    ("other", "told"),
    [("ABC", "1 questions, [0-9a-f]{16} for one"), ("ABAA", "4 questions"), ("", "4 questions")],
)
def test_other_questions_are_refused(other: str, told: str) -> None:
    with pytest.raises(RunError, match=rf"base and tuned cannot be compared(.|\n)*{told}(.|\n)*by one of them alone"):
        compare_models({"base": predictions("ABCD", "ABCD"), "tuned": predictions(other, other)})


def test_equal_questions_under_several_ids() -> None:
    # The same row stands in two files: its ids differ, its hash does not. In each model the first id is the right one.
    def twins(name: str) -> list[Prediction]:
        return [replace(answered(question(0, 0), choice), id=f"{name}:{choice}") for choice in (0, 1)]

    (pair,) = compare_models({"a": twins("small"), "b": twins("large")[::-1]})
    assert (pair.n, pair.only_first_right, pair.only_second_right) == (2, 0, 0)
    with pytest.raises(RunError, match="1 questions"):
        compare_models({"a": twins("small"), "b": twins("small")[:1]})

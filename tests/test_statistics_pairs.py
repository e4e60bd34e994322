"""Paired comparisons against statsmodels and scipy, and by hand."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, norm
from statistics_support import answered, calmly, outcomes, predictions, question
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from cyberlm.errors import RunError
from cyberlm.records import Prediction
from cyberlm.statistics import compare_models, holm, mcnemar
from cyberlm.statistics.pairs import POWER_FACTOR, bootstrap_difference, detectable_difference

COUNTS = st.integers(0, 400)


def test_pair_by_hand() -> None:
    # b = 1, c = 7 of 10: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256; detectable 2.8 √8 / 10 = 0.791960.
    base = outcomes([True, *[False] * 7, True, False])
    tuned = outcomes([False, *[True] * 7, True, False])
    (pair,) = compare_models({"base": base, "tuned": tuned})
    assert (pair.first, pair.second, pair.n) == ("base", "tuned", 10)
    assert (pair.only_first_right, pair.only_second_right) == (1, 7)
    assert pair.p_value == pair.p_holm == pytest.approx(18 / 256, abs=1e-15)
    assert pair.difference == pytest.approx(0.6)
    assert pair.detectable == pytest.approx(0.791960, abs=1e-6)
    assert pair.lost == ("q:0000",)
    assert pair.gained == tuple(f"q:{i:04}" for i in range(1, 8))
    assert pair.ci_lo < 0.6 < pair.ci_hi


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (2, 3), (0, 6), (30, 12), (7, 60), (400, 460)])
def test_mcnemar_equals_statsmodels_and_scipy(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(reference_mcnemar([[2, b], [c, 2]], exact=True).pvalue, abs=1e-12)
    if b + c:
        assert mcnemar(b, c) == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)


@calmly
@given(COUNTS, COUNTS)
def test_mcnemar_is_symmetric_and_a_probability(b: int, c: int) -> None:
    assert mcnemar(b, c) == mcnemar(c, b)
    assert 0 < mcnemar(b, c) <= 1


def test_holm_by_hand() -> None:
    # Ascending 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04; the last is raised to the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.2]) == pytest.approx([0.2])


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_holm_equals_statsmodels(count: int) -> None:
    values = np.random.default_rng(count).random(count) / 10
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)
    assert holm([0.01] * count) == pytest.approx(multipletests([0.01] * count, method="holm")[1], abs=1e-12)


@calmly
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_raises_p_values_and_keeps_their_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert (adjusted >= values).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(values, kind="stable")]) >= 0).all()


def test_detectable_difference() -> None:
    assert pytest.approx(norm.ppf(0.975) + norm.ppf(0.8), abs=2e-3) == POWER_FACTOR
    assert detectable_difference(30, 20, 1000) == pytest.approx(2.8 * math.sqrt(50 / 1000**2))
    assert detectable_difference(0, 0, 1000) is None


def test_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    n, changed = 2000, 0.1
    true = POWER_FACTOR * math.sqrt(changed / n)  # 0.0198
    lost, gained, _ = rng.multinomial(n, [(changed - true) / 2, (changed + true) / 2, 1 - changed], size=1000).T
    found = np.mean([mcnemar(b, c) < 0.05 for b, c in zip(lost.tolist(), gained.tolist(), strict=True)])
    assert found == pytest.approx(0.8, abs=0.05)


def changes_of(b: int, c: int, n: int) -> np.ndarray:
    return np.repeat([-1, 1, 0], [b, c, n - b - c])


@pytest.mark.parametrize(("b", "c", "n"), [(20, 45, 500), (3, 12, 80), (0, 5, 100)])
def test_bootstrap_equals_scipy(b: int, c: int, n: int) -> None:
    changes = changes_of(b, c, n)
    found = bootstrap_difference(changes, seed=3)
    expected = bootstrap(
        (changes,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(4), batch=1000
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=1.5 / n)  # two steps of a mean are 1/n apart


def test_bootstrap_of_clusters_equals_drawing_them_one_by_one() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 5, 60)
    clusters = np.repeat(np.arange(60), sizes)
    changes = np.repeat(rng.choice([-1, 0, 0, 1, 1], 60), sizes)  # a cluster changes as one
    drawn = rng.integers(0, 60, (10_000, 60))
    totals = np.bincount(clusters, weights=changes)
    means = totals[drawn].sum(1) / sizes[drawn].sum(1)
    found = bootstrap_difference(changes, clusters)
    assert found == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
    plain = bootstrap_difference(changes)
    assert found[1] - found[0] > 1.3 * (plain[1] - plain[0])


def test_bootstrap_at_its_ends() -> None:
    assert bootstrap_difference(np.zeros(50)) == (0.0, 0.0)
    assert bootstrap_difference([1, 1, 0], [2, 2, 2]) == (-1.0, 1.0)
    assert bootstrap_difference([1]) == (-1.0, 1.0)


def test_bootstrap_is_fast() -> None:
    changes = changes_of(150, 220, 2000)
    start = time.perf_counter()
    bootstrap_difference(changes)
    assert time.perf_counter() - start < 1


@calmly
@given(st.permutations(range(12)), st.lists(st.tuples(st.booleans(), st.booleans()), min_size=12, max_size=12))
def test_order_of_questions_changes_nothing(order: list[int], rows: list[tuple[bool, bool]]) -> None:
    first, second = (outcomes(side) for side in zip(*rows, strict=True))
    clusters = {p.hash: i // 3 for i, p in enumerate(first)}
    straight = compare_models({"a": first, "b": second}, clusters, resamples=200)
    assert compare_models({"a": first, "b": [second[i] for i in order]}, clusters, resamples=200) == straight
    assert compare_models({"a": [first[i] for i in order], "b": second}, clusters, resamples=200) == straight


@calmly
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_swapping_models_turns_the_comparison_around(rows: list[tuple[bool, bool]]) -> None:
    first, second = (outcomes(side) for side in zip(*rows, strict=True))
    (there,) = compare_models({"a": first, "b": second}, resamples=200)
    (back,) = compare_models({"b": second, "a": first}, resamples=200)
    assert there.difference == -back.difference
    assert (there.lost, there.gained, there.p_value) == (back.gained, back.lost, back.p_value)
    assert there.detectable == back.detectable


def test_all_pairs_are_one_family() -> None:
    rng = np.random.default_rng(7)
    models = {
        name: outcomes((rng.random(300) < share).tolist()) for name, share in (("a", 0.5), ("b", 0.6), ("c", 0.9))
    }
    pairs = compare_models(models)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    expected = multipletests([pair.p_value for pair in pairs], method="holm")[1]
    assert [pair.p_holm for pair in pairs] == pytest.approx(expected)


def test_generated_answers_are_compared_on_request() -> None:
    first = [answered(question(i, 0), 0, parsed=-1) for i in range(4)]
    second = [answered(question(i, 0), 0, parsed=0) for i in range(4)]
    models = {"a": first, "b": second}
    assert compare_models(models)[0].difference == 0
    assert compare_models(models, generated=True)[0].difference == 1


def test_other_questions_are_refused() -> None:
    rows = predictions("ABCD", "ABCD")
    with pytest.raises(RunError, match=r"1 of the 4 questions that base answered were not answered by tuned.*q:0003"):
        compare_models({"base": rows, "tuned": rows[:3]})
    with pytest.raises(RunError, match="2 of the 4 questions that tuned answered") as caught:
        compare_models({"base": rows, "tuned": rows[:2] + predictions("AAAA", "AAAA")[2:]})
    assert len(caught.value.problems) == 2
    with pytest.raises(RunError, match="two or more"):
        compare_models({"base": rows})
    with pytest.raises(RunError, match="no questions"):
        compare_models({"base": [], "tuned": []})


def test_equal_questions_under_several_ids() -> None:
    # The same row stands in two files: its ids differ, its hash does not. In each model the first id is the right one.
    def twins(name: str) -> list[Prediction]:
        return [replace(answered(question(0, 0), choice), id=f"{name}:{choice}") for choice in (0, 1)]

    (pair,) = compare_models({"a": twins("small"), "b": twins("large")[::-1]})
    assert (pair.n, pair.only_first_right, pair.only_second_right) == (2, 0, 0)
    with pytest.raises(RunError, match="1 of the 2 questions that a answered"):
        compare_models({"a": twins("small"), "b": twins("small")[:1]})

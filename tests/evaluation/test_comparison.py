"""Comparisons of models: pairs, families, what is compared."""

from dataclasses import replace

import numpy as np
import pytest
from statistics_support import answered, outcomes, predictions, question
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
from cyberlm.evaluation.statistics import mean_estimate
from cyberlm.runtime.errors import RunError


def test_pair_by_hand() -> None:
    # b = 1, c = 7 of 10: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256; detectable 2.8 √8 / 10 = 0.791960.
    base = outcomes([True, *[False] * 7, True, False])
    tuned = outcomes([False, *[True] * 7, True, False])
    (pair,) = compare_models({"base": base, "tuned": tuned[::-1]})  # in any order
    assert (pair.first, pair.second, pair.n) == ("base", "tuned", 10)
    assert (pair.only_first_right, pair.only_second_right, pair.first_right, pair.second_right) == (1, 7, 2, 8)
    assert pair.p_value == pytest.approx(18 / 256, abs=1e-15)
    assert pair.p_mid == pair.p_holm == pytest.approx(18 / 256 - 8 / 256, abs=1e-15)  # less P(Bin(8, 1/2) = 1)
    assert (pair.difference, pair.detectable) == pytest.approx((0.6, 0.791960), abs=1e-6)
    assert (pair.lost, pair.gained) == (("q:0000",), tuple(f"q:{i:04}" for i in range(1, 8)))
    assert pair.ci_lo < 0.6 < pair.ci_hi


def test_families_are_what_is_asked() -> None:
    """Two bases, three models tuned from them, the first of which comes before its base, and one from elsewhere."""
    rng = np.random.default_rng(7)
    models = {name: outcomes((rng.random(300) < 0.3 + 0.1 * k).tolist()) for k, name in enumerate("tbucvw")}
    pairs = compare_models(models, tuned_from={"t": "b", "u": "b", "v": "c", "w": None})
    sizes = {AGAINST_BASE: 3, AMONG_TUNED: 6, AGAINST_OTHERS: 5, AMONG_BASES: 1}
    families = {name: [pair for pair in pairs if pair.family == name] for name in sizes}
    assert {name: len(members) for name, members in families.items()} == sizes and len(pairs) == 15
    assert {(pair.first, pair.second) for pair in families[AGAINST_BASE]} == {("b", "t"), ("b", "u"), ("c", "v")}
    for members in families.values():
        expected = multipletests([pair.p_mid for pair in members], method="holm")[1]
        assert [pair.p_holm for pair in members] == pytest.approx(expected)


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
    by_generation = {"generation": (9, 3, 3), "option_named": (9, 1, 3), "named_by_both": (4, 2, 1)}
    assert found == {"likelihood": (9, 0, 0), **by_generation}
    assert (pairs["option_named"].first_right, pairs["option_named"].second_right) == (5, 7)
    assert pairs["named_by_both"].lost == ("q:0004", "q:0005")
    never_both = compare_models({"a": generations(0, -1), "b": generations(-1, 0)}, generated=True)
    assert "named_by_both" not in {pair.outcome for pair in never_both}


def test_means_are_compared_by_question_and_cluster() -> None:
    values = np.random.default_rng(3).random((2, 40))
    a, b = (
        [replace(row, gold_nll=nll) for row, nll in zip(outcomes([True] * 40), side.tolist(), strict=True)]
        for side in values
    )
    clusters = np.arange(40) // 2
    figures = {"gold_nll": lambda rows: [row.gold_nll for row in rows], "zero": lambda rows: [0.0] * len(rows)}
    found, nothing = compare_means({"a": a, "b": b[::-1]}, figures, clusters)
    assert found.difference == pytest.approx(values[1].mean() - values[0].mean())
    expected = mean_estimate(values[1] - values[0], clusters)
    assert (found.ci_lo, found.ci_hi, found.p_value) == pytest.approx((*expected.interval(), expected.p_not(0)))
    assert found.p_holm == found.p_value and found.outcome == "gold_nll"
    assert (nothing.difference, nothing.ci_lo, nothing.p_value, nothing.p_holm) == (0, None, None, None)


def test_other_questions_are_refused_and_equal_ones_have_any_ids() -> None:
    for other, told in (("ABC", "1 questions, [0-9a-f]{16} for one"), ("ABAA", "4 questions"), ("", "4 questions")):
        words = rf"base and tuned cannot be compared(.|\n)*{told}(.|\n)*by one of them alone"
        with pytest.raises(RunError, match=words):
            compare_models({"base": predictions("ABCD", "ABCD"), "tuned": predictions(other, other)})

    # The same row stands in two files: its ids differ, its hash does not. In each model the first id is the right one.
    def twins(name: str) -> list[Prediction]:
        return [replace(answered(question(0, 0), choice), id=f"{name}:{choice}") for choice in (0, 1)]

    (pair,) = compare_models({"a": twins("small"), "b": twins("large")[::-1]})
    assert (pair.n, pair.only_first_right, pair.only_second_right) == (2, 0, 0)
    with pytest.raises(RunError, match="1 questions"):
        compare_models({"a": twins("small"), "b": twins("small")[:1]})

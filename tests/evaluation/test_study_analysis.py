"""Equivalence, non-inferiority, and a study's comparisons; test_statistics_coverage.py simulates them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.weightstats import ttost_paired
from study_support import answers

from cyberlm.evaluation.seeds import estimate
from cyberlm.evaluation.statistics import Estimate, holm
from cyberlm.evaluation.study import AGAINST_BASE, AGAINST_REFERENCE
from cyberlm.evaluation.study_analysis import (
    ABOVE_BASE,
    DIFFERS,
    EQUIVALENT,
    NON_INFERIOR,
    NOT_SHOWN,
    SUPERIOR,
    StudyAnalysis,
    analyse,
    analyse_all,
    figures_of,
    tost,
    verdict,
)

CLUSTERS = np.arange(400)


def study(questions: int = 2000, seeds: int = 3, **gains: float) -> dict[str, NDArray[np.float64]]:
    """Outcomes of a base and of methods, whose gains are on the scale of ability: 0.3 is about 8 points."""
    rng = np.random.default_rng(0)
    ability = rng.normal(size=questions)
    drawn = {method: ability + gain + rng.normal(0, 0.2, (seeds, questions)) for method, gain in gains.items()}
    return {"base": (ability > 0).astype(float)[None]} | {
        name: (rows > 0).astype(float) for name, rows in drawn.items()
    }


def held(found: StudyAnalysis) -> set[tuple[str, str]]:
    return {(claim.method, claim.name) for claim in found.claims if claim.holds}


def words(found: StudyAnalysis) -> dict[str, str]:
    return {pair.second: pair.words for pair in found.comparisons if pair.family == AGAINST_REFERENCE}


def test_two_one_sided_tests_are_those_of_statsmodels() -> None:
    first, second = np.random.default_rng(0).random((2, 80))
    pair = estimate([first[None], second[None]], [-1, 1])
    exact = Estimate(pair.value, pair.error, 79.0)  # degrees of freedom of scores that are normal
    assert tost(exact, 0.1) == pytest.approx(ttost_paired(second, first, -0.1, 0.1)[0])


def test_methods_that_gain_alike() -> None:
    found = analyse(study(sft=0.5, lora=0.5, qlora=0.5), "base", "sft", resamples=100)
    expected = {(method, ABOVE_BASE) for method in ("sft", "lora", "qlora")}
    expected |= {(method, name) for method in ("lora", "qlora") for name in (NON_INFERIOR, EQUIVALENT)}
    assert held(found) == expected
    assert words(found) == dict.fromkeys(("lora", "qlora"), "equivalent within 2 points")
    assert verdict(0.01, True, 0.015) == "equivalent within 1.5 points"  # a difference, yet a small one
    assert found.supported_margin is not None and found.supported_margin < 0.02
    assert found.needed_questions is not None and found.needed_questions < 2000


def test_a_better_method_is_superior_and_not_equivalent() -> None:
    found = analyse(study(sft=0.3, lora=0.7), "base", "sft", resamples=100)
    assert {name for method, name in held(found) if method == "lora"} == {ABOVE_BASE, NON_INFERIOR, SUPERIOR}
    assert words(found) == {"lora": DIFFERS}


def test_a_worse_method_is_not_tested_further() -> None:
    found = analyse(study(sft=0.7, lora=0.3), "base", "sft", resamples=100)
    claims = {claim.name: claim for claim in found.claims if claim.method == "lora"}
    assert claims[NON_INFERIOR].p_value is not None and not claims[NON_INFERIOR].holds
    assert claims[EQUIVALENT].p_value is None is claims[SUPERIOR].p_holm
    assert claims[EQUIVALENT].reason == "Not tested: lora is not shown to be non-inferior."
    assert words(found) == {"lora": DIFFERS}


def test_nothing_is_comparable_with_a_reference_that_gains_nothing() -> None:
    found = analyse(study(sft=0.0, lora=0.0), "base", "sft", resamples=100)
    assert held(found) == set()
    assert {c.reason for c in found.claims if c.name != ABOVE_BASE} == {
        "Not tested: sft is not shown to be above the base."
    }
    assert words(found) == {"lora": NOT_SHOWN}


def test_a_small_loss_that_is_most_of_the_gain_is_not_non_inferior() -> None:
    """1.5 points below a gain of 2.0 is within the margin of 3, and keeps a quarter of it."""
    base = (np.arange(10_000) < 5000).astype(float)[None]
    sft, lora = base.copy(), base.copy()
    sft[:, 5000:5200] = 1
    lora[:, 5000:5050] = 1
    found = analyse({"base": base, "sft": sft, "lora": lora}, "base", "sft", margin=0.03, resamples=100)
    assert held(found) == {("sft", ABOVE_BASE), ("lora", ABOVE_BASE)}
    lora[:, 5000:5180] = 1
    found = analyse({"base": base, "sft": sft, "lora": lora}, "base", "sft", margin=0.03, resamples=100)
    assert ("lora", NON_INFERIOR) in held(found)


def test_p_values_are_corrected_over_the_methods_also_where_one_is_not_tested() -> None:
    found = analyse(study(sft=0.5, lora=0.48, qlora=-0.2), "base", "sft", resamples=100)
    against_base = [pair for pair in found.comparisons if pair.family == AGAINST_BASE]
    assert [pair.p_holm for pair in against_base] == holm([pair.p for pair in against_base]).tolist()
    lora = next(claim for claim in found.claims if (claim.method, claim.name) == ("lora", NON_INFERIOR))
    assert lora.p_value is not None and lora.p_holm == pytest.approx(2 * lora.p_value)


def test_every_method_is_compared_with_the_base_and_with_the_reference() -> None:
    outcomes = study(300, sft=0.5, lora=0.5) | {"qlora": study(300, seeds=2, qlora=0.3)["qlora"]}
    found = analyse(outcomes, "base", "sft", np.arange(300) // 2, outcome="rouge1", resamples=200)
    pairs = [(pair.first, pair.second, len(pair.mcnemar)) for pair in found.comparisons]
    against_base = [("base", "sft", 3), ("base", "lora", 3), ("base", "qlora", 2)]
    assert pairs == [*against_base, ("sft", "lora", 3), ("sft", "qlora", 0)]
    assert {pair.outcome for pair in found.comparisons} == {"rouge1"} and found.questions == 300
    assert {claim.name for claim in found.claims} == {ABOVE_BASE, NON_INFERIOR, EQUIVALENT, SUPERIOR}


def test_a_study_of_scores_and_of_one_method() -> None:
    scores = {name: rows * 0.8 + 0.1 for name, rows in study(sft=0.5).items()}
    found = analyse(scores, "base", "sft", resamples=100)
    assert (len(found.comparisons), found.supported_margin, found.needed_questions) == (1, None, None)
    assert held(found) == {("sft", ABOVE_BASE)}
    assert found.comparisons[0].mcnemar == ()


def test_figures_of_a_row() -> None:
    row = next(row for row in answers() if row.name == "lora")
    figures = figures_of(row.by_outcome, CLUSTERS)
    hits, named = row.by_outcome["generation"], row.by_outcome["option_named"]
    assert figures["generation"].by_seed == pytest.approx(hits.mean(axis=1))
    knowledge = (hits.sum(axis=1) / named.sum(axis=1)).tolist()
    assert figures["right_where_named"].by_seed == pytest.approx(knowledge)
    nll = figures["gold_nll"]
    assert nll.ci_lo is not None and nll.ci_hi is not None
    assert nll.value == pytest.approx(row.by_outcome["gold_nll"].mean())
    assert nll.ci_lo < nll.value < nll.ci_hi


def test_second_base_is_a_row_and_no_method() -> None:
    analyses = analyse_all(answers(), "sft", CLUSTERS, 0.02)
    pairs = analyses["generation"].comparisons
    assert {pair.second for pair in pairs if pair.family == AGAINST_BASE} == {"sft", "lora", "qlora"}
    assert "gold_nll" not in analyses and "rouge1" in analyses

"""A study's comparisons and sentences; test_statistics_coverage.py simulates equivalence and non-inferiority."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.weightstats import ttost_paired
from study_support import answers, made_up_study

from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.seeds import estimate
from cyberlm.evaluation.statistics import Estimate, holm
from cyberlm.evaluation.study import AGAINST_BASE, AGAINST_REFERENCE, Claim
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
from cyberlm.evaluation.study_words import baseline_sentence, findings, plan_lines, planned_power

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


def test_methods_that_gain_alike_or_nothing() -> None:
    found = analyse(study(sft=0.5, lora=0.5, qlora=0.5), "base", "sft", resamples=100)
    expected = {(method, ABOVE_BASE) for method in ("sft", "lora", "qlora")}
    expected |= {(method, name) for method in ("lora", "qlora") for name in (NON_INFERIOR, EQUIVALENT)}
    assert held(found) == expected
    assert words(found) == dict.fromkeys(("lora", "qlora"), "equivalent within 2 points")
    assert verdict(0.01, True, 0.015) == "equivalent within 1.5 points"  # a difference, yet a small one
    assert found.supported_margin is not None and found.supported_margin < 0.02
    assert found.needed_questions is not None and found.needed_questions < 2000
    # nothing is comparable with a reference that gains nothing
    found = analyse(study(sft=0.0, lora=0.0), "base", "sft", resamples=100)
    assert held(found) == set()
    reasons = {claim.reason for claim in found.claims if claim.name != ABOVE_BASE}
    assert reasons == {"Not tested: sft is not shown to be above the base."}
    assert words(found) == {"lora": NOT_SHOWN}


def test_a_better_method_is_superior_and_a_worse_one_is_not_tested_further() -> None:
    found = analyse(study(sft=0.3, lora=0.7), "base", "sft", resamples=100)
    assert {name for method, name in held(found) if method == "lora"} == {ABOVE_BASE, NON_INFERIOR, SUPERIOR}
    assert words(found) == {"lora": DIFFERS}
    found = analyse(study(sft=0.7, lora=0.3), "base", "sft", resamples=100)
    claims = {claim.name: claim for claim in found.claims if claim.method == "lora"}
    assert claims[NON_INFERIOR].p_value is not None and not claims[NON_INFERIOR].holds
    assert claims[EQUIVALENT].p_value is None is claims[SUPERIOR].p_holm
    assert claims[EQUIVALENT].reason == "Not tested: lora is not shown to be non-inferior."
    assert words(found) == {"lora": DIFFERS}


def test_a_small_loss_that_is_most_of_the_gain_is_not_non_inferior() -> None:
    """1.5 points below a gain of 2.0 is within the margin of 3, and keeps a quarter of it."""
    gained = {name: (np.arange(10_000) < last).astype(float)[None] for name, last in (("base", 5000), ("sft", 5200))}
    for last, non_inferior in ((5050, False), (5180, True)):
        lora = (np.arange(10_000) < last).astype(float)[None]
        found = analyse({**gained, "lora": lora}, "base", "sft", margin=0.03, resamples=100)
        assert held(found) >= {("sft", ABOVE_BASE), ("lora", ABOVE_BASE)}
        assert (("lora", NON_INFERIOR) in held(found)) is non_inferior


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
    # of scores, and of one method
    scores = {name: rows * 0.8 + 0.1 for name, rows in study(sft=0.5).items()}
    found = analyse(scores, "base", "sft", resamples=100)
    assert (len(found.comparisons), found.supported_margin, found.needed_questions) == (1, None, None)
    assert held(found) == {("sft", ABOVE_BASE)} and found.comparisons[0].mcnemar == ()
    # a second base is a row, and no method
    analyses = analyse_all(answers(), "sft", CLUSTERS, 0.02)
    pairs = analyses["generation"].comparisons
    assert {pair.second for pair in pairs if pair.family == AGAINST_BASE} == {"sft", "lora", "qlora"}
    assert "gold_nll" not in analyses and "rouge1" in analyses


def test_figures_of_a_row() -> None:
    row = next(row for row in answers() if row.name == "lora")
    figures = figures_of(row.by_outcome, CLUSTERS)
    hits, named = row.by_outcome["generation"], row.by_outcome["option_named"]
    assert figures["generation"].by_seed == pytest.approx(hits.mean(axis=1))
    knowledge = (hits.sum(axis=1) / named.sum(axis=1)).tolist()
    assert figures["right_where_named"].by_seed == pytest.approx(knowledge)
    nll = figures["gold_nll"]
    assert nll.value == pytest.approx(row.by_outcome["gold_nll"].mean()) and nll.ci_lo < nll.value < nll.ci_hi


STUDY = made_up_study()


def test_findings_say_what_is_shown_and_what_is_not() -> None:
    lines = findings(STUDY.rows, STUDY.comparisons, STUDY.claims, "generation")
    lora = next(line for line in lines if line.startswith("lora: "))
    pair = STUDY.comparison("lora", "against reference", "generation")
    assert f"{100 * pair.difference:+.1f} points" in lora and f"against sft: {pair.words}." in lora
    assert lora.count("Not shown: ") + lora.count("Not tested: ") == 1
    assert lines[-1].startswith("Completions that name an option: base 4")
    claims = [Claim(name, "lora", "sft", 0.01, 0.01, 0.05, True, f"{name}.") for name in ("non-inferior", "equivalent")]
    held = next(line for line in findings(STUDY.rows, STUDY.comparisons, claims, "generation") if "lora: " in line)
    assert held.endswith("non-inferior. equivalent.")
    # baselines that are not passed
    (sentence,) = baseline_sentence(STUDY.rows, {"majority letter": 0.1, "longest option": 0.2}, "generation")
    assert sentence == "Not above the highest floor (longest option, 20.0%): base, base nf4, qlora."
    assert baseline_sentence(STUDY.rows[2:3], {"majority letter": 0.1}, "generation") == []
    assert baseline_sentence(STUDY.rows, {}, "generation") == []


def test_plan_names_the_margin_and_what_it_asks_for() -> None:
    study = StudyConfig(name="mine", methods=["sft", "lora"], reference="sft", seeds=[1, 2, 3], margin=0.02, tune=True)
    study = replace(study, learning_rates={"sft": [1e-5], "lora": [1e-4, 2e-4], "qlora": [1e-4]})
    first, second, third = plan_lines(study)
    assert first == "Study mine: sft, lora, each with seeds 1, 2, 3, on one split and the same test set"
    assert second == "Decided by accuracy by generation; margin 2 points against sft"
    assert third.endswith("sft 1e-05; lora 0.0001, 0.0002")
    assert planned_power(study, 2036).startswith("Power: where 8% of the answers of two methods differ, 2,036 test")
    assert "out of reach" in planned_power(replace(study, margin=0.001), 400)

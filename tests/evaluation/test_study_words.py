"""A study's sentences."""

from dataclasses import replace

from study_support import made_up_study

from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.study import Claim
from cyberlm.evaluation.study_words import baseline_sentence, findings, plan_lines, planned_power

STUDY = made_up_study()


def test_findings_say_what_is_shown_and_the_first_claim_that_is_not() -> None:
    lines = findings(STUDY.rows, STUDY.comparisons, STUDY.claims, "generation")
    lora = next(line for line in lines if line.startswith("lora: "))
    pair = STUDY.comparison("lora", "against reference", "generation")
    assert pair is not None
    assert f"{100 * pair.difference:+.1f} points" in lora and f"against sft: {pair.words}." in lora
    assert lora.count("Not shown: ") + lora.count("Not tested: ") == 1
    assert lines[-1].startswith("Completions that name an option: base 4")
    claims = [Claim(name, "lora", "sft", 0.01, 0.01, 0.05, True, f"{name}.") for name in ("non-inferior", "equivalent")]
    held = next(line for line in findings(STUDY.rows, STUDY.comparisons, claims, "generation") if "lora: " in line)
    assert held.endswith("non-inferior. equivalent.")


def test_floors_that_are_not_passed_are_named() -> None:
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

"""Figures of answers that have no options beside them: CVSS vectors and extracted labels, by hand and in runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from statistics_support import answered
from support import compose, config_of

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.evaluation.comparison import compare_all
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import compute_metrics
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.records import ModelSpec
from cyberlm.evaluation.results import read_results
from cyberlm.runs.train import train
from cyberlm.tasks.task import make_task

HIGHEST = "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"  # 9.8
LOCAL = HIGHEST.replace("AV:N", "AV:L")  # 8.4

REPORTS = [  # right, completion: 11 labels are right, 9 are named, 5 of them are right
    ("T1071, T1573, T1083, T1070", "T1071.001, T1083 and T1083"),  # 2 of 2; F1 = 4/6
    ("T1059", "T1059"),  # 1 of 1; exact
    ("T1005, T1140", "T1041, T1105"),  # 0 of 2
    ("T1027, T1055", ""),  # nothing
    ("T1566, T1204", "T1566, T1204.002, T1003, T1021"),  # 2 of 4; F1 = 4/6
]
"""Micro-F1 = 2 * 5 / (11 + 9) = 0.5; macro-F1 = (2/3 + 1 + 0 + 0 + 2/3) / 5; exact 1 of 5."""


def scored(task: str, pairs: list[tuple[str, str]]) -> tuple[EvalSet, Predictions]:
    """Predictions of completions, each beside its right answer."""
    config = build_config(compose(*task.split(), "logger=none", command="evaluate"), EvaluateConfig)
    judge = make_task(config)
    asked = [judge.read({"question": f"text {k}", "answer": right}, f"q:{k}") for k, (right, _) in enumerate(pairs)]

    def row(question, completion: str) -> Prediction:
        parsed = judge.parse(completion, question)
        target = judge.target(question)
        made = replace(answered(question, 0), generated=completion, parsed=parsed, reference=target)
        return replace(made, finish_reason="stop")

    return EvalSet(config, asked), Predictions([row(q, text) for q, (_, text) in zip(asked, pairs, strict=True)])


def test_five_reports_by_hand() -> None:
    context, rows = scored("task=extraction task.main_only=true", REPORTS)
    found = compute_metrics(context.config.metrics, {"model": rows}, context)["model"]
    assert found["micro_f1"].value == pytest.approx(0.5)
    assert found["micro_precision"].value == pytest.approx(5 / 9)
    assert found["micro_recall"].value == pytest.approx(5 / 11)
    assert found["macro_f1"].value == pytest.approx((2 / 3 + 1 + 2 / 3) / 5)
    assert found["accuracy_generation"].value == pytest.approx(1 / 5)
    low, high = found["micro_f1"].interval or (0, 0)
    assert low < 0.5 < high
    floor = found["baseline_frequent_labels"]  # each label once: two of them, in the order of their names
    assert "T1005, T1027" in floor.note and floor.value == pytest.approx(2 * 2 / (10 + 11))


def test_vectors_by_hand() -> None:
    completions = [(HIGHEST, HIGHEST), (HIGHEST, LOCAL), (HIGHEST, "I cannot say")]
    context, rows = scored("task=cvss", completions)
    found = compute_metrics(context.config.metrics, {"model": rows}, context)["model"]
    assert found["deviation"].value == pytest.approx((0 + 1.4 + 9.8) / 3)
    assert found["deviation_of_vectors"].value == pytest.approx(0.7) and found["deviation_of_vectors"].n == 2
    assert found["baseline_always_7.5"].value == pytest.approx(2.3)
    assert found["deviation_above_floor"].value == pytest.approx(11.2 / 3 - 2.3)
    assert found["accuracy_AV"].value == pytest.approx(1 / 3)
    assert found["accuracy_C"].value == pytest.approx(2 / 3)
    assert found["accuracy_generation"].value == pytest.approx(1 / 3)


def test_two_models_are_paired_by_the_figures_of_the_task() -> None:
    context, base = scored("task=cvss", [(HIGHEST, "none"), (HIGHEST, LOCAL), (LOCAL, HIGHEST), (LOCAL, "none")])
    _, tuned = scored("task=cvss", [(HIGHEST, HIGHEST), (HIGHEST, LOCAL), (LOCAL, LOCAL), (LOCAL, HIGHEST)])
    specs = {"base": ModelSpec("m", "base"), "tuned": ModelSpec("m", "adapter", tuned_from="base")}
    pairs, means = compare_all({"base": base, "tuned": tuned}, specs, context)
    assert [pair.outcome for pair in pairs] == ["generation", "option_named", "named_by_both"]
    assert (pairs[0].only_second_right, pairs[0].only_first_right) == (2, 0)
    change = {mean.outcome: mean.difference for mean in means}
    assert change["deviation"] == pytest.approx((0 + 1.4 + 0 + 1.4 - 9.8 - 1.4 - 1.4 - 8.4) / 4)
    assert change["accuracy_AV"] == 0.5 and "option_nll" not in change and "gold_nll" in change


@pytest.mark.parametrize(
    ("task", "answers", "named"),
    [
        ("cvss", (HIGHEST, LOCAL), ("deviation", "baseline_always_7.5", "deviation_above_floor", "accuracy_AV")),
        ("extraction", ("T1059", "T1071, T1083"), ("micro_f1", "macro_f1", "baseline_frequent_labels")),
    ],
)
def test_a_run(task: str, answers: tuple[str, str], named: tuple[str, ...], tmp_path: Path) -> None:
    rows = [f"{('typo', 'crash')[k % 2]} {k} in {k * 7 % 31}\t{answers[k % 2]}" for k in range(60)]
    file = tmp_path / "q.tsv"
    file.write_text("question\tanswer\n" + "\n".join(rows))
    asked = (f"task={task}", "task.instruction='{text}:'", "data=file", f"data.path={file}", "prompt=text")
    train(config_of(*asked, "prompt.system=", "trainer.max_steps=2", "evaluation.max_new_tokens=4"), tmp_path / "run")
    results = read_results(tmp_path / "run")
    found = results.metrics["tuned"]
    assert all(found[name].value is not None for name in (*named, "accuracy_generation", "leaks", "gold_nll"))
    assert "accuracy" not in found and results.objective is not None and results.objective > 0
    assert {pair.outcome for pair in results.comparisons} >= {"generation"}
    assert named[0] in {mean.outcome for mean in results.differences} or task == "extraction"

"""Metrics of tasks other than multiple choice: by hand, against scikit-learn, and in runs from file to results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages_support import Reader
from results_support import results
from sklearn.metrics import f1_score
from statistics_support import answered, eval_set
from support import compose, config_of, evaluation_of

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.evaluation.comparison import compare_all
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.classification import class_baselines, macro_f1
from cyberlm.evaluation.metrics.metric import Metric, compute_metrics
from cyberlm.evaluation.pages.learning_curves import read_curves
from cyberlm.evaluation.pages.run_page import Origin, run_page
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import ModelSpec, Results
from cyberlm.evaluation.results import read_models, read_results
from cyberlm.evaluation.verdict import difference_tables, verdict, verdict_in_brief
from cyberlm.runs.eval_set import saved_eval_set
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.recompute import recompute
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError
from cyberlm.tasks.task import Example, make_task

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


def scored(task: str, pairs: list[tuple[str, str]], **fields: Any) -> tuple[EvalSet, Predictions]:
    """Predictions of completions, each beside its right answer.

    Args:
        fields: More fields of every row.
    """
    config = build_config(compose(*task.split(), "logger=none", command="evaluate"), EvaluateConfig)
    judge = make_task(config)
    asked, rows = [], []
    for k, (right, completion) in enumerate(pairs):
        question = judge.read({"question": f"text {k} of {k}{k}", "answer": right, **fields}, f"q:{k}")
        said = {"generated": completion, "parsed": judge.parse(completion, question), "finish_reason": "stop"}
        asked.append(question)
        rows.append(replace(answered(question, 0), reference=judge.target(question), **said))
    return EvalSet(config, asked), Predictions(rows)


def figures(context: EvalSet, rows: Predictions) -> dict[str, Metric]:
    """All metrics that the task asks for."""
    return compute_metrics(context.config.metrics, {"model": rows}, context)["model"]


def paired(context: EvalSet, **models: Predictions) -> tuple[Any, Any]:
    """Comparisons of models that are tuned from `base`."""
    specs = {name: ModelSpec("m", "adapter", tuned_from="base") for name in models} | {"base": ModelSpec("m", "base")}
    return compare_all(models, specs, context)


def test_five_reports_by_hand() -> None:
    found = figures(*scored("task=extraction task.main_only=true", REPORTS))
    by_hand = {"micro_f1": 0.5, "micro_precision": 5 / 9, "micro_recall": 5 / 11, "accuracy_generation": 1 / 5}
    by_hand["macro_f1"] = (2 / 3 + 1 + 2 / 3) / 5
    assert {name: found[name].value for name in by_hand} == pytest.approx(by_hand)
    low, high = found["micro_f1"].interval
    assert low < 0.5 < high
    floor = found["baseline_frequent_labels"]  # each label once: two of them, in the order of their names
    assert "T1005, T1027" in floor.note and floor.value == pytest.approx(2 * 2 / (10 + 11))


def test_vectors_by_hand_and_in_pairs() -> None:
    found = figures(*scored("task=cvss", [(HIGHEST, HIGHEST), (HIGHEST, LOCAL), (HIGHEST, "I cannot say")]))
    by_hand = {"deviation": (0 + 1.4 + 9.8) / 3, "deviation_of_vectors": 0.7, "baseline_always_7.5": 2.3}
    by_hand |= {"accuracy_AV": 1 / 3, "accuracy_C": 2 / 3, "accuracy_generation": 1 / 3}
    by_hand["deviation_above_floor"] = 11.2 / 3 - 2.3
    assert {name: found[name].value for name in by_hand} == pytest.approx(by_hand)
    assert found["deviation_of_vectors"].n == 2
    # two models
    context, base = scored("task=cvss", [(HIGHEST, "none"), (HIGHEST, LOCAL), (LOCAL, HIGHEST), (LOCAL, "none")])
    _, tuned = scored("task=cvss", [(HIGHEST, HIGHEST), (HIGHEST, LOCAL), (LOCAL, LOCAL), (LOCAL, HIGHEST)])
    pairs, means = paired(context, base=base, tuned=tuned)
    assert [pair.outcome for pair in pairs] == ["generation", "option_named", "named_by_both"]
    assert (pairs[0].only_second_right, pairs[0].only_first_right) == (2, 0)
    change = {mean.outcome: mean.difference for mean in means}
    assert change["deviation"] == pytest.approx((0 + 1.4 + 0 + 1.4 - 9.8 - 1.4 - 1.4 - 8.4) / 4)
    assert change["accuracy_AV"] == 0.5 and "option_nll" not in change and "gold_nll" in change


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    gold, given = (rng.choice(list("abcde"), 200).tolist() for _ in range(2))
    given[:20] = ["no class"] * 20
    value, (low, high) = macro_f1(gold, given)
    expected = f1_score(gold, given, labels=sorted(set(gold)), average="macro")
    assert value == pytest.approx(expected) and low < value < high
    wide = macro_f1(gold, given, clusters=np.arange(200) // 20)[1]
    assert macro_f1(gold, gold) == (1.0, (1.0, 1.0)) and wide != (low, high)


def test_floors_learn_from_the_seen_questions() -> None:
    words = {"CWE-79": "script injected in page", "CWE-89": "sql query in database"}

    def asked(count: int, start: int) -> list[Example]:
        names = [list(words)[k % 3 // 2] for k in range(count)]  # two of three are CWE-79
        return [Example(f"q:{k}", f"{words[name]} {start + k}", (name,), 0) for k, name in enumerate(names)]

    context = eval_set(asked(9, 0), seen=asked(30, 100))
    (majority, _), (svm, given) = class_baselines(context)
    assert majority.accuracy == pytest.approx(6 / 9) and "always CWE-79" in majority.note
    assert svm.accuracy == 1 and given == [question.answer for question in context.questions]
    assert [floor.name for floor, _ in class_baselines(eval_set(asked(9, 0)))] == ["majority_class"]


def trained(folder: Path, task: str, answers: tuple[str, str], *settings: str) -> Results:
    """Results of a run on texts of two kinds, each with its own answer."""
    rows = [f"{('typo', 'crash')[k % 2]} {k} in {k * 7 % 31}\t{answers[k % 2]}\treport {k // 4}" for k in range(80)]
    file = folder / "q.tsv"
    file.write_text("question\tanswer\tgroup\n" + "\n".join(rows))
    asked = (*task.split(), "task.instruction='{text}:'", "data=file", f"data.path={file}", "prompt=text")
    train(config_of(*asked, "prompt.system=", *settings), folder / "run")
    return read_results(folder / "run")


MANY = ",".join(f"c{k}" for k in range(40))


@pytest.mark.parametrize("labels", [f"task.labels=[{MANY},low,high]", "task.form=low|high"])
def test_a_run_of_classes(labels: str, tmp_path: Path) -> None:
    fast = ("trainer.max_steps=60", "optim.learning_rate=1e-2", "data.micro_batch_size=4")
    results = trained(tmp_path, f"task=classification {labels}", ("low", "high"), *fast, "evaluation.max_new_tokens=8")
    found = results.metrics["tuned"]
    assert ("macro_f1" in found) == ("accuracy" in found) == labels.startswith("task.labels")
    for name in ("macro_f1_generation", "accuracy_last_line", "accuracy_generation", "baseline_tfidf_svm", "leaks"):
        assert found[name].value is not None, name
    recall = found["recall_low" if "recall_low" in found else "recall_LOW"]
    assert found["macro_f1_generation"].interval and recall.interval
    outcomes = [pair.outcome for pair in results.comparisons]
    assert ("likelihood" in outcomes) == ("accuracy" in found) and "generation" in outcomes
    assert found["accuracy_generation"].value > 0.3
    evaluate(evaluation_of("evaluation.max_new_tokens=8", f"run={tmp_path}/run"), tmp_path / "again")
    again = read_results(tmp_path / "again").metrics["tuned"]
    assert all(again.get(name) == found.get(name) for name in ("macro_f1", "macro_f1_generation"))
    if MANY in labels:
        models = read_models(tmp_path / "again")
        context = saved_eval_set(tmp_path / "again", [row.hash for row in models["tuned"].test])
        compute_metrics(evaluation_of().metrics, models, context)  # those of letters, of more options than letters


SETS = [  # right, completion, log-odds of yes for each of four options
    ("A, C", "A, C", (1.0, -1.0, 2.0, -0.5)),  # both right
    ("A, C", "The answer: A", (1.0, 1.0, -2.0, -0.5)),  # strict: none; last line: A; by likelihood: A, B
    ("B", "A, B", (-1.0, -1.0, -1.0, -1.0)),  # by likelihood: none
    ("A, C", "B", (1.0, -1.0, 1.0, -1.0)),  # wrong, and right by likelihood
]


def test_sets_by_hand() -> None:
    context, rows = scored("task=multiple_answer", [(right, text) for right, text, _ in SETS], options=list("wxyz"))
    test = [replace(row, option_log_odds=odds) for row, (_, _, odds) in zip(rows.test, SETS, strict=True)]
    found = figures(context, Predictions(test))
    by_hand = {
        **{"accuracy": 1 / 2, "accuracy_generation": 1 / 4, "accuracy_last_line": 1 / 4},
        "jaccard": (1 + 1 / 3 + 0 + 1) / 4,
        "jaccard_generation": (1 + 0 + 1 / 2 + 0) / 4,
        "jaccard_last_line": (1 + 1 / 2 + 1 / 2 + 0) / 4,
        "micro_f1": 2 * (2 + 1 + 0 + 2) / ((2 + 2 + 0 + 2) + (2 + 2 + 1 + 2)),
        "micro_f1_generation": 2 * (2 + 0 + 1 + 0) / ((2 + 0 + 2 + 1) + (2 + 2 + 1 + 2)),
        "option_accuracy": (4 + 2 + 3 + 4) / 16,
        **{"baseline_all_options": 0, "baseline_frequent_set": 3 / 4},
        "baseline_jaccard_all_options": (2 / 4 + 2 / 4 + 1 / 4 + 2 / 4) / 4,
        "skill": (1 / 4 - 3 / 4) / (1 - 3 / 4),
    }
    assert {name: found[name].value for name in by_hand} == pytest.approx(by_hand)
    assert "always A, C, which is right in 3 of 4 test questions" in found["baseline_frequent_set"].note
    for name in ("accuracy", "jaccard", "micro_f1", "jaccard_generation", "micro_f1_generation"):
        low, high = found[name].interval
        assert low < found[name].value < high


def test_open_answers_by_hand() -> None:
    pairs = [("a salt is random", "a salt is random"), ("a key is secret", "a key"), ("x y", "none")]
    context, rows = scored("task=open_answer", pairs)
    found = figures(context, rows)
    assert found["rougeL"].value == pytest.approx((1 + 2 / 3 + 0) / 3) and found["rougeL"].interval
    wrong = found["rouge1_always_wrong"].value  # of the next reference: 2 of 4 words, none, none
    assert wrong == pytest.approx((1 / 2 + 0 + 0) / 3)
    _, tuned = scored("task=open_answer", [(right, right) for right, _ in pairs])
    compared, means = paired(context, base=rows, tuned=tuned)
    assert not compared and {mean.outcome for mean in means} == {"rouge1", "rouge2", "rougeL", "gold_nll"}
    (sentence,), (line,) = verdict(compared, means), verdict_in_brief(compared, means)
    assert sentence.startswith("Tuned against base: gold answer NLL +0.0000; ROUGE-1 +0.4444 (95% ")
    assert line.startswith("Difference: ROUGE-L +0.4444 (95% -0.")
    # several models have a table
    _, means = paired(context, base=rows, one=rows, two=rows)
    metrics = dict.fromkeys(("base", "one", "two"), found)
    tables = difference_tables(results(metrics=metrics, comparisons=(), differences=means))
    assert [title for title, _ in tables] == [
        "ROUGE-L: each tuned model against its base (Holm over 2)",
        "ROUGE-L: tuned models among each other (Holm over 1)",
    ]
    assert tables[0][1][""] == ["one minus base", "two minus base"] and "gained, lost" not in tables[0][1]


def test_the_page_shows_sets_and_hides_right_ones_where_the_licence_does() -> None:
    models = {}
    for name, completion in (("base", "B or not"), ("tuned", "A, C")):
        context, rows = scored("task=multiple_answer", [("A, C", completion), ("B", "A")], options=list("wxyz"))
        models[name] = Predictions([replace(row, option_log_odds=(1.0, -1.0, -1.0, 1.0)) for row in rows.test])
    pairs, _ = paired(context, **models)

    def shown(licence: str) -> str:
        context.config.data.licence = licence
        page = run_page(results(comparisons=pairs), context, models, Origin("run", "python train.py"))
        return " ".join(Reader(page).text.split())

    text = shown("CC0-1.0")
    assert "Gained (1)" in text and "C) y" in text
    assert "base: by likelihood A, D, generated -; right is A, C" in text
    text = shown("unknown")
    assert "Gained (1)" in text and "A, C" not in text
    assert "base: by likelihood A, D, generated wrong" in text and "tuned: by likelihood A, D, generated right" in text


@pytest.mark.parametrize(
    ("task", "answers", "named"),
    [
        ("cvss", (HIGHEST, LOCAL), ("deviation", "baseline_always_7.5", "deviation_above_floor", "accuracy_AV")),
        ("extraction", ("T1059", "T1071, T1083"), ("micro_f1", "macro_f1", "baseline_frequent_labels")),
        ("open_answer", ("a flaw", "a way to stop it"), ("rougeL", "rouge1", "rouge2")),
    ],
)
def test_a_run_of_free_answers(task: str, answers: tuple[str, str], named: tuple[str, ...], tmp_path: Path) -> None:
    results = trained(tmp_path, f"task={task}", answers, "trainer.max_steps=2", "evaluation.max_new_tokens=4")
    found = results.metrics["tuned"]
    assert all(found[name].value is not None for name in (*named, "leaks", "gold_nll"))
    assert "accuracy" not in found and results.objective is not None and results.objective > 0
    assert results.validation.keys() == {"nll", "option_nll"}
    assert "val/nll" in (curves := read_curves(tmp_path / "run")) and "val/accuracy" not in curves
    rated = task != "open_answer"
    assert ("accuracy_generation" in found) == ("generation" in {pair.outcome for pair in results.comparisons}) == rated
    tag = {"cvss": "cvss-vector", "open_answer": "open-answer"}.get(task, task)
    assert f"tags: [cyberlm, cybersecurity, {tag}]" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert named[0] in {mean.outcome for mean in results.differences} or task == "extraction"


def test_free_answers_without_completions_have_their_nll(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no accuracy by likelihood") as caught:
        trained(tmp_path, "task=cvss", (HIGHEST, LOCAL), "trainer.monitor=accuracy", "evaluation.generate=false")
    assert caught.value.problems[0].fix == "trainer.monitor=option_nll"
    results = trained(tmp_path, "task=cvss", (HIGHEST, LOCAL), "trainer.max_steps=2", "evaluation.generate=false")
    assert {mean.outcome for mean in results.differences} == {"gold_nll"} and not results.comparisons
    assert results.metrics["tuned"]["leaks"].value is not None


def test_a_run_with_several_right_answers(tmp_path: Path) -> None:
    rows = [f"{('typo', 'crash')[k % 2]} {k} in {k * 7 % 31},w,x,y,{('AB', 'C')[k % 2]}" for k in range(60)]
    file, run = tmp_path / "q.csv", tmp_path / "run"
    file.write_text("question,A,B,C,answer\n" + "\n".join(rows))
    short = ("task.instruction='{text}:'", "task.option_instruction='{text} {letter}?'", "prompt.system=")
    asked = ("task=multiple_answer", "data=file", f"data.path={file}", "prompt=text", "prompt.show_options=true")
    train(config_of(*asked, *short, "trainer.max_steps=2", "evaluation.max_new_tokens=4"), run)
    results, tuned = read_results(run), read_models(run)["tuned"].test
    found = results.metrics["tuned"]
    named = ("accuracy", "accuracy_generation", "jaccard", "micro_f1_last_line", "option_accuracy", "skill", "leaks")
    assert all(found[name].value is not None for name in named)
    assert {pair.outcome for pair in results.comparisons} >= {"likelihood", "generation"}
    assert "jaccard_generation" in {mean.outcome for mean in results.differences}
    assert {len(row.option_log_odds) for row in tuned} == {3}
    assert sum(row.correct for row in tuned) / len(tuned) == found["accuracy"].value
    assert recompute(run) == []

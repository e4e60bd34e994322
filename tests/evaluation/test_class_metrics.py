"""Metrics of classes against scikit-learn, floors, and a run from question file to results."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score
from statistics_support import eval_set
from support import config_of

from cyberlm.evaluation.metrics.classification import class_floors, macro_f1
from cyberlm.evaluation.results import read_results
from cyberlm.runs.train import train
from cyberlm.tasks.task import Example

rng = np.random.default_rng(3)


def test_macro_f1_is_that_of_scikit_learn() -> None:
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
    (majority, _), (svm, given) = class_floors(context)
    assert majority.accuracy == pytest.approx(6 / 9) and "always CWE-79" in majority.note
    assert svm.accuracy == 1 and given == [question.answer for question in context.questions]
    assert [floor.name for floor, _ in class_floors(eval_set(asked(9, 0)))] == ["majority_class"]


@pytest.mark.parametrize("labels", ["task.labels=[low,high]", "task.form=low|high"])
def test_a_run(labels: str, tmp_path: Path) -> None:
    kinds = (("typo", "low"), ("crash", "high"))
    rows = [f"{kinds[k % 2][0]} {k} in {k * 7 % 31},{kinds[k % 2][1]},report {k // 4}" for k in range(80)]
    file = tmp_path / "q.csv"
    file.write_text("question,answer,group\n" + "\n".join(rows))
    named = ("task=classification", labels, "task.instruction='{text}:'", "data=file", f"data.path={file}")
    fast = ("prompt.system=", "trainer.max_steps=60", "optim.learning_rate=1e-2", "evaluation.max_new_tokens=8")
    train(config_of("prompt=text", *named, *fast, "data.micro_batch_size=4"), tmp_path / "run")
    results = read_results(tmp_path / "run")
    found = results.metrics["tuned"]
    assert ("macro_f1" in found) == ("accuracy" in found) == (labels == "task.labels=[low,high]")
    for name in ("macro_f1_generation", "accuracy_last_line", "accuracy_generation", "baseline_tfidf_svm", "leaks"):
        assert found[name].value is not None, name
    assert (
        found["macro_f1_generation"].interval
        and found["recall_low" if "recall_low" in found else "recall_LOW"].interval
    )
    outcomes = [pair.outcome for pair in results.comparisons]
    assert ("likelihood" in outcomes) == ("accuracy" in found) and "generation" in outcomes
    assert found["accuracy_generation"].value > 0.3

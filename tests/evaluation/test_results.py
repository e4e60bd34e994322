"""Files of a run folder: what is written is what is read, and nothing else is read."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from results_support import BASE, named, results

from cyberlm.evaluation import results as results_module
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.records import Cost, MeanDifference, PairComparison, Results
from cyberlm.evaluation.results import (
    PACKAGES,
    Status,
    environment,
    read_models,
    read_predictions,
    read_results,
    read_status,
    write_models,
    write_predictions,
    write_results,
    write_status,
)
from cyberlm.runtime.errors import RunError

PREDICTION = Prediction(
    id="sample:1",
    hash="0123456789abcdef",
    gold=1,
    n_options=2,
    option_logprobs=(-1.5, -0.25),
    option_tokens=(3, 1),
    option_chars=(12, 4),
    choice=1,
    gold_nll=0.25,
    generated="“B” \u2028 — naïve",
    parsed=None,
    reference="B",
    prompt_hash="fedcba9876543210",
    topic="crypto",
)


@pytest.mark.parametrize(
    "changes", [{}, {"kind": "evaluate", "metrics": {"base": BASE}, "comparisons": (), "objective": None, "cost": None}]
)
def test_results_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_results(results(**changes), tmp_path / "new" / "folder")
    assert read_results(tmp_path / "new" / "folder") == results(**changes)
    text = (tmp_path / "new" / "folder" / "results.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "schema_version": 2,\n  "kind": ') and "model.name='é'" in text  # for people too
    value = json.loads(text)
    assert list(value) == [field.name for field in fields(Results)]
    fitted = {"name": "temperature", "value": 2.0, "note": "fitted", "place": "detail"}
    assert value["metrics"]["base"]["temperature"] == fitted  # no default is written
    assert set(value["models"]["base"]) == set(SPEC)  # what is needed to load a model stays out


SPEC = ("source", "kind", "base", "quant", "weights", "adapter", "prompt", "tuned_from")


def test_nan_becomes_null_only_where_a_number_may_be_missing(tmp_path: Path) -> None:
    nan = float("nan")
    write_results(results(objective=nan, validation={"accuracy": nan}), tmp_path)
    assert (read_results(tmp_path).objective, read_results(tmp_path).validation) == (None, {"accuracy": None})
    before = (tmp_path / "results.json").read_bytes()
    for bad in (nan, float("inf"), float("-inf")):
        with pytest.raises(RunError, match=r"results\.json(.|\n)*metrics\.tuned\.x\.value is(.|\n)*learning_rate"):
            write_results(results(metrics={"tuned": named(Metric("x", bad))}), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_missing_results_say_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no results\.json"):
        read_results(tmp_path)
    write_status(tmp_path, "failed", reason="out of memory")
    with pytest.raises(RunError, match="failed: out of memory"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ('"kind": "train"', '"kind": "tr', r"results\.json cannot be read(.|\n)*python evaluate\.py run="),
        ('"objective": 0.5', '"objective": NaN', "NaN is not a JSON number"),
        *(('"schema_version": 2', f'"schema_version": {v}', "schema_version is") for v in ("0", "3", '"1"', "null")),
        ('"objective"', '"objektive"', r"objektive is not known. Did you mean 'objective'\?"),
        ('"value": 4.51234,', "", r"metrics\.base\.gold_nll\.value is missing"),
    ],
)
def test_results_that_are_torn_or_of_another_shape_are_refused(tmp_path, written, instead, message) -> None:
    write_results(results(), tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert text.count(written) == 1
    (tmp_path / "results.json").write_text(text.replace(written, instead))
    with pytest.raises(RunError, match=message):
        read_results(tmp_path)


def test_predictions_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    by_model = {
        "base": [PREDICTION, replace(PREDICTION, id="sample:2", generated=None)],
        "tuned": [replace(PREDICTION, choice=0, parsed=1)],
    }
    write_predictions(path, by_model)
    assert read_predictions(path) == by_model
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [next(iter(row)) for row in rows] == ["model"] * 3
    assert [(row["correct"], row["generated_correct"]) for row in rows] == [(True, False), (True, None), (False, True)]
    assert "naïve" in path.read_text(encoding="utf-8")
    write_predictions(tmp_path / "predictions.parquet", by_model)
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert (table.to_pylist(), table.column_names) == (rows, list(rows[0]))
    nothing = {"base": [replace(PREDICTION, generated=None, parsed=None)]}
    write_predictions(tmp_path / "none.parquet", nothing)  # columns keep their types where all are null
    assert parquet.read_schema(tmp_path / "none.parquet") == table.schema
    bad = {"base": [PREDICTION, replace(PREDICTION, option_logprobs=(float("nan"), -1.0))]}
    for file in ("bad.jsonl", "bad.parquet"):
        with pytest.raises(RunError, match=rf"{file}, prediction 2 of base(.|\n)*option_logprobs.0 is nan"):
            write_predictions(tmp_path / file, bad)
        assert not (tmp_path / file).exists()


def test_further_passes_are_read_back_with_the_predictions(tmp_path: Path) -> None:
    turned = [replace(PREDICTION, gold=gold, hash=str(gold)) for gold in (1, 0)]
    fixed = replace(PREDICTION, id="sample:2")  # its options may not be rotated
    full = Predictions([turned[0], fixed], [turned], [replace(PREDICTION, choice=0), fixed], [fixed])
    models = {"base": full, "tuned": Predictions([PREDICTION, fixed])}
    write_models(tmp_path, models)
    found = read_models(tmp_path)
    assert found["base"] == full
    assert found["tuned"].test == [PREDICTION, fixed] and not found["tuned"].rotated
    write_models(tmp_path / "plain", {"tuned": models["tuned"]})
    assert not (tmp_path / "plain" / "passes.jsonl").exists()
    for others in (turned[:1], [*turned, turned[1]], [turned[1], turned[1]]):
        write_models(tmp_path, {"base": replace(full, rotated=[[turned[0], *others]])})
        with pytest.raises(RunError, match=r"passes\.jsonl cannot be read(.|\n)*sample:1 of base(.|\n)*each rotation"):
            read_models(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"model": "base", "id": "x"', r"line 2 cannot be read(.|\n)*complete JSON"),
        ('{"model": "base", "id": "x"}', r"line 2 cannot be read(.|\n)*hash is missing"),
        ('{"id": "x"}', r"line 2 cannot be read(.|\n)*names no model"),
        ("[]", "names no model"),
    ],
)
def test_bad_prediction_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(RunError, match=r"There is no .*predictions\.jsonl"):
        read_predictions(path)
    write_predictions(path, {"base": [PREDICTION]})
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_predictions(path)


def test_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for status in (("running", None, ""), ("finished", 0.75, ""), ("failed", None, "diverged")):
        write_status(tmp_path, *status)
        assert read_status(tmp_path) == Status(*status)
    write_status(tmp_path, "failed", float("nan"))
    assert read_status(tmp_path) == Status("failed", None, "")
    (tmp_path / "status.json").write_text('{"state": "done", "objective": null, "reason": ""}')
    with pytest.raises(RunError, match=r"state is .done.(.|\n)*'running', 'finished', 'failed' or 'stopped'"):
        read_status(tmp_path)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment()
    assert found["python"] == sys.version.split()[0]
    assert {*PACKAGES, "cyberlm", "platform", "cpu_count"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git_commit" not in environment()
    monkeypatch.setattr(results_module, "PACKAGES", ("no-such-package",))
    monkeypatch.setenv("PATH", "")
    assert environment()["no-such-package"] == "not installed"


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    records = (Results, Metric, Cost, PairComparison, MeanDifference, Prediction, Status)
    names = {field.name for record in records for field in fields(record)} | {"model", "correct", "generated_correct"}
    assert {name for name in names | set(SPEC) if f"`{name}`" not in text} == set()

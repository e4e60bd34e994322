"""A whole run and its evaluation, end to end, on the tiny model and the embedded questions."""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from pyarrow import parquet
from support import MULTIPLE_CHOICE, TINY, compose, config_of, evaluation_of, questions_file, sample_questions

from cyberlm.config.rules import build_config
from cyberlm.config.saved import config_of as saved_by
from cyberlm.config.saved import save_config
from cyberlm.config.schema import TrainConfig
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.results import read_predictions, read_results, read_status
from cyberlm.evaluation.verdict import verdict
from cyberlm.runs.eval_set import build_eval_set
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.recompute import recompute
from cyberlm.runs.train import train
from cyberlm.runtime.errors import RunError

SMALL = (
    *("data.max_train=24", "data.max_validation=8", "data.max_test=16", "evaluation.max_new_tokens=4"),
    *("optim.learning_rate=1e-2", "trainer.max_epochs=2"),
)


def small(*overrides: str) -> TrainConfig:
    return config_of(*SMALL, *overrides)


scoring = functools.partial(evaluation_of, "evaluation.max_new_tokens=4")


def evaluated(run: Path, folder: Path, *overrides: str) -> Path:
    evaluate(scoring(f"run={run}", "evaluation=full", "evaluation.prior_share=0.2", *overrides), folder)
    return folder


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return Path(shutil.copytree(lora_run, tmp_path / "run"))


@pytest.mark.parametrize("method", ["sft", "lora", "qlora"])
def test_a_run_leaves_everything_it_promises(method: str, finished_run: Callable[..., Path], tmp_path: Path) -> None:
    run = finished_run(f"method={method}")
    results, status = read_results(run), read_status(run)
    assert status is not None and (status.state, status.objective) == ("finished", results.objective)
    assert results.questions == {"train": 48, "validation": 8, "test": 16}
    assert results.monitor == "option_nll" and results.validation["option_nll"] == results.objective
    assert results.steps == 12 and set(results.validation) == {"accuracy", "nll", "option_nll"}
    assert set(results.metrics) == set(results.models) == {"base", "tuned"}
    assert results.cost is not None and results.cost.label_tokens < results.cost.processed_tokens
    assert results.cost.label_tokens == 2 * 2 * 48  # letter and end of turn, two epochs
    tuned = run / ("model" if method == "sft" else "adapter")
    own = "config.json" if method == "sft" else "adapter_config.json"
    assert {"prompt.json", "tokenizer.json", "README.md", own} <= {file.name for file in tuned.iterdir()}
    promised = {"config.yaml", "environment.json", "split_manifest.json", "metrics.csv", "provenance.json"}
    assert promised <= {file.name for file in run.iterdir()}
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss", "val/accuracy", "val/nll"} <= set(header.split(","))
    assert results.provenance["weights"] and results.provenance["prompt"]
    said = verdict(results.comparisons)
    assert said and "\n".join(said) in (tuned / "README.md").read_text()

    # the same figures from the rows, and from evaluate.py
    predictions = read_predictions(run / "predictions.jsonl")
    for name, rows in predictions.items():
        assert results.metrics[name]["accuracy"].value == sum(row.correct for row in rows) / 16
    again = evaluated(run, tmp_path / "again")
    assert recompute(run) == recompute(again) == []
    for name, metrics in read_results(again).metrics.items():
        headline = [metric for metric in metrics.values() if metric.place == "headline"]
        assert headline == [results.metrics[name][metric.name] for metric in headline]
    assert read_results(again).comparisons == results.comparisons
    assert read_predictions(again / "predictions.jsonl") == predictions


def test_a_row_that_was_changed_is_found_and_a_label_is_no_figure(run: Path) -> None:
    written = (run / "results.json").read_text()
    (run / "results.json").write_text(written.replace('"label": "ROUGE-1"', '"label": "ROUGE 1"'))
    assert written != (run / "results.json").read_text() and recompute(run) == []
    rows = (run / "predictions.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    row["choice"] = (row["choice"] + 1) % 4
    (run / "predictions.jsonl").write_text("\n".join([json.dumps(row), *rows[1:]]) + "\n")
    assert any(name.startswith("comparisons") for name in recompute(run))


@pytest.mark.parametrize("prompt", ["letter", "text"])
def test_evidence_of_a_run_with_all_passes(prompt: str, finished_run: Callable[..., Path]) -> None:
    text = (*("prompt=text", "prompt.question='{question}'"), "evaluation.parquet=true")
    run = finished_run("method=lora", *(text if prompt == "text" else ()))
    results = read_results(run)
    for metrics in results.metrics.values():
        assert ("circular_accuracy" in metrics) == (prompt == "letter")
        assert metrics["baseline_no_question"].value is not None and "ece_scaled" in metrics
        assert metrics["leaks"].value == 0
    outcomes = [pair.outcome for pair in results.comparisons]
    assert outcomes[0] == "likelihood" and ("generation" in outcomes) == (prompt == "letter")
    assert {pair.family for pair in results.comparisons} == {"each tuned model against its base"}
    assert {row.outcome for row in results.differences} >= {"gold_nll", "option_nll", "rouge1", "rougeL"}
    assert recompute(run) == []
    if prompt == "text":
        rows = (run / "predictions.jsonl").read_text().splitlines()
        assert parquet.read_table(run / "predictions.parquet").to_pylist() == list(map(json.loads, rows))
        tuned = results.metrics["tuned"]
        assert tuned["accuracy_generation"].value is None and "not shown" in tuned["accuracy_generation"].note
        assert tuned["rouge2"].value is not None


def test_a_base_model_is_scored_on_the_whole_file(tmp_path: Path) -> None:
    config = scoring("model=tiny_random", "data.max_test=20", "prompt=letter", "evaluation.generate=false")
    evaluate(config, tmp_path)
    results = read_results(tmp_path)
    assert results.kind == "evaluate" and set(results.metrics) == {"base"} and results.questions == {"test": 20}
    assert "rouge1" not in results.metrics["base"]
    status = read_status(tmp_path)
    assert status is not None and status.objective is None


def test_a_test_question_that_was_trained_on_is_refused(run: Path, tmp_path: Path) -> None:
    """One that the split itself calls a test question; config/test_bad_input.py has the questions of a whole file."""
    manifest = json.loads((run / "split_manifest.json").read_text())
    manifest["parts"]["test"][0] = manifest["parts"]["train"][0]
    (run / "split_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="1 of 16 questions were trained on or validated on"):
        evaluated(run, tmp_path / "e")
    status = read_status(tmp_path / "e")
    assert status is not None and status.state == "failed"


def test_training_and_evaluation_choose_the_same_questions_of_a_file(tmp_path: Path) -> None:
    train_file = questions_file(tmp_path / "train.json", sample_questions(60)[20:])
    test_file = questions_file(tmp_path / "test.json", sample_questions(60)[:20])
    held_out = ("data=mcq", f"data.path={train_file}", f"data.test_path={test_file}", "data.max_test=5")
    data = small(*held_out).data
    trained = [question.hash for question in split_questions(data, load_sources(data, MULTIPLE_CHOICE)).test]
    for given in (held_out, ("data=mcq", f"data.path={test_file}", "data.max_test=5")):
        eval_set, _ = build_eval_set(scoring(*given), {}, ())
        assert [question.hash for question in eval_set.questions] == trained
    assert trained != [question.hash for question in sample_questions(60)[:5]]


def test_what_is_read_back_is_never_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that speaks of secrets, and a password that is a common word; a logger's token stays in its variable."""
    monkeypatch.setenv("DB_PASSWORD", "security")
    monkeypatch.setenv("TRACKER", "http://me:pa55word@localhost")
    about = "prompt.system='A security question. Keep the secret: the key, password=none.'"
    mine = "+logger.mine={_target_:test_runs.tracker,save_dir:'${run_dir:}',uri:'${oc.env:TRACKER}'}"
    composed = compose(*TINY, *SMALL, about, mine)
    config = build_config(composed, TrainConfig)
    config.logger["mine"]["save_dir"] = str(tmp_path / "run")
    train(config, tmp_path / "run")
    assert saved_by(tmp_path / "run") == config
    assert "pa55word" not in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "proof").read_text() == "http://me:pa55word@localhost"
    monkeypatch.delenv("TRACKER")  # not needed to score
    evaluate(scoring(f"run={tmp_path / 'run'}"), tmp_path / "evaluated")
    tuned = [read_results(tmp_path / name).metrics["tuned"] for name in ("run", "evaluated")]
    assert tuned[0]["accuracy"] == tuned[1]["accuracy"]


TEXTS = ("${x}", "\\${x}", "\\\\\\${oc.env:HOME}", "$", "a\x85b", "a\u2028b \u2029c", "1e3", "{x: 1}", "größer", "\a\n")


def test_every_text_of_a_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    for text in TEXTS:
        config = config_of()
        config.prompt.system, config.model.path = text, f"{text}/m"
        save_config(tmp_path, config)
        assert saved_by(tmp_path) == config


def tracker(save_dir: str, uri: str) -> CSVLogger:
    (Path(save_dir) / "proof").write_text(uri)
    return CSVLogger(save_dir, name="tracker", version="")


def test_brackets_are_never_read_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the names of folders and files, in questions, options and the names of models."""
    odd = [
        replace(q, question=f"[/b] {q.question} :smile:", options=tuple(f"[red]{o}[/]" for o in q.options))
        for q in sample_questions(48)
    ]
    file, run = questions_file(tmp_path / "q[i]:x:.json", odd), tmp_path / "x[/b]y:smile:"
    train(small("data=mcq", f"data.path='{file}'", "optim.learning_rate=1e-3"), run)
    told = capsys.readouterr().out
    assert all(words in told for words in (f"Folder {run}\n", f"Files: {run}\n", "[/b]", ":smile:"))
    evaluate(scoring(f"runs=['{run}',tiny_random]", f"data.path='{file}'", "data=mcq"), tmp_path / "[evaluated]")
    told = capsys.readouterr().out
    assert f"Model {run.name}: adapter {run}" in told and f"Files: {tmp_path / '[evaluated]'}\n" in told


def test_max_steps_before_the_first_validation_still_has_an_objective(tmp_path: Path) -> None:
    objective = train(small("trainer.max_steps=1", "evaluation.base=false"), tmp_path / "run")
    assert objective == read_results(tmp_path / "run").validation["option_nll"] > 0
    assert read_results(tmp_path / "run").steps == 1


@pytest.mark.parametrize("method", ["sft", "lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_mixed_precision_trains_and_clips(method: str, tmp_path: Path) -> None:
    """bf16-mixed is the default on a GPU; here it runs on the CPU."""
    overrides = (f"method={method}", "trainer.precision=bf16-mixed", "optim.max_grad_norm=0.1", "trainer.max_steps=3")
    train(small(*overrides, "evaluation.generate=false"), tmp_path / "run")
    base, tuned = (read_results(tmp_path / "run").metrics[name]["gold_nll"].value for name in ("base", "tuned"))
    assert tuned is not None and base is not None and tuned < base


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for name in ("false", "true"):
        overrides = ("trainer.max_steps=2", f"trainer.gradient_checkpointing={name}", "evaluation.generate=false")
        train(small(*overrides), tmp_path / name)
    plain, checkpointed = (read_results(tmp_path / name).metrics["tuned"]["gold_nll"] for name in ("false", "true"))
    assert plain.value == pytest.approx(checkpointed.value, abs=1e-5)

"""A run on a mixture: accuracy of each source, resumed and scored again with the sources that it was trained with."""

import json
import signal
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from support import RUN, config_of, evaluation_of, short_questions, train_tiny
from training_support import repeatable_rows, with_callback

from cyberlm.data.benchmarks import trained_on_benchmarks
from cyberlm.data.splits import read_manifest
from cyberlm.evaluation.results import read_models, read_results
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.train import train
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.files import sha256_of
from cyberlm.runtime.signals import Stopped, handled

FEW = ("data.max_train=24", "data.max_test=null", "evaluation=default", "evaluation.generate=false")


MIX = ("data.mix=[sample,mine]", "data.weights=[1,3]", *FEW)


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sample questions and three times as many of a user's own."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "data").mkdir()
    rows = [{"question": q.question, "options": q.options, "answer": q.letter} for q in short_questions(120)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "data" / "mine.yaml").write_text(f"name: mine\npath: {folder}/q.jsonl\nlicence: MIT\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", f"--config-dir={folder}"])
        return train_tiny(folder / "run", *MIX)


def test_accuracy_is_reported_by_source_and_over_all(mixed_run: Path, tmp_path: Path) -> None:
    results = read_results(mixed_run)
    parts = read_manifest(mixed_run / "split_manifest.json")["parts"]
    trained = [row["source"] for row in parts["train"]]
    assert (trained.count("sample"), trained.count("mine")) == (6, 18)
    for model, its in read_models(mixed_run).items():
        metrics = results.metrics[model]
        for name in ("sample", "mine"):
            own = [row.correct for row in its.test if row.id.startswith(f"{name}:")]
            assert metrics[f"accuracy_{name}"].value == pytest.approx(sum(own) / len(own))
            assert metrics[f"accuracy_{name}"].n == len(own) > 20 and metrics[f"accuracy_{name}"].interval
        assert metrics["accuracy"].n == len(its.test)
    assert results.data == "sample+mine"
    assert "accuracy on mine" in (mixed_run / "report.html").read_text()
    # scored again from its own configuration
    evaluate(evaluation_of(f"run={mixed_run}", "evaluation.generate=false"), tmp_path / "again")
    again = read_results(tmp_path / "again").metrics["tuned"]
    assert again["accuracy_mine"] == results.metrics["tuned"]["accuracy_mine"]


def test_a_mixture_that_was_stopped_goes_on_without_its_yaml_files(mixed_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={mixed_run.parent}"])
    with pytest.raises(Stopped), handled():
        train(with_callback(config_of(*RUN, *MIX), "Kill", signum=int(signal.SIGTERM), batch=4), tmp_path / "run")
    typed = [f"trainer.resume={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": typed}}))
    train(config_of(*typed), tmp_path / "run")
    assert repeatable_rows(tmp_path / "run") == repeatable_rows(mixed_run)
    assert read_models(tmp_path / "run")["tuned"].test == read_models(mixed_run)["tuned"].test


def test_benchmarks_in_the_cache_are_compared_with_what_is_trained_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={tmp_path}"])
    asked = short_questions(9)
    assert trained_on_benchmarks(asked, 0.8) == {}
    known = cache_folder() / "known.tsv"
    known.parent.mkdir()
    known.write_text("Text\tKey\n" + "".join(f"{q.question.upper()}\tA\n" for q in asked[:4]) + "Another one?\tB\n")
    (tmp_path / "data").mkdir()
    pinned = f"address: https://nowhere/known.tsv, sha256: {sha256_of([known])}"
    source = f"data: {{name: known, {pinned}, columns: {{question: Text, answer: Key}}}}\n"
    (tmp_path / "data" / "known.yaml").write_text(
        f"# @package _global_\ndefaults: [override /task: extraction]\n{source}"
    )
    assert trained_on_benchmarks(asked, 0.8) == {"known": (4, 5)}
    assert trained_on_benchmarks(asked[5:], 0.8) == {"known": (0, 5)}
    assert trained_on_benchmarks(asked, 0.8, {sha256_of([known])}) == {}, "the run's own file"
    known.write_text("another file")
    assert trained_on_benchmarks(asked, 0.8) == {}

"""Run folders that an earlier version wrote are evaluated, exported and resumed as they were then."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support import compose, config_of, evaluation_of

from cyberlm.config.commands import ExportConfig, ExportForm
from cyberlm.config.rules import build_config
from cyberlm.config.schema import Monitor, TrainConfig
from cyberlm.evaluation.results import read_predictions, read_results
from cyberlm.evaluation.verdict import verdict
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.export import export
from cyberlm.runs.recompute import show_recomputed
from cyberlm.runs.train import train
from cyberlm.training.callbacks.resuming import BestWeights, EarlyStopping
from cyberlm.training.checkpointing import read_checkpoint

SAVED = Path(__file__).parents[1] / "saved_runs"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders where they were written, in outputs/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(SAVED, "outputs"))


@pytest.mark.parametrize("run", ["lora", "qlora", "sft"])
def test_a_saved_run_answers_as_it_did(run: str, outputs: Path) -> None:
    evaluate(evaluation_of(f"run={outputs / run}", "evaluation.max_new_tokens=8"), outputs / "again")
    saved, found = (read_predictions(outputs / folder / "predictions.jsonl") for folder in (run, "again"))
    assert found.keys() == saved.keys() == {"base", "tuned"}
    for name in saved:
        for one, other in zip(found[name], saved[name], strict=True):
            assert (one.hash, one.choice, one.generated) == (other.hash, other.choice, other.generated)
            assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-4)
        then, now = (read_results(outputs / folder).metrics[name] for folder in (run, "again"))
        assert now["accuracy"] == then["accuracy"]
        assert now["gold_nll"].value == pytest.approx(then["gold_nll"].value, abs=1e-4)
    if run != "qlora":
        folder = export(ExportConfig(run=str(outputs / run), to=ExportForm.merged, accelerator="cpu"))
        assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("folder", ["lora", "qlora", "sft", "evaluation"])
def test_saved_figures_are_read(folder: str, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = read_results(outputs / folder)
    assert set(results.metrics) == set(results.models) == {"base", "tuned"}
    assert results.comparisons[0].n == 8 and verdict(results.comparisons)
    show_recomputed(outputs / folder)
    assert "accuracy, likelihood" in (outputs / folder / "report.html").read_text("utf-8")
    assert "was not written" not in capsys.readouterr().out


def test_a_stopped_run_ends_as_the_unbroken_one_did(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": ["trainer.resume=x"]}}))
    best = BestWeights(outputs, Monitor.accuracy)
    best.on_load_checkpoint(None, None, read_checkpoint(outputs / "stopped" / "checkpoints" / "step_000018.ckpt"))
    assert best.figures == {"accuracy": 0.25}
    config = config_of()
    config.trainer.resume = str(outputs / "stopped")
    train(config, outputs / "stopped")
    results = read_results(outputs / "stopped")
    assert (results.monitor, results.objective) == ("accuracy", results.validation["accuracy"]), "as before the monitor"
    both = ("unbroken", "stopped")
    whole, again = (load_file(outputs / name / "adapter/adapter_model.safetensors") for name in both)
    torch.testing.assert_close(again, whole, atol=1e-6, rtol=0)
    tables = [list(csv.DictReader((outputs / name / "metrics.csv").read_text().splitlines())) for name in both]
    for key in ("train/loss", "val/accuracy", "val/nll"):
        whole, again = ({int(row["step"]): float(row[key]) for row in table if row[key]} for table in tables)
        assert again == pytest.approx(whole, abs=1e-5), key


def test_a_target_by_its_older_name_is_the_class_of_today() -> None:
    """Configurations name classes by the modules where they once were; what is another's keeps its name."""
    older = (
        "+logger.mlflow._target_=cyberlm.loggers.mlflow_logger",
        "+callbacks.stop._target_=cyberlm.callbacks.EarlyStopping",
    )
    config = build_config(compose(*older, "+callbacks.own._target_=cyberlm_loggers.Own", "callbacks=none"), TrainConfig)
    assert config.logger["mlflow"]["_target_"] == "cyberlm.training.loggers.mlflow_logger"
    assert get_class(config.callbacks["stop"]["_target_"]) is EarlyStopping
    assert config.callbacks["own"]["_target_"] == "cyberlm_loggers.Own"

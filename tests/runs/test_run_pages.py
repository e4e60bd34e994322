"""report.html of finished runs and evaluations: written by each command, never at the cost of its results."""

from dataclasses import replace
from pathlib import Path

from support import compose, config_of, train_tiny

from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.pages import run_page
from cyberlm.evaluation.results import read_results
from cyberlm.runs.pages import changed_settings, command_of
from cyberlm.runs.recompute import recompute


def test_a_run_writes_its_page_with_settings_that_differ_from_the_defaults(lora_run: Path) -> None:
    text = (lora_run / "report.html").read_text("utf-8")
    for heading in ("What ran", "Results on the test questions", "Learning curves", "Reliability", "Letters", "Cost"):
        assert f"{heading}<" in text
    assert len(text) < 600_000
    assert "optim.learning_rate" in text and "0.01" in text  # not the default
    found = {key: (here, default) for key, here, default in changed_settings(config_of("optim.learning_rate=3e-4"))}
    assert found["optim.learning_rate"] == ("0.0003", "0.0002")
    assert found["prompt.name"] == ('"letter"', '"text"') and "optim.beta1" not in found
    assert changed_settings(build_config(compose(), TrainConfig)) == []


def test_a_page_that_cannot_be_made_costs_no_result(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(*_: object) -> str:
        raise ValueError("no such font")

    monkeypatch.setattr(run_page, "run_page", broken)
    folder = train_tiny(tmp_path / "run", "method=lora", "evaluation=default", "trainer.max_steps=1")
    said = " ".join(capsys.readouterr().out.split())
    assert "report.html was not written (ValueError: no such font)" in said
    assert "python -m cyberlm recompute" in said
    assert not (folder / "report.html").exists() and recompute(folder) == []


def test_the_command_that_repeats_a_run(lora_run: Path, tmp_path: Path) -> None:
    def repeated(typed: str) -> str:
        return command_of(tmp_path, replace(read_results(lora_run), provenance={"command": typed}))

    quoted = "train.py method=lora 'data.path=my file.csv'"
    assert repeated(quoted) == f"python {quoted}"
    module = "python -m cyberlm train"
    assert repeated("__main__.py seed=1 --config-dir mine") == f"{module} seed=1 --config-dir mine"
    assert repeated("cyberlm seed=1 hydra.run.dir=outputs/x group=s") == f"{module} seed=1"
    (tmp_path / ".hydra").mkdir()  # a resumed run is repeated as it began
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=3\n- data.dir=${oc.env:HOME}\n", "utf-8")
    assert repeated("train.py trainer.resume=outputs/run") == "python train.py seed=3 'data.dir=${oc.env:HOME}'"

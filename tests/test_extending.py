"""Methods, tasks, metrics and data sources from a folder of a user's own: nothing in the package changed."""

import json
import re
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import TINY, compose
from transformers import AutoModelForCausalLM

from cyberlm.config.commands import ExportConfig, ExportForm
from cyberlm.config.rules import build_config
from cyberlm.config.saved import config_of
from cyberlm.config.schema import EvaluateConfig, Monitor, TrainConfig
from cyberlm.evaluation.results import read_predictions, read_results
from cyberlm.evaluation.scoring import eval_mode
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.export import export
from cyberlm.runs.open_run import load_tuned
from cyberlm.runs.recompute import recompute
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, DataError
from cyberlm.tasks.task import make_task

IDS = torch.arange(5, 45)[None]

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text("utf-8")
FILES = dict(re.findall(r"`my_conf/([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
"""What the page has its readers write, by path."""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on Hydra's search path (`--config-dir`) and on that of Python."""
    folder = tmp_path / "my_conf"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, *names: str, **texts: str) -> None:
    """Files of the page, and `texts` under names with __ for / and _yaml for .yaml."""
    named = {name.replace("__", "/").replace("_yaml", ".yaml"): text for name, text in texts.items()}
    for name, text in {**{name: FILES[name] for name in names}, **named}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def composed(folder: Path, *overrides: str, command: str = "train"):
    return compose(f"hydra.searchpath=[file://{folder}]", *overrides, command=command)


def again(folder: Path, run: Path) -> Path:
    """Scores the run once more."""
    asked = composed(folder, "logger=none", "trainer.accelerator=cpu", f"run={run}", command="evaluate")
    evaluate(build_config(asked, EvaluateConfig), run.parent / "again")
    return run.parent / "again"


FEW = ("data.max_train=32", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false")


def test_a_method(own_folder: Path, tmp_path: Path) -> None:
    write(own_folder, "my_methods.py", "method/norms.yaml")
    config = build_config(composed(own_folder, *TINY, "method=norms", *FEW, "optim.learning_rate=0.05"), TrainConfig)
    run = tmp_path / "run"
    train(config, run)
    assert {file.name for file in (run / "adapter").glob("*.safetensors")} == {"norms.safetensors"}
    assert len(load_file(run / "adapter" / "norms.safetensors")) == 5  # two in each of two blocks, and the last one
    card = (run / "adapter" / "README.md").read_text()
    assert "- method: norms" in card and "- suffix: norm.weight" in card and "library_name: cyberlm" in card

    first, second = (read_predictions(folder / "predictions.jsonl") for folder in (run, again(own_folder, run)))
    assert first["base"] != first["tuned"]
    for name in ("base", "tuned"):
        for one, other in zip(first[name], second[name], strict=True):
            assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-6)

    out = export(ExportConfig(run=str(run), to=ExportForm.merged, accelerator="cpu"))
    assert json.loads((out / "export.json").read_text())["agreement"][0]["flips"] == []
    tuned = load_tuned(config_of(run), run, torch.device("cpu"))
    with eval_mode(tuned.model), torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(merged(input_ids=IDS).logits, tuned.model(input_ids=IDS).logits)


ADVISORIES = "Id,Text,Severity\n" + "".join(
    f"{k},{word} of component {k} in module {k * 7 % 31},{('low', 'medium', 'high')[k % 3]}\n"
    for k, word in enumerate(["typo", "crash", "remote code execution"] * 20)
)


def test_a_task_and_a_data_source(own_folder: Path, tmp_path: Path) -> None:
    """Three classes: trained on, scored by likelihood over the classes, generated and parsed, reported."""
    write(own_folder, "my_tasks.py", "task/severity.yaml")
    source = FILES["data/advisories.yaml"].replace("FOLDER", str(own_folder))
    write(own_folder, data__advisories_yaml=source.replace("SHA256", sha256(ADVISORIES.encode()).hexdigest()))
    (own_folder / "advisories.csv").write_text(ADVISORIES)
    fast = (
        "trainer.max_epochs=4",
        "optim.learning_rate=1e-2",
        "data.micro_batch_size=4",
        "evaluation.max_new_tokens=8",
    )
    config = build_config(composed(own_folder, *BARE, "task=severity", "data=advisories", *fast), TrainConfig)
    assert config.trainer.monitor is Monitor.accuracy
    run = tmp_path / "run"
    train(config, run)
    tuned = read_predictions(run / "predictions.jsonl")["tuned"]
    assert {row.n_options for row in tuned} == {3} and {row.reference for row in tuned} == {"low", "medium", "high"}
    assert sum(row.choice == row.gold for row in tuned) > len(tuned) / 2
    assert sum(row.parsed == row.gold for row in tuned) > len(tuned) / 2
    assert read_results(run).metrics["tuned"]["accuracy_generation"].value is not None
    assert "advisories" in (run / "adapter" / "README.md").read_text()
    answers = {row.hash: (row.generated, row.choice) for row in tuned}
    scored = read_predictions(again(own_folder, run) / "predictions.jsonl")["tuned"]
    assert {row.hash: (row.generated, row.choice) for row in scored} == answers


BARE = [item for item in TINY if not item.startswith("prompt=")]


def test_what_cannot_be_used_says_why(own_folder: Path, tmp_path: Path) -> None:
    write(own_folder, "my_tasks.py", "task/severity.yaml")
    file = own_folder / "q.csv"
    many = f"task.labels=[{','.join(f'cwe{k}' for k in range(27))}]"
    for content, settings, words in (
        ("text,severity\na,low\nb,dire\n", [], r"row 2 \(line 3\): severity is 'dire'; allowed: low, medium, high"),
        ("text,level\na,low\nb,low\n", [], "every row: there is no field 'severity'"),
        ("text,severity\na,cwe1\nb,cwe2\n", [many], "every row: the task gives 27 candidates; allowed: 2 to 26"),
    ):
        file.write_text(content)
        typed = composed(own_folder, *BARE, "task=severity", "data=mcq", f"data.path={file}", *settings)
        with pytest.raises(DataError, match=words):
            train(build_config(typed, TrainConfig), tmp_path / "run")
    for target, words in (
        ("nowhere.Task", "No module named 'nowhere'"),
        ("my_tasks.Gone", "Are you sure that 'Gone' is importable"),
        ("collections.Counter", "it has no read"),
    ):
        config = build_config(composed(own_folder, *TINY, f"task._target_={target}"), TrainConfig)
        with pytest.raises(ConfigError, match=words):
            make_task(config)
    # a method
    write(own_folder, "my_methods.py", "method/norms.yaml")
    write(own_folder, method__typo_yaml="_target_: my_methods.Normz\nname: typo\n")
    for overrides, words in ((("method=typo",), "my_methods.Normz"), (("method=norms", "quant=nf4"), "quant=none")):
        config = build_config(composed(own_folder, *TINY, *FEW, *overrides), TrainConfig)
        with pytest.raises(ConfigError, match=words):
            train(config, tmp_path / "run")


def test_a_metric(own_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own_folder, "my_metrics.py", "metrics/mine.yaml")
    run = tmp_path / "run"
    train(build_config(composed(own_folder, *TINY, "metrics=[default,mine]", "report=full", *FEW), TrainConfig), run)
    third = sum(row.choice == 2 for row in read_predictions(run / "predictions.jsonl")["tuned"])
    found = read_results(run).metrics["tuned"]
    assert (found["one_option"].value, found["one_option"].n) == (third / 8, 8) and "accuracy" in found
    assert recompute(run) == []
    assert "one_option" in (run / "adapter" / "README.md").read_text() and "one_option" in capsys.readouterr().out
    asked = composed(own_folder, "logger=none", f"run={run}", "metrics=mine", command="evaluate")
    asked.trainer.accelerator = "cpu"
    (own_folder / "my_metrics.py").unlink()
    sys.modules.pop("my_metrics")
    with pytest.raises(ConfigError, match=r"metrics\.mine"):
        evaluate(build_config(asked, EvaluateConfig), tmp_path / "again")

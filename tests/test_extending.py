"""What others add from a folder of their own: one module and one YAML file each, and nothing in the package changed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import torch
from safetensors.torch import load_file
from support import TINY
from transformers import AutoModelForCausalLM

from cyberlm.config.commands import ExportConfig, ExportForm, register_schemas
from cyberlm.config.compose import conf_folder
from cyberlm.config.rules import build_config
from cyberlm.config.saved import config_of
from cyberlm.config.schema import EvaluateConfig, TrainConfig
from cyberlm.evaluation.results import read_predictions
from cyberlm.evaluation.scoring import answering
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.export import export
from cyberlm.runs.open_run import load_tuned
from cyberlm.runs.run_folder import register_resolvers
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError

IDS = torch.arange(5, 45)[None]

NORMS = '''
"""LayerNorm tuning (arXiv 2312.11420): the weights of the norms are trained, and nothing else."""

import contextlib

from safetensors.torch import load_file, save_file


class Norms:
    trains_all_weights, keeps_base, allows_4bit, can_merge = False, True, False, True

    def __init__(self, config):
        self.suffix = config.settings["suffix"]

    def norms(self, loaded):
        return {name: p for name, p in loaded.causal.named_parameters() if name.endswith(self.suffix)}

    def attach(self, loaded):
        loaded.causal.requires_grad_(False)
        loaded.causal.of_base = {name: p.detach().clone() for name, p in self.norms(loaded).items()}
        for norm in self.norms(loaded).values():
            norm.requires_grad_(True)
        return loaded

    @contextlib.contextmanager
    def base_view(self, loaded):
        tuned = {name: p.data for name, p in self.norms(loaded).items()}
        for name, p in self.norms(loaded).items():
            p.data = loaded.causal.of_base[name]
        yield
        for name, p in self.norms(loaded).items():
            p.data = tuned[name]

    def save(self, loaded, folder):
        save_file({name: p.detach().clone() for name, p in self.norms(loaded).items()}, folder / "norms.safetensors")

    def load(self, base, folder):
        for name, value in load_file(folder / "norms.safetensors").items():
            base.loaded.causal.get_parameter(name).data = value
        return base.loaded

    merge = load
'''


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


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yaml", ".yaml").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def composed(folder: Path, *overrides: str, command: str = "train"):
    register_schemas()
    register_resolvers()
    path = f"hydra.searchpath=[file://{folder}]"
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra.compose(command, [path, *overrides])


FEW = ("data.max_train=32", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false")


def test_a_method(own_folder: Path, tmp_path: Path) -> None:
    write(own_folder, my_methods_py=NORMS)
    settings = "_target_: my_methods.Norms\nname: norms\nlearning_rate: 1e-2\nsettings: {suffix: norm.weight}\n"
    write(own_folder, method__norms_yaml=settings)
    config = build_config(composed(own_folder, *TINY, "method=norms", *FEW, "optim.learning_rate=0.05"), TrainConfig)
    run = tmp_path / "run"
    train(config, run)
    assert {file.name for file in (run / "adapter").glob("*.safetensors")} == {"norms.safetensors"}
    assert len(load_file(run / "adapter" / "norms.safetensors")) == 5  # two in each of two blocks, and the last one
    card = (run / "adapter" / "README.md").read_text()
    assert "- method: norms" in card and "- suffix: norm.weight" in card and "library_name: cyberlm" in card

    asked = composed(own_folder, "logger=none", "trainer.accelerator=cpu", f"run={run}", command="evaluate")
    evaluate(build_config(asked, EvaluateConfig), tmp_path / "again")
    first, again = (read_predictions(folder / "predictions.jsonl") for folder in (run, tmp_path / "again"))
    assert first["base"] != first["tuned"]
    for name in ("base", "tuned"):
        for one, other in zip(first[name], again[name], strict=True):
            assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-6)

    out = export(ExportConfig(run=str(run), to=ExportForm.merged, accelerator="cpu"))
    assert json.loads((out / "export.json").read_text())["agreement"][0]["flips"] == []
    tuned = load_tuned(config_of(run), run, torch.device("cpu"))
    with answering(tuned.model), torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(merged(input_ids=IDS).logits, tuned.model(input_ids=IDS).logits)


def test_a_method_that_cannot_be_used_says_why(own_folder: Path, tmp_path: Path) -> None:
    write(own_folder, my_methods_py=NORMS)
    write(own_folder, method__norms_yaml="_target_: my_methods.Norms\nname: norms\nsettings: {suffix: norm.weight}\n")
    write(own_folder, method__typo_yaml="_target_: my_methods.Normz\nname: typo\n")
    for overrides, words in ((("method=typo",), "my_methods.Normz"), (("method=norms", "quant=nf4"), "quant=none")):
        config = build_config(composed(own_folder, *TINY, *FEW, *overrides), TrainConfig)
        with pytest.raises(ConfigError, match=words):
            train(config, tmp_path / "run")

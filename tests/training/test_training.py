"""Training does what it says: it overfits, follows a frozen curve, resumes, and its loss is the plain one."""

import copy
import csv
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
import lightning.pytorch as L
import pytest
import torch
from bitsandbytes.optim import PagedAdamW8bit
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from support import SHORT, config_of, fit_tiny, short_questions, tiny
from torch import nn
from torch.optim import Optimizer
from transformers import LlamaForCausalLM

from cyberlm.config.schema import Monitor, OptimizerName, OptionScore
from cyberlm.data.batches import AnswerCollator, plan_epoch
from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.metrics.calibration import option_nll
from cyberlm.evaluation.predictions import golds
from cyberlm.evaluation.scores import scores_of
from cyberlm.models.loaded import trainable_names
from cyberlm.models.loading import load_tokenizer
from cyberlm.runs.train import train
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.prompts import Prompt
from cyberlm.training.callbacks.resuming import BestWeights
from cyberlm.training.checkpointing import AtomicCheckpointIO, damage
from cyberlm.training.fit import restore
from cyberlm.training.lightning_module import FineTuningModule
from cyberlm.training.losses import answer_nll_sum, step_loss
from cyberlm.training.optim import build_optimizer

METHODS = ("sft", "lora", "qlora")


@pytest.mark.parametrize("method", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "qlora"))])
def test_tiny_llama_overfits_32_questions(method: str, tmp_path: Path) -> None:
    rate, epochs = (3e-3, 40) if method == "sft" else (4e-3, 70)
    longer = (f"optim.learning_rate={rate}", "optim.schedule=linear", f"trainer.max_epochs={epochs}")
    _, figures, _ = fit_tiny(config_of(f"method={method}", *longer, *SHORT), short_questions(32), tmp_path)
    assert figures["accuracy"] == 1.0


def curve(method: str, folder: Path, *overrides: str) -> list[float]:
    """Training loss of each of 8 optimizer steps."""
    config = config_of(f"method={method}", "trainer.max_epochs=2", "optim.learning_rate=1e-3", *SHORT, *overrides)
    fit_tiny(config, short_questions(32), folder)
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


FROZEN = {
    "sft": [6.2277541, 4.8159924, 3.7245119, 3.5840821, 3.1522536, 2.9224076, 3.0075307, 2.7806671],
    "lora": [6.2277541, 6.2014017, 5.0179515, 5.0542054, 4.645865, 4.415844, 4.4702945, 4.2176571],
    "qlora": [6.2327638, 5.9961829, 4.9251065, 4.8373775, 4.5238891, 4.3030629, 4.3009176, 4.1179538],
}


@pytest.mark.parametrize("method", METHODS)
def test_loss_curve_is_frozen(method: str, tmp_path: Path) -> None:
    assert curve(method, tmp_path) == pytest.approx(FROZEN[method], abs=1e-5)


def test_dropout_is_active_in_training(tmp_path: Path) -> None:
    """transformers loads in eval mode; B is zero in the first step, and has moved after it."""
    first = curve("lora", tmp_path, "method.lora.dropout=0.9")
    assert first[0] == pytest.approx(FROZEN["lora"][0], abs=1e-5)
    assert first[3] != pytest.approx(FROZEN["lora"][3], abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "steps", "validated"),
    [
        ((), [0, 1, 2, 3], [1, 3]),
        (("trainer.log_every_n_steps=3",), [1, 2, 3], [1, 3]),
        (("trainer.max_steps=1",), [0], [0]),
    ],
)
def test_a_row_of_metrics_holds_all_that_is_known_at_its_step(
    overrides: tuple[str, ...], steps: list[int], validated: list[int], tmp_path: Path, capsys
) -> None:
    """Two epochs of two steps: a row for each logged step, and for each that validation follows, which is told too."""
    config = config_of("method=lora", "trainer.max_epochs=2", "optim.schedule=linear", *SHORT, *overrides)
    _, figures, _ = fit_tiny(config, short_questions(16), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == steps
    assert [int(row["step"]) for row in rows if row["val/option_nll"]] == validated
    told = re.findall(r"Validation after step (\d): accuracy .+%, option NLL \d\.\d{3}", capsys.readouterr().out)
    assert told == [str(step + 1) for step in validated]
    for row in rows:
        assert all(row[f"train/{name}"] for name in ("loss", "gradient_norm", "learning_rate"))
        assert float(row["train/tokens_per_second"]) > 0 and float(row["train/peak_memory_gib"]) > 0
        assert int(row["epoch"]) == int(row["step"]) // 2
    if len(steps) == 4:  # no warm-up step: each step's own rate, before the schedule moves on
        rates = [float(row["train/learning_rate"]) / config.optim.learning_rate for row in rows]
        assert rates == pytest.approx([1, 0.75, 0.5, 0.25])
    assert figures["accuracy"] in [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]


@pytest.mark.parametrize(("method", "length"), [("sft", "max_steps=1"), ("qlora", "max_epochs=2")])
def test_nothing_moves_the_model_to_the_cpu(method: str, length: str, tmp_path: Path, monkeypatch) -> None:
    """In a whole run: base scored, trained, validated (by itself too), saved, tuned model scored and answering."""
    moves: list[str] = []
    for name in ("cpu", "to"):
        original = getattr(nn.Module, name)

        def moved(self, *arguments, _original=original, _name=name, **keywords):
            if any(isinstance(part, LlamaForCausalLM) for part in self.modules()):
                moves.append(f"{type(self).__name__}.{_name}")
            return _original(self, *arguments, **keywords)

        monkeypatch.setattr(nn.Module, name, moved)
    sizes = ("data.max_train=16", "data.max_validation=8", "data.max_test=8", "evaluation.max_new_tokens=2")
    train(config_of(f"method={method}", *sizes, f"trainer.{length}", *SHORT), tmp_path / "run")
    loading = {"LlamaForCausalLM.to"}  # a random model, once: to the run's device
    assert set(moves) <= loading | {"FineTuningModule.to"}  # Lightning, before training: to the device that it is on


def test_the_model_stays_on_its_device_when_training_ends() -> None:
    """On torch's device without memory, a copy to the CPU is an error."""
    config = config_of("method=lora", *SHORT)
    loaded, _ = tiny(config)
    loaded.model.to("meta")
    own = {"accelerator": CPUAccelerator(), "checkpoint_io": AtomicCheckpointIO()}
    for ended in (SingleDeviceStrategy(**own), DDPStrategy(**own, cluster_environment=LightningEnvironment())):
        ended.connect(FineTuningModule(loaded, config.optim, config.evaluation.option_score))
        ended.teardown()
        assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}


def test_optimizer_states_go_with_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[list[Optimizer]] = []
    name = "lightning.pytorch.strategies.strategy._optimizers_to_device"
    monkeypatch.setattr(name, lambda optimizers, _: moved.append(list(optimizers)))
    fit_tiny(config_of("method=sft", *SHORT), short_questions(8), tmp_path)
    assert [len(optimizers) for optimizers in moved] == [1, 0]  # before training to the device, behind it nothing


def test_the_loss_of_a_step_is_the_mean_over_all_its_labels() -> None:
    """Of answers of many lengths in four micro-batches; tests/models/test_families.py has the sum of a batch."""
    loaded, prompt = tiny(config_of("method=sft", "prompt=text", "prompt.system=", "prompt.question='{question}'"))
    encoded = prompt.encode(short_questions(12))
    answers = [[*item.option_ids[item.gold], *prompt.end_ids] for item in encoded]
    labels, collator = sum(map(len, answers)), AnswerCollator(prompt.end_ids, share_prefix=True)
    losses, expected = [], torch.zeros(())
    for k in range(0, 12, 3):
        examples = collator((encoded[k : k + 3], labels))
        losses.append(step_loss(answer_nll_sum(loaded, examples), examples, 4) / 4)
    for item, answer in zip(encoded, answers, strict=True):
        logits = loaded.causal(input_ids=torch.tensor([[*item.prompt_ids, *answer]])).logits[0]
        log_probs = logits[len(item.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = expected - log_probs[range(len(answer)), answer].sum() / labels
    torch.testing.assert_close(sum(losses), expected, atol=1e-5, rtol=0)
    found, references = (torch.autograd.grad(loss, loaded.causal.parameters()) for loss in (sum(losses), expected))
    torch.testing.assert_close(found, references, atol=1e-5, rtol=1e-4)


def test_accumulation_does_not_change_a_run(tmp_path: Path) -> None:
    """8 questions at once, or 4 times 2 that make up the same step: the same weights, also in a last partial step."""
    questions = short_questions(8)
    weights = []
    for size, accumulate in ((8, 1), (2, 4), (2, 8)):
        sizes = (f"data.micro_batch_size={size}", f"trainer.accumulate_grad_batches={accumulate}")
        config = config_of("method=sft", "trainer.max_epochs=3", "optim.learning_rate=1e-3", *sizes, *SHORT)
        loaded, _, steps = fit_tiny(config, questions, tmp_path / f"{size}_{accumulate}")
        assert steps == 3
        weights.append(torch.cat([parameter.detach().flatten() for parameter in loaded.causal.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=0)
    torch.testing.assert_close(weights[0], weights[2], atol=2e-5, rtol=0)


def test_the_longest_questions_come_first_and_little_is_padded() -> None:
    lengths = [20 + (k * 37) % 200 for k in range(2000)]
    first, second = (plan_epoch(lengths, [2] * 2000, 8, accumulate=4, seed=3, epoch=epoch) for epoch in (0, 1))
    assert max(lengths) in [lengths[row] for row in first[0].rows]
    assert first == plan_epoch(lengths, [2] * 2000, 8, accumulate=4, seed=3, epoch=0) != second
    assert sum(lengths) / sum(len(batch.rows) * max(lengths[row] for row in batch.rows) for batch in second) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_hold_what_trains(method: str, tmp_path: Path) -> None:
    """best.ckpt the weights alone; its file opens when it holds more, as older ones do."""
    config = config_of(f"method={method}", *SHORT)
    loaded, _, _ = fit_tiny(config, short_questions(16), tmp_path)
    file = tmp_path / "checkpoints" / "best.ckpt"
    saved = torch.load(file, weights_only=True)
    assert set(saved["state_dict"]) == {f"model.{name}" for name in trainable_names(loaded.model)}
    assert method == "sft" or all("lora_" in name for name in saved["state_dict"])
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & set(saved)
    module = FineTuningModule(tiny(config)[0], config.optim, config.evaluation.option_score)
    older = {**saved, "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [], "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(older, tmp_path / "older.ckpt")
    restore(module, tmp_path / "older.ckpt")
    for name, value in loaded.model.named_parameters():
        torch.testing.assert_close(module.model.get_parameter(name), value, atol=0, rtol=0)
    with pytest.raises(RunError, match="does not fit this model"):
        module.check_names({"state_dict": {"model.other": torch.zeros(1)}})


def test_checkpoints_are_mapped_not_read(tmp_path: Path) -> None:
    """Opened, a file of 64 MiB takes no memory of its own; and what is changed in memory does not change the file."""
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(2**24)}}, tmp_path / "large.ckpt")
    before = private_bytes()
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "large.ckpt", weights_only=True)
    assert private_bytes() - before < 2**23
    checkpoint["state_dict"]["w"][0] = 5.0
    assert damage(tmp_path / "large.ckpt") == ""


def private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_paged_optimizer_states_are_paged_again_when_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU bitsandbytes pages nothing: a buffer that says it is paged stands for one."""
    pages: list[torch.Tensor] = []

    def get_paged(self, parameter, dtype=torch.float32):
        pages.append(torch.zeros_like(parameter, dtype=dtype))
        pages[-1].is_paged = True
        return pages[-1]

    optim = replace(config_of("method=sft").optim, name=OptimizerName.paged_adamw_8bit)
    layer = nn.Linear(64, 128)
    optimizer = build_optimizer(layer, optim, fused=False)
    layer(torch.randn(3, 64)).sum().backward()
    with pytest.warns(UserWarning, match="Paged optimizers are not supported on CPU"):
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    again = build_optimizer(layer, optim, fused=False)
    monkeypatch.setattr(PagedAdamW8bit, "get_state_buffer", get_paged)
    again.load_state_dict(saved)
    _optimizers_to_device([again], torch.device("cpu"))  # as Lightning does behind it
    layer.zero_grad()
    again.step()
    states = [again.state[parameter][name] for parameter in layer.parameters() for name in ("state1", "state2")]
    assert len(pages) == 4 and {id(state) for state in states} == {id(page) for page in pages}
    assert again.state[layer.weight]["state1"].dtype == torch.uint8
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(again.state[parameter][name]), torch.as_tensor(value)), name


class Planted(L.LightningModule):
    """Validates after each of its steps, with figures given beforehand."""

    def __init__(self, figures: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.figures = figures

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        accuracy, nll = self.figures[self.trainer.global_step - 1]
        self.log_dict({"val/accuracy": accuracy, "val/option_nll": nll}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("monitor", "figures", "chosen"),
    [
        ("option_nll", [(0.25, 1.4), (0.50, 1.3), (0.75, 1.5)], 2),  # the most accurate one is over-confident
        ("accuracy", [(0.25, 1.4), (0.50, 1.3), (0.75, 1.5)], 3),
        ("accuracy", [(0.50, 1.4), (0.50, 1.2), (0.50, 1.3)], 2),  # of equal accuracies the lowest NLL
        ("option_nll", [(0.25, 1.3), (0.75, 1.3), (0.50, 1.3)], 2),
        ("option_nll", [(0.25, 1.3), (0.25, 1.3), (0.25, 1.3)], 1),  # alike in both
        ("option_nll", [(0.75, NAN), (0.25, 1.9), (0.75, NAN)], 2),  # a model that has diverged is never the best
        ("accuracy", [(0.50, NAN), (0.50, 1.9), (0.25, 1.0)], 2),
    ],
)
def test_the_monitored_figure_chooses_and_equals_go_by_the_other(
    monitor: str, figures: list[tuple[float, float]], chosen: int, tmp_path: Path
) -> None:
    best = BestWeights(tmp_path, Monitor[monitor])
    loader = torch.utils.data.DataLoader(torch.ones(len(figures), 1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    with warnings.catch_warnings(action="ignore"):  # of a machine that has srun, too
        trainer = L.Trainer(max_epochs=1, val_check_interval=1, num_sanity_val_steps=0, callbacks=[best], **quiet)
        trainer.fit(Planted(figures), loader, torch.utils.data.DataLoader(torch.ones(1, 1)))
    assert torch.load(best.file, weights_only=True)["global_step"] == chosen
    assert (best.figures["accuracy"], best.figures["option_nll"]) == pytest.approx(figures[chosen - 1])
    entry = config_of("callbacks=early_stopping", f"trainer.monitor={monitor}").callbacks["early_stopping"]
    stopping = hydra.utils.instantiate(entry, _convert_="all")
    assert (stopping.monitor, stopping.mode) == (f"val/{monitor}", "max" if monitor == "accuracy" else "min")


@pytest.mark.parametrize(("prompt", "how"), [("letter", "per_token"), *(("text", how.name) for how in OptionScore)])
def test_option_nll_is_that_of_the_evidence(prompt: str, how: str, tmp_path: Path) -> None:
    """Against softmax and logarithm of scipy, from the predictions of the same weights."""
    short = SHORT if prompt == "letter" else ("prompt.system=", "prompt.question='{question}'")
    config = config_of("method=lora", f"prompt={prompt}", f"evaluation.option_score={how}", *short)
    questions = short_questions(16)
    loaded, figures, _ = fit_tiny(config, questions, tmp_path)
    prompted = Prompt(config.prompt, load_tokenizer(config.model))
    evaluation = replace(config.evaluation, generate=False)
    rows = predict(loaded, prompted, questions, prompted.encode(questions), evaluation, 4096, "kept")
    expected = option_nll(scores_of(rows, config.evaluation.option_score), golds(rows)).mean()
    assert figures["option_nll"] == pytest.approx(expected, abs=1e-5)


def test_srun_that_is_installed_brings_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning advises every process that it has not started to use it."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.warns(PossibleUserWarning, match="srun"):
        SLURMEnvironment.detect()
    fit_tiny(config_of("method=lora", "trainer.max_steps=1", *SHORT), short_questions(4), tmp_path / "run")

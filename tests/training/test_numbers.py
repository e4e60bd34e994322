"""Numbers that go wrong: a NaN stops the run before it does harm and can be made again; the rest is warned of once."""

import csv
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import SHORT, config_of, fit_tiny, sample_questions, short_questions, tiny
from torch.nn.utils import get_total_norm
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from training_support import run_config, with_callback

from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime.errors import RunError
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.callbacks.numbers import BAD_BATCH, LearningWatch
from cyberlm.training.checkpointing import damage
from cyberlm.training.lightning_module import FineTuningModule
from cyberlm.training.losses import answer_nll_sum


def stopped(folder: Path, *overrides: str, **poison: Any) -> str:
    """The screen of a run with a poisoned micro-batch."""
    config = with_callback(run_config("lora", *overrides), "Poison", **poison)
    with pytest.raises(RunError) as caught:
        fit_tiny(config, short_questions(32), folder)
    return caught.value.screen()


def test_a_loss_that_is_no_number_stops_and_comes_again_from_the_file(tmp_path: Path) -> None:
    screen = stopped(tmp_path, batch=6)
    assert screen.startswith("The loss is nan in optimizer step 5; the step was not taken.")
    assert "the weights were not finite before it" in screen and str(tmp_path / BAD_BATCH) in screen
    newest = max((tmp_path / "checkpoints").glob("step_*.ckpt"))
    assert newest.name == "step_000005.ckpt" and damage(newest) == ""
    weights = torch.load(newest, weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())

    saved = load_file(tmp_path / BAD_BATCH)
    with safe_open(tmp_path / BAD_BATCH, "pt") as file:
        about = file.metadata()
    assert (about["step"], about["seed"], about["what"], about["batches"]) == ("5", "0", "loss", "1")
    loaded, _ = tiny(run_config("lora"))
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad:
            parameter.data = saved[f"weights.model.{name}"]
    parts = [saved[f"batch0.{name}"] for name in AnswerBatch._fields]
    batch = AnswerBatch(*(part if part.dim() else int(part) for part in parts))
    torch.set_rng_state(saved["batch0.random_cpu"])
    assert not torch.isfinite(answer_nll_sum(loaded, batch))


@pytest.mark.parametrize(
    ("gradient", "message", "batches"),
    [
        (False, "The loss is nan in optimizer step 1; the step was not taken.", 1),  # the micro-batch that is wrong
        (True, "The gradient norm is nan in optimizer step 1; the step was not taken.", 4),
    ],
)
def test_a_step_that_is_no_number_is_saved(gradient: bool, message: str, batches: int, tmp_path: Path) -> None:
    screen = stopped(tmp_path, "trainer.accumulate_grad_batches=4", batch=6, gradient=gradient)
    assert screen.startswith(message) and ("the weights were finite" in screen) == gradient
    found = {name.partition(".")[0] for name in load_file(tmp_path / BAD_BATCH)}
    assert found == {"weights", *(f"batch{k}" for k in range(batches))}
    (tmp_path / "full" / BAD_BATCH).mkdir(parents=True)  # safetensors then fails as on a full disk: by its own error
    screen = stopped(tmp_path / "full", batch=1, gradient=gradient)
    assert screen.startswith(message.replace("step 1", "step 0")) and f"{BAD_BATCH} could not be written" in screen


class Waits(TorchDispatchMode):
    """Where a tensor's value is read on the host, in training steps alone: on a GPU each of them waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.training = False
        self.found: list[list[str]] = []
        for name in ("tolist", "numpy"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, lambda t, _o=original, _n=name, **k: (self.note(_n), _o(t, **k))[1])

    def note(self, what: str) -> None:
        if self.training:
            stack = traceback.extract_stack()[:-1]
            frame = [f for f in stack if f.filename != __file__ and "/torch/" not in f.filename][-1]
            self.found[-1].append(f"{what} in {Path(frame.filename).name}:{frame.name}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        reads = name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
        masked = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        if reads or masked:
            self.note(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["sft", "lora", "lora method.lora.dropout=0.1 prompt.system="])
def test_the_host_waits_once_a_step(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three micro-batches a step, with all callbacks of a run: once, for the numbers of the step."""
    waits = Waits(monkeypatch)
    start, end = CostMeter.on_train_batch_start, FineTuningModule.on_train_batch_end

    def begin(self, trainer, module, batch, batch_idx):
        if batch_idx % 3 == 0:
            waits.found.append([])
        waits.training = True
        start(self, trainer, module, batch, batch_idx)

    def finish(self, *given):  # behind those of all callbacks
        waits.training = False
        end(self, *given)

    monkeypatch.setattr(CostMeter, "on_train_batch_start", begin)
    monkeypatch.setattr(FineTuningModule, "on_train_batch_end", finish)
    sizes = ("trainer.accumulate_grad_batches=3", "data.micro_batch_size=2", "trainer.log_every_n_steps=1")
    with waits:
        fit_tiny(config_of(*f"method={method}".split(), *sizes), sample_questions(18), tmp_path)
    assert waits.found == [["tolist in step_totals.py:reduce"]] * 3


def test_the_norm_that_is_logged_is_the_one_that_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file, the norm before clipping; the gradients that the optimizer gets have at most `max_grad_norm`."""
    norms: list[float] = []

    class Stepped(AdamW):
        def step(self, closure=None):
            loss = closure()
            norms.append(float(get_total_norm([p.grad for group in self.param_groups for p in group["params"]])))
            super().step()
            return loss

    monkeypatch.setattr("cyberlm.training.optim.torch.optim.AdamW", Stepped)
    clipped = config_of("method=lora", "optim.max_grad_norm=0.25", "trainer.log_every_n_steps=1", *SHORT)
    fit_tiny(clipped, short_questions(16), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    logged = [float(row["train/gradient_norm"]) for row in rows if row["train/gradient_norm"]]
    assert len(logged) == len(norms) == 2 and min(logged) > 0.25
    assert norms == pytest.approx([0.25, 0.25], rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "warmup", "exploded"),
    [
        ([1.0] * 30 + [5.0] * 6, 0.0, True),
        ([1.0] * 30 + [5.0] * 6, 0.4, False),  # in warm-up
        ([1.0] * 30 + [50.0] + [1.0] * 6, 0.0, True),  # one step of ten times the mean moves the mean of five
        ([1.0] * 30 + [9.0] + [1.0] * 6, 0.0, False),  # a single bad batch
        ([1.0] * 10 + [5.0] * 6, 0.0, False),  # too early to tell
        ([0.01] * 30 + [0.2] * 20, 0.0, False),  # noise of a loss near 0
        ([6.0 - 0.1 * k for k in range(50)], 0.0, False),
        ([1.0 + k % 3 for k in range(90)], 0.0, False),
    ],
)
def test_a_loss_that_explodes_is_said_once(losses: list[float], warmup: float, exploded: bool, caplog) -> None:
    watch, optim = LearningWatch(), SimpleNamespace(warmup_fraction=warmup)
    trainer = SimpleNamespace(accumulate_grad_batches=1, is_last_batch=False, estimated_stepping_batches=100)
    for step, loss in enumerate([*losses, *losses] if exploded else losses):
        trainer.global_step = step + 1
        module = SimpleNamespace(totals=SimpleNamespace(loss=loss), optim=optim)
        watch.on_train_batch_end(trainer, module, None, None, step)
    assert caplog.text.count("The loss has exploded") == exploded


def findings(right: list[int], asked: int, answers: list[int]) -> list[str]:
    watch = LearningWatch()
    watch.validations = [[count, asked] for count in right]
    watch.options, watch.answers = [4] * asked, answers
    watch.golds = [k % 4 for k in range(asked)]
    return watch.findings({"option_nll": 1.4567})


def test_chance_and_a_constant_answer_are_said() -> None:
    mixed = [k % 3 for k in range(40)]
    assert findings([10, 20], 40, mixed) == []
    (chance,) = findings([10, 14], 40, mixed)  # p = 0.10 for 14 of 40, twice that for the better of two
    assert chance.startswith("Validation accuracy stayed at chance: at best 14 of 40 right, where guessing gives 25%")
    assert chance.endswith("p = 0.21). The option NLL of the weights that are kept is 1.46, that of guessing 1.39.")
    constant = findings([10], 40, [2] * 40)
    assert len(constant) == 2 and "one answer to all 40 questions: option C" in constant[1]


def test_a_run_that_learns_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_tiny(run_config("lora", "optim.learning_rate=1e-9"), short_questions(32), tmp_path)
    assert caplog.text.count("Validation accuracy stayed at chance") == 1

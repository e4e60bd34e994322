"""Numbers that go wrong: a NaN stops before it does harm and can be made again; what is doubtful is said, once."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from resume_support import run_config
from safetensors import safe_open
from safetensors.torch import load_file
from support import fit_tiny, short_questions, tiny

from cyberlm.callbacks import LearningWatch
from cyberlm.callbacks.numbers import BAD_BATCH
from cyberlm.checkpoints import damage
from cyberlm.errors import RunError
from cyberlm.losses import AnswerBatch, answer_nll_sum, hidden_states

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers deprecates a name that peft still uses
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch and Lightning deprecate each other's names
]


class Poison(L.Callback):
    """Makes one trained weight infinite before a micro-batch, or a gradient NaN after its backward pass."""

    def __init__(self, batch: int, gradient: bool) -> None:
        self.batch, self.gradient = batch, gradient
        self.count = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.count += 1
        if self.count == self.batch and not self.gradient:
            next(p for p in pl_module.parameters() if p.requires_grad).data.view(-1)[0] = float("inf")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.count == self.batch and self.gradient:
            next(p for p in pl_module.parameters() if p.requires_grad).grad.view(-1)[0] = float("nan")


def stopped(folder: Path, gradient: bool, *overrides: str) -> str:
    config = run_config("lora", *overrides)
    config.callbacks["poison"] = {"_target_": "test_numbers.Poison", "batch": 6, "gradient": gradient}
    with pytest.raises(RunError) as caught:
        fit_tiny(config, short_questions(32), folder)
    return caught.value.screen()


def test_a_loss_that_is_no_number_stops_and_comes_again_from_the_file(tmp_path: Path) -> None:
    screen = stopped(tmp_path, gradient=False)
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
    names = ("prefix_ids", "input_ids", "attention_mask", "answer_index", "targets")
    batch = AnswerBatch(*(saved[f"batch0.{name}"] for name in names), int(saved["batch0.step_label_tokens"]))
    torch.set_rng_state(saved["batch0.random_cpu"])
    hidden = hidden_states(loaded.backbone, loaded.causal.config, batch)
    assert not torch.isfinite(answer_nll_sum(hidden, loaded.head, batch))


def test_a_gradient_that_is_no_number_stops_with_all_batches_of_the_step(tmp_path: Path) -> None:
    screen = stopped(tmp_path, True, "trainer.accumulate_grad_batches=4")
    assert screen.startswith("The gradient norm is nan in optimizer step 1; the step was not taken.")
    assert "the weights were finite" in screen
    saved = load_file(tmp_path / BAD_BATCH)
    assert {name.partition(".")[0] for name in saved} == {"batch0", "batch1", "batch2", "batch3", "weights"}


# ------------------------------------------------------------------------------------------------ what is said


class Told:
    """What a trainer tells the watch about one step; the losses are given."""

    accumulate_grad_batches, is_last_batch, estimated_stepping_batches = 1, False, 100

    def __init__(self) -> None:
        self.global_step = 0
        self.callback_metrics: dict[str, torch.Tensor] = {}


def watch_losses(losses: list[float], warmup: float = 0.0) -> LearningWatch:
    batch = AnswerBatch(*(torch.ones(2, 2, dtype=torch.long) for _ in range(5)), 4)
    watch, trainer = LearningWatch(warmup), Told()
    for step, loss in enumerate(losses):
        trainer.global_step = step + 1
        trainer.callback_metrics["train/loss"] = torch.tensor(loss)
        watch.on_train_batch_end(trainer, None, None, batch, step)
    return watch


@pytest.mark.parametrize(
    ("losses", "exploded"),
    [
        ([1.0] * 30 + [5.0] * 6, True),
        ([1.0] * 30 + [50.0] + [1.0] * 6, True),  # one step that is ten times the mean moves the mean of five
        ([1.0] * 30 + [9.0] + [1.0] * 6, False),  # a single bad batch
        ([1.0] * 10 + [5.0] * 6, False),  # too early to tell
        ([0.01] * 30 + [0.2] * 20, False),  # noise of a loss near 0
        ([6.0 - 0.1 * k for k in range(50)], False),
        ([1.0 + k % 3 for k in range(90)], False),
    ],
)
def test_a_loss_that_explodes_is_said_once(
    losses: list[float], exploded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watch_losses([*losses, *losses] if exploded else losses)
    assert caplog.text.count("The loss has exploded") == exploded


def test_warm_up_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    watch_losses([1.0] * 30 + [5.0] * 6, warmup=0.4)
    assert caplog.text == ""


def findings(right: list[int], asked: int, answers: list[int]) -> list[str]:
    watch = LearningWatch(0.0)
    watch.validations = [[count, asked] for count in right]
    watch.chances, watch.answers = [0.25] * asked, answers
    watch.golds = [k % 4 for k in range(asked)]
    return watch.findings()


def test_chance_and_a_constant_answer_are_said() -> None:
    mixed = [k % 3 for k in range(40)]
    assert findings([10, 20], 40, mixed) == []
    (chance,) = findings([10, 14], 40, mixed)  # p = 0.10 for 14 of 40, twice that for the better of two
    assert chance.startswith("Validation accuracy stayed at chance: at best 14 of 40 right, where guessing gives 25%")
    assert chance.endswith("p = 0.21).")
    constant = findings([10], 40, [2] * 40)
    assert len(constant) == 2 and "one answer to all 40 questions: option C" in constant[1]


def test_a_run_that_learns_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_tiny(run_config("lora", "optim.learning_rate=1e-9"), short_questions(32), tmp_path)
    assert caplog.text.count("Validation accuracy stayed at chance") == 1

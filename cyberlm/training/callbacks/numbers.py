"""Numbers that go wrong in training: what cannot go on stops, what is doubtful is said (docs/reliability.md)."""

import contextlib
import logging
import math
import statistics
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor
from torch.distributed.tensor import DTensor

from cyberlm.data.batches import AnswerBatch, ScoringBatch
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import LETTERS
from cyberlm.training.callbacks.steps import StepNumbers, ends_step

BAD_BATCH = "bad_batch.safetensors"

EXPLODED = 3.0
"""A loss that exploded is more than this many times the median before it, ..."""
EXPLODED_NATS = 1.0
"""... and higher by at least this many nats a token, so that the noise of a loss near 0 is not one."""
RECENT_STEPS, BEFORE_STEPS = 5, 50
"""The mean of the last steps is held against the median of those before them (fewer than 20 of these say nothing)."""
LEAST_BEFORE = 20
CHANCE_P = 0.05
"""Validation is better than chance where the exact one-sided binomial test says so at this level."""

log = logging.getLogger(__name__)


class FiniteNumbers(L.Callback):
    """Stops before an optimizer step with a loss or a gradient that is NaN or infinite, and saves what made it so.

    Right before the step its numbers are read, all at once: the only time in a step that the host waits for the device.
    All processes of a run stop together, and the first saves what all of them had.

    Args:
        folder: Of the run.
        seed: Of the run, for the record.
        numbers: Written here.
    """

    def __init__(self, folder: Path, seed: int, numbers: StepNumbers) -> None:
        self.folder, self.seed, self.numbers = folder, seed, numbers
        self.window: list[tuple[AnswerBatch, dict[str, Tensor]]] = []
        self.losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.window.clear()
            self.losses.clear()
        self.window.append((batch, _random_states()))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.losses.append(pl_module.loss_share)  # type: ignore[arg-type]  # torch types modules' attributes

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        norm: Tensor = pl_module.gradient_norm()  # type: ignore[operator]
        read = torch.stack([*self.losses, _whole(norm).float()]).tolist()
        *losses, norms = distributed.all_reduce(*read)  # not finite where one process's is not
        self.numbers.loss, self.numbers.gradient_norm = sum(losses), norms / distributed.world_size()
        bad = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            self.window = [self.window[bad]]
            self._stop(trainer, pl_module, "loss", losses[bad])
        # a scaler meets infinite gradients as a matter of course, and skips them
        if not math.isfinite(norms) and trainer.precision != "16-mixed":
            self._stop(trainer, pl_module, "gradient norm", norms)

    def _stop(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str, value: float) -> None:
        file = self.folder / BAD_BATCH
        step = trainer.global_step
        trained = [(name, _whole(p.detach())) for name, p in pl_module.named_parameters() if p.requires_grad]
        window = [parts for each in distributed.all_gather(list(map(_parts, self.window))) for parts in each]
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            if distributed.rank() == 0:
                tensors = {f"weights.{name}": p for name, p in trained}
                tensors |= {f"batch{k}.{name}": part for k, parts in enumerate(window) for name, part in parts.items()}
                about = {"step": step, "seed": self.seed, "what": what, "value": value, "batches": len(window)}
                save_file({name: t.cpu().contiguous().clone() for name, t in tensors.items()}, file, _strings(about))
        broken = [name for name, p in trained if not torch.isfinite(p).all()]
        why = f"the weights were not finite before it, for example {broken[0]}" if broken else "the weights were finite"
        saved = f"{file} holds the batch, the weights and the random state that make it so"
        raise RunError(
            f"The {what} is {value} in optimizer step {step}; the step was not taken.",
            [Problem(why), Problem(saved if file.is_file() else f"{file} could not be written")],
            "The last good checkpoint stays, but going on from it would meet the same batch. Start again with a lower "
            "optim.learning_rate, a longer optim.warmup_fraction, or trainer.precision=32-true.",
        )


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the processes; called by all of them."""
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def _parts(taken: tuple[AnswerBatch, dict[str, Tensor]]) -> dict[str, Tensor]:
    batch, states = taken
    return {name: torch.as_tensor(part).cpu() for name, part in {**batch._asdict(), **states}.items()}


def _strings(about: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in about.items()}


def _random_states() -> dict[str, Tensor]:
    states = {"random_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random_cuda"] = torch.cuda.get_rng_state()
    return states


class LearningWatch(L.Callback):
    """Says once that the loss exploded; at the end, that accuracy stayed at chance or that all answers are the same.

    Args:
        numbers: Of the newest optimizer step.
        warmup_fraction: Share of the steps that are not looked at.
        share_validation: Whether each process validates on its share of the questions, or on all.
    """

    def __init__(self, numbers: StepNumbers, warmup_fraction: float, *, share_validation: bool = False) -> None:
        self.numbers, self.warmup_fraction, self.share_validation = numbers, warmup_fraction, share_validation
        self.losses: list[float] = []
        self.exploded = False
        self.validations: list[list[int]] = []
        """Of each validation: questions answered right, and questions."""
        self.chances: list[float] = []
        """1/options of each question of one validation."""
        self.answers: list[int] = []
        self.golds: list[int] = []
        self.batches: list[Tensor] = []
        """(3, B) of each batch of a validation: options chosen, right options, numbers of options."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "exploded": self.exploded, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.exploded = state_dict["losses"], state_dict["exploded"]
        self.validations = state_dict["validations"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        warmup = self.warmup_fraction * trainer.estimated_stepping_batches
        if not ends_step(trainer, batch_idx) or trainer.global_step <= warmup:
            return
        self.losses = [*self.losses, self.numbers.loss][-RECENT_STEPS - BEFORE_STEPS :]
        before, recent = self.losses[:-RECENT_STEPS], self.losses[-RECENT_STEPS:]
        if self.exploded or len(before) < LEAST_BEFORE:
            return
        usual, now = statistics.median(before), statistics.mean(recent)
        if now > EXPLODED * usual and now > usual + EXPLODED_NATS:
            self.exploded = True
            log.warning(
                "The loss has exploded: %.3g nats a token over the last %d optimizer steps (step %d), %.3g before. "
                "A lower optim.learning_rate is the usual remedy.",
                *(now, RECENT_STEPS, trainer.global_step, usual),
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: ScoringBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append(torch.stack([outputs, batch.gold, batch.option_mask.any(-1).sum(-1)]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.answers, self.golds, options = torch.cat(self.batches, dim=1).tolist()
        self.chances = [1 / count for count in options]
        if self.share_validation:
            shares = distributed.all_gather((self.chances, self.answers, self.golds))
            self.chances, self.answers, self.golds = (list(chain(*parts)) for parts in zip(*shares, strict=True))
        right = sum(answer == gold for answer, gold in zip(self.answers, self.golds, strict=True))
        self.validations.append([right, len(self.golds)])

    def conclude(self, figures: Mapping[str, float]) -> None:
        """Says what the whole of training showed; called once no more validation comes.

        Args:
            figures: By name, those of the validation that chose the weights.
        """
        for finding in self.findings(figures):
            log.warning("%s", finding)

    def findings(self, figures: Mapping[str, float]) -> list[str]:
        if not self.golds:  # a run that was resumed after its last validation has said it already
            return []
        found = []
        chance = statistics.mean(self.chances)
        right, asked = max(self.validations)
        # the best of several validations is held to a level divided by their number (Bonferroni)
        p_value = binomtest(right, asked, chance, alternative="greater").pvalue * len(self.validations)
        if p_value > CHANCE_P:
            found.append(
                f"Validation accuracy stayed at chance: at best {right} of {asked} right, where guessing gives "
                f"{chance:.0%} (one-sided exact test, p = {min(p_value, 1):.2g})."
            )
            if "option_nll" in figures:
                guessing = statistics.mean(-math.log(share) for share in self.chances)
                found[-1] += (
                    f" The option NLL of the weights that are kept is {figures['option_nll']:.3g}, "
                    f"that of guessing {guessing:.3g}."
                )
        if len(set(self.answers)) == 1 and len(set(self.golds)) > 1:
            letter = LETTERS[self.answers[0]]
            found.append(f"The last validation has one answer to all {asked} questions: option {letter}.")
        return found

"""Numbers that go wrong in training: a NaN stops the run, what is doubtful is warned of (docs/cluster.md)."""

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
from safetensors import SafetensorError
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor

from cyberlm.data.batches import AnswerBatch, ScoringBatch
from cyberlm.models.sharding import full_tensor
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import option_name
from cyberlm.training.callbacks.meters import ends_step

BAD_BATCH = "bad_batch.safetensors"

EXPLODED = 3.0
"""A loss that exploded is more than this many times the median before it, ..."""
EXPLODED_NATS = 1.0
"""... and higher by at least this many nats a token, so that the noise of a loss near 0 is not one."""
RECENT_STEPS, BEFORE_STEPS = 5, 50
"""The mean of the last steps is held against the median of those before them (fewer than 20 of these say nothing)."""
MIN_BEFORE = 20
CHANCE_P = 0.05
"""Validation is better than chance where the exact one-sided binomial test says so at this level."""

log = logging.getLogger(__name__)


class FiniteNumbers(L.Callback):
    """Stops before an optimizer step with a NaN or infinite loss or gradient, and saves the batches that caused it.

    All processes of a run stop together, and the first saves what all of them had.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.window: list[tuple[AnswerBatch, dict[str, Tensor]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: AnswerBatch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.window.clear()
        states = {"random_cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["random_cuda"] = torch.cuda.get_rng_state()
        self.window.append((batch, states))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        totals = pl_module.totals
        totals.reduce(full_tensor(pl_module.gradient_norm()))
        bad = next((k for k, loss in enumerate(totals.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            self.window = [self.window[bad]]
            self._stop(trainer, pl_module, "loss", totals.losses[bad])
        # a gradient scaler skips steps with infinite gradients
        if not math.isfinite(totals.gradient_norm) and trainer.precision != "16-mixed":
            self._stop(trainer, pl_module, "gradient norm", totals.gradient_norm)

    def _stop(self, trainer: L.Trainer, pl_module: Any, what: str, value: float) -> None:
        file = Path(trainer.default_root_dir) / BAD_BATCH
        step = trainer.global_step
        broken, kept = None, {}
        for name, p in ((name, p) for name, p in pl_module.named_parameters() if p.requires_grad):
            weights = full_tensor(p.detach())
            broken = broken if broken or torch.isfinite(weights).all() else name
            if not pl_module.loaded.sharded:  # else no process could hold them all
                kept[f"weights.{name}"] = weights
        own = [
            {name: torch.as_tensor(part).cpu() for name, part in {**batch._asdict(), **states}.items()}
            for batch, states in self.window
        ]
        window = list(chain(*distributed.all_gather(own)))
        if distributed.rank() == 0:
            kept |= {f"batch{k}.{name}": part for k, parts in enumerate(window) for name, part in parts.items()}
            about = {"step": step, "seed": self.seed, "what": what, "value": value, "batches": len(window)}
            metadata = {name: str(item) for name, item in about.items()}
            with contextlib.suppress(OSError, SafetensorError):  # a full disk must not hide what went wrong
                save_file({name: t.cpu().contiguous().clone() for name, t in kept.items()}, file, metadata)
        why = f"the weights were not finite before it, for example {broken}" if broken else "the weights were finite"
        held = "batch and the random state" if pl_module.loaded.sharded else "batch, the weights and the random state"
        saved = f"{file} holds the {held} that make it so"
        raise RunError(
            f"The {what} is {value} in optimizer step {step}; the step was not taken.",
            [Problem(why), Problem(saved if file.is_file() else f"{file} could not be written")],
            "The last good checkpoint stays, but resuming from it would reach the same batch. Start again with a lower "
            "optim.learning_rate, a longer optim.warmup_fraction, or trainer.precision=32-true.",
        )


class LearningWatch(L.Callback):
    """Warns of a loss that exploded; at the end, of accuracy that stayed at chance and of one answer to everything."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.exploded = False
        self.validations: list[list[int]] = []
        """Of each validation: questions answered right, and questions."""
        self.options: list[int] = []
        """Number of options of each question of the last validation."""
        self.answers: list[int] = []
        self.golds: list[int] = []
        self.batches: list[Tensor] = []
        """(3, B) of each batch of a validation: options chosen, right options, numbers of options."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "exploded": self.exploded, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        warmup = pl_module.optim.warmup_fraction * trainer.estimated_stepping_batches
        if not ends_step(trainer, batch_idx) or trainer.global_step <= warmup:
            return
        self.losses = [*self.losses, pl_module.totals.loss][-RECENT_STEPS - BEFORE_STEPS :]
        before, recent = self.losses[:-RECENT_STEPS], self.losses[-RECENT_STEPS:]
        if self.exploded or len(before) < MIN_BEFORE:
            return
        usual, now = statistics.median(before), statistics.mean(recent)
        if now > EXPLODED * usual and now > usual + EXPLODED_NATS:
            self.exploded = True
            log.warning(
                "The loss has exploded: %.3g nats a token over the last %d optimizer steps (step %d), %.3g before. "
                "A lower optim.learning_rate is the usual remedy.",
                *(now, RECENT_STEPS, trainer.global_step, usual),
            )

    def on_validation_start(self, *_: Any) -> None:
        self.batches = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: ScoringBatch, *_: Any
    ) -> None:
        self.batches.append(torch.stack([outputs, batch.gold, batch.option_mask.any(-1).sum(-1)]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        found: list[list[int]] = torch.cat(self.batches, dim=1).tolist()
        if pl_module.share_validation:
            found = [list(chain(*parts)) for parts in zip(*distributed.all_gather(found), strict=True)]
        self.answers, self.golds, self.options = found
        right = sum(answer == gold for answer, gold in zip(self.answers, self.golds, strict=True))
        self.validations.append([right, len(self.golds)])

    def findings(self, figures: Mapping[str, float]) -> list[str]:
        """Warnings at the end of training, from the figures of the validation that chose the weights."""
        # a run that was resumed after its last validation has said it already; of free answers there is no choice
        if not self.golds or set(self.options) == {1}:
            return []
        found = []
        chance = statistics.mean(1 / count for count in self.options)
        right, asked = max(self.validations)
        # the best of several validations is held to a level divided by their number (Bonferroni)
        p_value = binomtest(right, asked, chance, alternative="greater").pvalue * len(self.validations)
        if p_value > CHANCE_P:
            found.append(
                f"Validation accuracy stayed at chance: at best {right} of {asked} right, where guessing gives "
                f"{chance:.0%} (one-sided exact test, p = {min(p_value, 1):.2g})."
            )
            if "option_nll" in figures:
                guessing = statistics.mean(math.log(count) for count in self.options)
                found[-1] += (
                    f" The option NLL of the weights that are kept is {figures['option_nll']:.3g}, "
                    f"that of guessing {guessing:.3g}."
                )
        if len(set(self.answers)) == 1 and len(set(self.golds)) > 1:
            option = option_name(self.answers[0])
            found.append(f"The last validation has one answer to all {asked} questions: option {option}.")
        return found

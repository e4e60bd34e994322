"""Lightning callbacks that every run has: progress with ETA, what training costs, and the state of random numbers."""

import contextlib
import math
import random
import time
from typing import Any

import lightning.pytorch as L
import torch

from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.progress import Advance, track
from cyberlm.training.callbacks.steps import StepNumbers


class TrainingProgress(L.Callback):
    """Questions/s, tokens/s, loss and ETA of training.

    Args:
        questions: Training questions of one epoch.
        numbers: Of the newest optimizer step.
    """

    def __init__(self, questions: int, numbers: StepNumbers) -> None:
        self.questions, self.numbers = questions, numbers
        self.stack = contextlib.ExitStack()
        self.advance: Advance | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = int(trainer.num_training_batches)
        total = self.questions * (trainer.max_epochs or 1)
        if trainer.max_steps > 0:
            share = trainer.max_steps * trainer.accumulate_grad_batches / (batches * (trainer.max_epochs or 1))
            total = min(total, round(total * share))
        self.advance = self.stack.enter_context(track("Training", total, "questions"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        assert self.advance is not None
        loss = self.numbers.loss
        note = f"loss {loss:.3f}" if math.isfinite(loss) else ""
        questions, tokens = distributed.all_reduce(batch.questions, batch.tokens)
        self.advance(int(questions), int(tokens), note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stack.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stack.close()


class CostMeter(L.Callback):
    """Tokens and seconds of training steps; validation is left out of the seconds.

    Attributes:
        processed, nonpadding, label: Tokens so far, of all processes.
        seconds: From the start of the first batch, without validation.
    """

    def __init__(self) -> None:
        self.processed = self.nonpadding = self.label = 0
        self.seconds = 0.0
        self.started: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if self.started is None:
            self.started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        counts = distributed.all_reduce(batch.computed_tokens, batch.tokens, batch.targets.numel())
        processed, nonpadding, label = map(int, counts)
        self.processed += processed
        self.nonpadding += nonpadding
        self.label += label

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def _pause(self) -> None:
        if self.started is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.monotonic() - self.started
            self.started = None

    def state_dict(self) -> dict[str, Any]:
        running = time.monotonic() - self.started if self.started is not None else 0.0
        counts = {"processed": self.processed, "nonpadding": self.nonpadding, "label": self.label}
        return {**counts, "seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.processed, self.nonpadding = state_dict["processed"], state_dict["nonpadding"]
        self.label, self.seconds = state_dict["label"], state_dict["seconds"]


class RandomState(L.Callback):
    """Random numbers go on where the checkpoint left them, so that a resumed run draws the same dropout.

    Each process has numbers of its own: with the same ones, all would drop the same units.

    Args:
        seed: Where training starts from its beginning: whatever was done before it, it draws the same.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.restored is None:
            torch.manual_seed(self.seed + distributed.rank())
            random.seed(self.seed + distributed.rank())

    def state_dict(self) -> dict[str, Any]:
        """Of all processes: only what rank 0 returns is saved."""
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {"by_rank": distributed.all_gather(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["by_rank"]
        if len(states) != distributed.world_size():
            raise RunError(
                f"The checkpoint is of a run with trainer.devices={len(states)}; it cannot go on with "
                f"trainer.devices={distributed.world_size()}: its random numbers would be others."
            )
        self.restored = states[distributed.rank()]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if self.restored is not None:
            torch.set_rng_state(self.restored["torch"])
            random.setstate(self.restored["python"])
            if "cuda" in self.restored:
                torch.cuda.set_rng_state(self.restored["cuda"])
            self.restored = None

"""Lightning callbacks that measure training: progress with ETA, cost, and the rows of metrics.csv."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger

from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime.progress import Advance, track
from cyberlm.training.loggers import MetricsFile


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """True where the optimizer stepped on this micro-batch: the accumulation window is full, or the epoch ends."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


class CostMeter(L.Callback):
    """Progress of training on the terminal; its tokens, and its seconds without validation.

    Attributes:
        processed, nonpadding, label: Tokens so far, of all processes.
        seconds: From the start of the first batch, without validation.
    """

    def __init__(self) -> None:
        self.processed = self.nonpadding = self.label = 0
        self.seconds = 0.0
        self.started: float | None = None
        self.progress = contextlib.ExitStack()
        self.advance: Advance = lambda *_: None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        epochs = trainer.max_epochs or 1
        total = len(trainer.datamodule.train_questions) * epochs  # type: ignore[attr-defined]
        if trainer.max_steps > 0:
            share = trainer.max_steps * trainer.accumulate_grad_batches / (int(trainer.num_training_batches) * epochs)
            total = min(total, round(total * share))
        self.advance = self.progress.enter_context(track("Training", total, "questions"))

    def on_train_batch_start(self, *_: Any) -> None:
        if self.started is None:
            self.started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        step = pl_module.totals
        self.processed += step.computed_tokens
        self.nonpadding += step.tokens
        self.label += step.label_tokens
        self.advance(step.questions, step.tokens, f"loss {step.loss:.3f}")

    def on_validation_start(self, *_: Any) -> None:
        if self.started is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.monotonic() - self.started
            self.started = None

    def on_train_end(self, *_: Any) -> None:
        self.on_validation_start()
        self.progress.close()

    def on_exception(self, *_: Any) -> None:
        self.progress.close()

    def state_dict(self) -> dict[str, Any]:
        running = time.monotonic() - self.started if self.started is not None else 0.0
        counts = {"processed": self.processed, "nonpadding": self.nonpadding, "label": self.label}
        return {**counts, "seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class MetricRows(L.Callback):
    """Logs the numbers of every n-th optimizer step, and lets metrics.csv go on where the checkpoint left it.

    Lightning logs a step after the hooks in which checkpoints are written: a run killed in between and resumed would
    lack that row.

    Args:
        file: metrics.csv.
        loggers: The other loggers.
    """

    def __init__(self, file: MetricsFile, loggers: Sequence[Logger]) -> None:
        self.file, self.loggers = file, [file, *loggers]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if ends_step(trainer, batch_idx) and trainer.global_step % every == 0:
            row = {
                "train/loss": pl_module.totals.loss,
                "train/gradient_norm": pl_module.totals.gradient_norm,
                "epoch": trainer.current_epoch,
            }
            for logger in self.loggers:
                logger.log_metrics(row, trainer.global_step - 1)  # steps count from 0, as Lightning's own rows do

    def state_dict(self) -> dict[str, Any]:
        self.file.sync()
        return {"rows": self.file.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.file.keep(state_dict["rows"])

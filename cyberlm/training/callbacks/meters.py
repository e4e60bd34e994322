"""Lightning callbacks that measure training: progress with ETA, cost, and the rows of metrics.csv."""

import contextlib
import math
import resource
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger

from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime.progress import Advance, say, track
from cyberlm.training.loggers import MetricsFile


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """True where the optimizer stepped on this micro-batch: the accumulation window is full, or the epoch ends."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    """True where validation comes right after this micro-batch."""
    assert trainer.val_check_batch is not None
    return (batch_idx + 1) % trainer.val_check_batch == 0


def validation_figures(trainer: L.Trainer) -> dict[str, float]:
    """Every figure of the last validation, by name."""
    metrics = trainer.callback_metrics.items()
    return {name.removeprefix("val/"): float(value) for name, value in metrics if name.startswith("val/")}


def peak_host_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class CostMeter(L.Callback):
    """Progress of training on the terminal; its tokens, and its seconds without validation.

    Attributes:
        processed, nonpadding, label: Tokens so far, of all processes.
        questions: Trained on so far.
        seconds: From the start of the first batch, without validation.
    """

    def __init__(self) -> None:
        self.processed = self.nonpadding = self.label = self.questions = 0
        self.seconds = 0.0
        self.started: float | None = None
        self.validated = ""
        self.progress = contextlib.ExitStack()
        self.advance: Advance = lambda *_: None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        epochs = trainer.max_epochs or 1
        total = len(trainer.datamodule.train_questions) * epochs  # type: ignore[attr-defined]
        if trainer.max_steps > 0:
            share = trainer.max_steps * trainer.accumulate_grad_batches / (int(trainer.num_training_batches) * epochs)
            total = min(total, round(total * share))
        self.advance = self.progress.enter_context(track("Training", total - self.questions, "questions"))

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
        self.questions += step.questions
        self.advance(step.questions, step.tokens, f"loss {step.loss:.3f}{self.validated and f', val {self.validated}'}")

    def on_validation_start(self, *_: Any) -> None:
        if self.started is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.monotonic() - self.started
            self.started = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        figures = validation_figures(trainer)
        text = self.validated = f"NLL {figures['nll']:.3f}"
        if (accuracy := figures.get("accuracy")) is not None:
            text, self.validated = f"accuracy {accuracy:.1%}, option NLL {figures['option_nll']:.3f}", f"{accuracy:.1%}"
        say(f"Validation after step {trainer.global_step}: {text}")

    def on_train_end(self, *_: Any) -> None:
        self.on_validation_start()
        self.progress.close()

    def on_exception(self, *_: Any) -> None:
        self.progress.close()

    def elapsed(self) -> float:
        """Seconds until now, without validation."""
        return self.seconds + (time.monotonic() - self.started if self.started is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        counts = {"processed": self.processed, "nonpadding": self.nonpadding, "label": self.label}
        return {**counts, "questions": self.questions, "seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class MetricRows(L.Callback):
    """Logs every n-th optimizer step, and each that is validated; a resumed run continues metrics.csv.

    Lightning logs a step after the hooks in which checkpoints are written: a run killed in between and resumed would
    lack that row. Steps count from 0, as in Lightning's own rows. docs/results.md describes the figures.
    """

    def __init__(self, file: MetricsFile, loggers: Sequence[Logger], meter: CostMeter) -> None:
        self.file, self.loggers, self.meter = file, [file, *loggers], meter
        self.learning_rate = math.nan
        self.tokens, self.seconds = 0, 0.0

    def on_train_start(self, *_: Any) -> None:
        self.tokens, self.seconds = self.meter.nonpadding, self.meter.elapsed()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = trainer.global_step % every == 0 or validation_follows(trainer, batch_idx)
        if not ends_step(trainer, batch_idx) or not logged:
            return
        tokens, seconds = self.meter.nonpadding, self.meter.elapsed()
        # of the GPU, where one is in use
        memory = torch.cuda.max_memory_allocated() or peak_host_bytes()
        row = {
            "epoch": trainer.current_epoch,
            "train/loss": pl_module.totals.loss,
            "train/gradient_norm": pl_module.totals.gradient_norm,
            "train/learning_rate": self.learning_rate,
            "train/tokens_per_second": (tokens - self.tokens) / (seconds - self.seconds),
            "train/peak_memory_gib": memory / 2**30,
        }
        self.tokens, self.seconds = tokens, seconds
        self._log(row, trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log({f"val/{name}": value for name, value in validation_figures(trainer).items()}, trainer)

    def _log(self, row: dict[str, float], trainer: L.Trainer) -> None:
        for logger in self.loggers:
            logger.log_metrics(row, trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        self.file.sync()
        return {"rows": self.file.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.file.keep(state_dict["rows"])

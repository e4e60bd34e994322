"""Training metrics by optimizer step, written before the checkpoint that counts on them."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger

from cyberlm.data.batches import AnswerBatch
from cyberlm.training.callbacks.steps import StepNumbers, ends_step
from cyberlm.training.loggers import MetricsFile


class MetricRows(L.Callback):
    """Logs the numbers of every n-th optimizer step, and lets metrics.csv go on where the checkpoint left it.

    Lightning logs a step after the hooks in which checkpoints are written: a run killed in between and resumed would
    lack that row.

    Args:
        file: metrics.csv.
        loggers: The other loggers.
        every_n_steps: Optimizer steps between two rows.
        numbers: Of the newest step.
    """

    def __init__(self, file: MetricsFile, loggers: Sequence[Logger], every_n_steps: int, numbers: StepNumbers) -> None:
        self.file, self.loggers, self.every_n_steps = file, [file, *loggers], every_n_steps
        self.numbers = numbers

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            row = {
                "train/loss": self.numbers.loss,
                "train/gradient_norm": self.numbers.gradient_norm,
                "epoch": trainer.current_epoch,
            }
            for logger in self.loggers:
                logger.log_metrics(row, trainer.global_step - 1)  # steps count from 0, as Lightning's own rows do

    def state_dict(self) -> dict[str, Any]:
        self.file.sync()
        return {"rows": self.file.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.file.keep(state_dict["rows"])

"""When checkpoints are written, which one is the best, and what they hold besides Lightning's own state."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from cyberlm.config.schema import Monitor
from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime import distributed, signals
from cyberlm.training.callbacks.steps import ends_step
from cyberlm.training.checkpointing import BEST, ORIGIN, STEP_NAME, prune

MODES = {Monitor.option_nll: "min", Monitor.accuracy: "max"}


def validation_figures(trainer: L.Trainer) -> dict[str, float]:
    """Every figure of the last validation, by name."""
    metrics = trainer.callback_metrics.items()
    return {name.removeprefix("val/"): float(value) for name, value in metrics if name.startswith("val/")}


class BestWeights(ModelCheckpoint):
    """best.ckpt: the weights that did best in validation so far, and nothing that training needs to go on.

    Of two that are equal in the figure that is monitored, those better in the other are kept. Follows the run's folder
    where it is moved.

    Args:
        folder: Of the checkpoints.
        monitor: Figure that decides.
    """

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        super().__init__(
            dirpath=folder,
            filename=BEST,
            monitor=f"val/{monitor.name}",
            mode=MODES[monitor],
            save_weights_only=True,
            save_on_train_epoch_end=False,  # else val_check_interval=1 judges only an epoch's last validation
            enable_version_counter=False,
        )
        self.by = monitor
        self.figures: dict[str, float] = {}
        """Of the validation that chose best.ckpt."""

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if current is None:
            return False
        found = validation_figures(trainer)
        better = not self.best_k_models or self._rank(found) > self._rank(self.figures)
        if trainer.strategy.reduce_boolean_decision(better):
            self.figures = found
            return True
        return False

    def _rank(self, figures: Mapping[str, float]) -> tuple[float, float]:
        """Higher is better. Not a number is the worst; an older checkpoint, which holds no NLL, wins a tie."""
        nll, accuracy = figures.get(Monitor.option_nll.name, -math.inf), figures[Monitor.accuracy.name]
        low_nll = -math.inf if math.isnan(nll) else -nll
        return (low_nll, accuracy) if self.by is Monitor.option_nll else (accuracy, low_nll)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "figures": self.figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.figures = state_dict.get("figures", {})
        if not self.figures and state_dict["best_model_score"] is not None:  # of a time when accuracy alone decided
            self.figures = {Monitor.accuracy.name: float(state_dict["best_model_score"])}

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = dict(state_dict, dirpath=self.dirpath)
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = here(state_dict[name])
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(moved)


class EarlyStopping(callbacks.EarlyStopping):
    """Ends training when the figure that chooses the weights has stopped getting better.

    Args:
        monitor: `trainer.monitor`.
        patience: Validations without a better one before training ends.
    """

    def __init__(self, monitor: Monitor | str, patience: int) -> None:
        by = Monitor[monitor] if isinstance(monitor, str) else monitor
        super().__init__(monitor=f"val/{by.name}", mode=MODES[by], patience=patience)


class ResumePoints(Checkpoint):
    """step_<n>.ckpt: every n optimizer steps, every few minutes, at the end of each epoch, and when asked to stop.

    They are written between two optimizer steps only, and where validation follows a step, after it: Lightning would
    leave that validation out of a run that is resumed from before it. All processes of a run write, and leave, after
    the same step: where one of them is due to, or is asked.

    Args:
        folder: Of the checkpoints.
        every_n_steps: Optimizer steps between two.
        every_minutes: Wall time between two; None for no such rule.
        keep: How many stay.
        settings: The run's configuration by dotted key, kept in each checkpoint.
    """

    def __init__(
        self, folder: Path, every_n_steps: int, every_minutes: float | None, keep: int, settings: Mapping[str, str]
    ) -> None:
        self.folder, self.keep, self.settings = folder, keep, dict(settings)
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.due = False
        self.ended = False
        self.written = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.defer()
        trainer.should_stop |= self.ended
        self.written = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        minutes = (time.monotonic() - self.written) / 60
        late = self.every_minutes is not None and minutes >= self.every_minutes
        self.due = self.due or late or trainer.global_step % self.every_n_steps == 0
        assert trainer.val_check_batch is not None
        if (batch_idx + 1) % trainer.val_check_batch and not self._epoch_ends(trainer):
            self._save_or_leave(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not self._epoch_ends(trainer):
            self._save_or_leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.due = True
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.max_steps == -1 or last or self._training_ends(trainer):
            self._save_or_leave(trainer)
        # else after the next step: with max_steps, Lightning takes a run resumed from here for one that has ended

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.stop_deferring()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN] = {"settings": self.settings, "ended": trainer.should_stop}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.ended = checkpoint[ORIGIN]["ended"]

    def _epoch_ends(self, trainer: L.Trainer) -> bool:
        """Whether `on_train_epoch_end` comes next: after the last batch, the last step, or early stopping."""
        return trainer.is_last_batch or self._training_ends(trainer)

    def _training_ends(self, trainer: L.Trainer) -> bool:
        return trainer.should_stop or trainer.global_step == trainer.max_steps

    def _save_or_leave(self, trainer: L.Trainer) -> None:
        asked = signals.requested()
        due, stopping = distributed.all_reduce(self.due, asked is not None)
        if due or stopping:
            trainer.save_checkpoint(self.folder / STEP_NAME.format(trainer.global_step))
            if distributed.rank() == 0:
                prune(self.folder, self.keep)
            self.due, self.written = False, time.monotonic()
        if stopping:
            raise signals.Stopped(next(signum for signum in distributed.all_gather(asked) if signum is not None))

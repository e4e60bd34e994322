"""Lightning callbacks for checkpoints and resuming: best weights, resume points, early stopping, random state."""

import logging
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Checkpoint

from cyberlm.config.schema import Monitor, TrainerConfig
from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime import distributed, signals
from cyberlm.training.callbacks.meters import ends_step, validation_figures, validation_follows
from cyberlm.training.checkpointing import BEST_NAME, ORIGIN, STEP_NAME, prune

log = logging.getLogger(__name__)


class BestWeights(Checkpoint):
    """best.ckpt: the weights that did best in validation so far, and nothing that resuming needs.

    Args:
        monitor: Figure that decides; of two that are equal in it, those better in the other are kept.

    Attributes:
        figures: Of the validation that chose best.ckpt, by name; empty before the first.
    """

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        self.file, self.monitor = folder / BEST_NAME, monitor
        self.figures: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        found = validation_figures(trainer)
        better = not self.figures or self._rank(found) > self._rank(self.figures)
        if trainer.strategy.reduce_boolean_decision(better):
            self.figures = found
            trainer.save_checkpoint(self.file, weights_only=True)

    def _rank(self, figures: Mapping[str, float]) -> tuple[float, float]:
        """Higher is better. Not a number is the worst; an older checkpoint, which holds no NLL, wins a tie."""
        nll, accuracy = figures.get(Monitor.option_nll.name, -math.inf), figures.get(Monitor.accuracy.name, 0.0)
        low_nll = -math.inf if math.isnan(nll) else -nll
        return (low_nll, accuracy) if self.monitor is Monitor.option_nll else (accuracy, low_nll)

    def state_dict(self) -> dict[str, Any]:
        return {"figures": self.figures}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Reads its state under the longer names of older versions, too, the oldest of which know accuracy alone."""
        states = checkpoint["callbacks"].items()
        (state,) = (state for name, state in states if name.startswith(type(self).__name__))
        self.figures = state.get("figures", {})
        if not self.figures and state.get("best_model_score") is not None:
            self.figures = {Monitor.accuracy.name: float(state["best_model_score"])}


class EarlyStopping(callbacks.EarlyStopping):
    """Ends training when the figure that chooses the weights has stopped getting better.

    Args:
        patience: Validations without a better one before training ends.
    """

    def __init__(self, monitor: Monitor | str, patience: int) -> None:
        name = monitor if isinstance(monitor, str) else monitor.name
        mode = "max" if name == Monitor.accuracy.name else "min"
        super().__init__(monitor=f"val/{name}", mode=mode, patience=patience)


class ResumePoints(Checkpoint):
    """step_<n>.ckpt: every n optimizer steps, every few minutes, at the end of each epoch, and when asked to stop.

    They are written between two optimizer steps only, and where validation follows a step, after it: Lightning would
    leave that validation out of a run that is resumed from before it. All processes of a run write, and leave, after
    the same step: where one of them is due to, or is asked. Each holds the run's settings by dotted key.
    """

    def __init__(self, folder: Path, config: TrainerConfig, settings: Mapping[str, str]) -> None:
        self.folder, self.config, self.settings = folder, config, dict(settings)
        self.due = False
        self.ended = False
        self.written = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        signals.defer()
        trainer.should_stop |= self.ended
        self.written = time.monotonic()

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        minutes = (time.monotonic() - self.written) / 60
        every_minutes = self.config.checkpoint_every_minutes
        pl_module.totals.due = every_minutes is not None and minutes >= every_minutes

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self.due |= pl_module.totals.due or trainer.global_step % self.config.checkpoint_every_n_steps == 0
        if not validation_follows(trainer, batch_idx) and not self._epoch_ends(trainer):
            self._save_or_leave(trainer, pl_module.totals.stopping)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not self._epoch_ends(trainer):
            self._save_or_leave(trainer, _any_asked())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.due = True
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.max_steps == -1 or last or self._training_ends(trainer):
            self._save_or_leave(trainer, _any_asked())
        # else after the next step: with max_steps, Lightning takes a run resumed from here for one that has ended

    def on_train_end(self, *_: Any) -> None:
        signals.stop_deferring()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        steps = {"processes": distributed.world_size(), "accumulated": trainer.accumulate_grad_batches}
        checkpoint[ORIGIN] = {"settings": self.settings, "ended": trainer.should_stop, **steps}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Goes on at the same optimizer step, of which another number of processes has other micro-batches each."""
        origin = checkpoint[ORIGIN]
        self.ended = origin["ended"]
        if origin.get("processes", distributed.world_size()) == distributed.world_size():
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name, count in counts.items():
                counts[name] = -(-count // origin["accumulated"]) * trainer.accumulate_grad_batches
        if progress["is_last_batch"]:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            progress["current"] = dict.fromkeys(progress["current"], data.count_batches())

    def _epoch_ends(self, trainer: L.Trainer) -> bool:
        """True where `on_train_epoch_end` comes next: after the last batch, the last step, or early stopping."""
        return trainer.is_last_batch or self._training_ends(trainer)

    def _training_ends(self, trainer: L.Trainer) -> bool:
        return trainer.should_stop or trainer.global_step == trainer.max_steps

    def _save_or_leave(self, trainer: L.Trainer, stopping: bool) -> None:
        if self.due or stopping:
            trainer.save_checkpoint(self.folder / STEP_NAME.format(trainer.global_step))
            if distributed.rank() == 0:
                prune(self.folder, self.config.keep_checkpoints)
            self.due, self.written = False, time.monotonic()
        if stopping:
            asked = distributed.all_gather(signals.requested())
            raise signals.Stopped(next(signum for signum in asked if signum is not None))


def _any_asked() -> bool:
    """True in all processes where a signal has asked one of them to stop."""
    return any(distributed.all_reduce(signals.requested() is not None))


class RandomState(L.Callback):
    """Random numbers continue where the checkpoint left them, so that a resumed run draws the same dropout.

    Each process has numbers of its own: with the same ones, all would drop the same units.

    Args:
        seed: Of a training that starts from its beginning; earlier draws do not change it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored: dict[str, Any] | None = None

    def on_fit_start(self, *_: Any) -> None:
        if self.restored is None:
            torch.manual_seed(self.seed + distributed.rank())
            random.seed(self.seed + distributed.rank())

    def on_train_batch_start(self, *_: Any) -> None:
        if self.restored is not None:
            torch.set_rng_state(self.restored["torch"])
            random.setstate(self.restored["python"])
            if "cuda" in self.restored:
                torch.cuda.set_rng_state(self.restored["cuda"])
            self.restored = None

    def state_dict(self) -> dict[str, Any]:
        """Of all processes: only what rank 0 returns is saved."""
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {"by_rank": distributed.all_gather(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states, size = state_dict["by_rank"], distributed.world_size()
        if len(states) == size:
            self.restored = states[distributed.rank()]
        elif distributed.rank() == 0:
            log.warning(
                "The checkpoint is of %d processes, now there are %d: each optimizer step keeps its questions, but "
                "sums in another order and with other random numbers. The outcome is not the same to the last bit.",
                *(len(states), size),
            )

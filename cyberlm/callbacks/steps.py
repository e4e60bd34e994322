"""Where one optimizer step ends, and its loss over all of its micro-batches, those of all processes."""

import lightning.pytorch as L

from cyberlm import ranks
from cyberlm.losses import AnswerBatch


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped on this micro-batch: the accumulation window is full, or the epoch ends."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


class StepLoss:
    """The mean loss a trained token over an optimizer step, in nats.

    It holds nothing between two steps, and so needs no place in a checkpoint.
    """

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def add(self, trainer: L.Trainer, batch: AnswerBatch, batch_idx: int) -> float | None:
        """Takes a micro-batch in; returns the step's loss where it was the last one, else None.

        Every process gets the same number.
        """
        tokens = batch.targets.numel()
        self.total += float(trainer.callback_metrics["train/loss"]) * tokens
        self.tokens += tokens
        if not ends_step(trainer, batch_idx):
            return None
        total, counted = ranks.summed(self.total, self.tokens)
        self.total, self.tokens = 0.0, 0
        return total / counted

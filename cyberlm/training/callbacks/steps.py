"""Where one optimizer step ends, and its numbers, which are read from the device once."""

import math
from dataclasses import dataclass

import lightning.pytorch as L


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped on this micro-batch: the accumulation window is full, or the epoch ends."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


@dataclass
class StepNumbers:
    """Numbers of the newest optimizer step, the same in every process: `FiniteNumbers` writes them, others read them.

    Attributes:
        loss: Mean over the answer tokens of the step, those of all its micro-batches in all processes (nats).
        gradient_norm: Of all gradients together, before they are clipped.
    """

    loss: float = math.nan
    gradient_norm: float = math.nan

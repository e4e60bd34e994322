"""Sums over an optimizer step's micro-batches, of all processes."""

import math

import torch
from torch import Tensor

from cyberlm.data.batches import AnswerBatch
from cyberlm.runtime import distributed, signals


class StepTotals:
    """Sums of the newest optimizer step, made by one all-reduce right before the step is taken.

    It is the only collective of a step beside those of its gradients, and the only time that the host waits for the
    device.

    Attributes:
        losses: Each micro-batch's share in the loss, those of all processes together.
        loss: Mean over the answer tokens of the step (nats).
        questions, computed_tokens, tokens, label_tokens: As in `AnswerBatch`.
        due: True where a process has a checkpoint to write after this step; set by its own beforehand.
        stopping: True where a signal has asked a process to stop.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.loss = self.gradient_norm = math.nan
        self.questions = self.computed_tokens = self.tokens = self.label_tokens = 0
        self.due = self.stopping = False
        self._shares: list[Tensor] = []
        self._counts = [0, 0, 0, 0]

    def add(self, loss_share: Tensor, batch: AnswerBatch) -> None:
        """Counts a micro-batch of this process."""
        self._shares.append(loss_share)
        counts = (batch.questions, batch.computed_tokens, batch.tokens, batch.targets.numel())
        self._counts = [total + count for total, count in zip(self._counts, counts, strict=True)]

    def reduce(self, gradient_norm: Tensor) -> None:
        """Sums over the processes, which all call it; a loss or norm is not finite where one process's is not."""
        norm = gradient_norm.float().to(self._shares[0].device)  # of gradients that may lie in host memory
        read = torch.stack([*self._shares, norm]).tolist()
        flags = (self.due, signals.requested() is not None)
        *losses, norms, questions, computed, tokens, labels, due, stopping = distributed.all_reduce(
            *read, *self._counts, *flags
        )
        self.losses, self.loss, self.gradient_norm = losses, sum(losses), norms / distributed.world_size()
        self.questions, self.computed_tokens = int(questions), int(computed)
        self.tokens, self.label_tokens = int(tokens), int(labels)
        self.due, self.stopping = due > 0, stopping > 0
        self._shares, self._counts = [], [0, 0, 0, 0]

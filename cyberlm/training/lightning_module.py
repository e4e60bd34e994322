"""The LightningModule: one training step, one validation step, and checkpoints that hold what trains."""

import contextlib
import functools
from typing import Any, Self

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyberlm.config.schema import OptimConfig, OptionScore
from cyberlm.data.batches import AnswerBatch, ScoringBatch
from cyberlm.evaluation.scores import option_scores, pick_best
from cyberlm.evaluation.scoring import eval_mode, option_log_probs
from cyberlm.models.loaded import LoadedModel, trainable_names
from cyberlm.models.sharding import equal_calls
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.training.losses import answer_nll_sum, step_loss
from cyberlm.training.optim import build_optimizer, build_schedule
from cyberlm.training.step_totals import StepTotals


class FineTuningModule(L.LightningModule):
    """Trains what requires gradients in a loaded model.

    Args:
        loaded: With its adapter, or with all weights trainable.
        optim: Optimizer and schedule.
        option_score: How an option's log-probabilities become its score in validation (text protocol).
        share_validation: Each process validates on its share of the questions instead of on all.
        free: Answers have no options beside them: the right one's NLL is known, and no accuracy.

    Attributes:
        totals: Of the newest optimizer step. The callback FiniteNumbers has them summed, others read them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        optim: OptimConfig,
        option_score: OptionScore,
        *,
        share_validation: bool = False,
        free: bool = False,
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.loaded = loaded
        self.optim = optim
        self.option_score = option_score
        self.strict_loading = False  # checkpoints hold what trains; `on_load_checkpoint` compares the names itself
        self.share_validation, self.free = share_validation, free
        self.accuracy = MeanMetric(sync_on_compute=share_validation)
        self.nll = MeanMetric(sync_on_compute=share_validation)
        # nan_strategy: a model that has diverged must not be judged by the questions it can still be scored on
        self.option_nll = MeanMetric(nan_strategy="disable", sync_on_compute=share_validation)
        self.totals = StepTotals()
        self._together = contextlib.ExitStack()
        self._norm: Tensor | None = None

    def configure_model(self) -> None:
        """Lightning's strategy for FSDP2 demands this; the model has been sharded when it was loaded."""

    def on_train_start(self) -> None:
        self.model.train()  # transformers loads in eval mode, and Lightning leaves it so: dropout would be off

    def on_train_end(self) -> None:
        """Drops the optimizer and its states, which Lightning would otherwise copy to host memory."""
        self.trainer.optimizers = []
        self.trainer.strategy.lr_scheduler_configs = []

    def cpu(self) -> Self:
        """Stays on its device: Lightning calls this when training ends, but the model is about to be scored."""
        return self

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> Tensor:
        nll: Tensor = self.loaded.within(answer_nll_sum, self.loaded, batch)
        self.totals.add(nll.detach() / batch.step_label_tokens, batch)
        self._norm = None
        labels = max(batch.targets.numel(), 1)  # a filler (`cyberlm.data.batches`) has none
        self.log("train/loss", nll.detach() / labels, batch_size=labels, logger=False)
        return step_loss(nll, batch, self.trainer.accumulate_grad_batches * distributed.world_size())

    def validation_step(self, batch: ScoringBatch, batch_idx: int) -> Tensor:
        with eval_mode(self.model):
            log_probs = self.loaded.within(option_log_probs, self.loaded, batch)  # (B, K)
        tokens = batch.option_mask.sum(-1)  # (B, K)
        scores = option_scores(log_probs, tokens, batch.option_chars, self.option_score)
        chosen, _ = pick_best(scores, batch.prompt_ids.sum(-1))  # (B,)
        if not self.free:
            self.accuracy.update(chosen == batch.gold)
        per_token = option_scores(log_probs, tokens, batch.option_chars, OptionScore.per_token)
        among_options = per_token if self.free else scores.log_softmax(-1)  # (B, K); padding has probability 0
        self.option_nll.update(-among_options.gather(1, batch.gold[:, None]))
        self.nll.update(-per_token.gather(1, batch.gold[:, None]))
        return chosen

    def on_validation_epoch_start(self) -> None:
        self._together.enter_context(equal_calls(self.loaded))

    def on_validation_epoch_end(self) -> None:
        self._together.close()
        metrics = {} if self.free else {"accuracy": self.accuracy}
        for name, metric in (metrics | {"nll": self.nll, "option_nll": self.option_nll}).items():
            self.log(f"val/{name}", metric.compute(), logger=False)  # the callback MetricRows hands it to the loggers
            metric.reset()

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim, fused=self.trainer.precision != "16-mixed")
        schedule = build_schedule(optimizer, self.optim, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the norm that is logged; Lightning would refuse to before a fused step in mixed precision."""
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self._trained, gradient_clip_val, self.gradient_norm())

    @functools.cached_property
    def _trained(self) -> list[nn.Parameter]:
        """Cached: a search through the layers of an 8B model takes as long as several of them compute."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, before they are clipped; computed once a step."""
        if self._norm is None:
            self._norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        return self._norm

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {f"model.{name}" for name in trainable_names(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_names(checkpoint)

    def check_names(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not hold exactly what this model trains.

        Raises:
            RunError: With tensors that are missing, not expected, or of another shape.
        """
        trained = {name: tuple(p.shape) for name, p in self.named_parameters() if p.requires_grad}
        found = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        odd = [name for name in sorted({*found, *trained}) if found.get(name) != trained.get(name)]
        if odd:
            raise RunError(
                f"The checkpoint does not fit this model in {len(odd)} tensors, for example:",
                [Problem(f"{name}: {found.get(name, 'missing')}", str(trained.get(name, "none"))) for name in odd[:3]],
            )

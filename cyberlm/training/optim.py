"""Optimizer and learning-rate schedule."""

from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from cyberlm.config.schema import OptimConfig, OptimizerName
from cyberlm.runtime.errors import ConfigError, Problem


def check_optimizer(config: OptimConfig, device: torch.device) -> None:
    """Refuses 8-bit optimizer states on a CPU, before anything is loaded.

    Raises:
        ConfigError: With what to type instead.
    """
    if config.name is not OptimizerName.adamw and device.type != "cuda":
        raise ConfigError(
            "8-bit optimizer states need a GPU:",
            [Problem(f"optim.name={config.name.name} on a CPU", "adamw", "optim=adamw")],
        )


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> Optimizer:
    """AdamW over what is trained; weight decay on matrices only, never on norms and biases.

    Args:
        fused: One kernel a step. Not with float16 gradients, which such a step would unscale after they are clipped.
    """
    ratio = config.loraplus_lr_ratio
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    faster = [p for name, p in named if ratio != 1 and "lora_B" in name]
    others = [p for name, p in named if ratio == 1 or "lora_B" not in name]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
        {"params": faster, "weight_decay": config.weight_decay, "lr": config.learning_rate * ratio},
    ]
    groups = [group for group in groups if group["params"]]
    shared = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.name is OptimizerName.adamw:
        return torch.optim.AdamW(groups, fused=fused, **shared)  # type: ignore[arg-type]
    kind = {OptimizerName.adamw_8bit: AdamW8bit, OptimizerName.paged_adamw_8bit: PagedAdamW}[config.name]
    return kind(groups, **shared)


class PagedAdamW(PagedAdamW8bit):
    """bitsandbytes' paged 8-bit AdamW, whose states are paged after they were loaded, too.

    bitsandbytes loads them into plain GPU memory, and Lightning moves there what is not: a run that is resumed might
    not fit any more. So they are paged before the first step that follows.
    """

    _loaded = False

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        super().load_state_dict(state_dict, move_to_device)
        self._loaded = True

    def step(self, closure: Any = None) -> Any:
        if self._loaded:
            for parameter, state in self.state.items():
                for name in ("state1", "state2"):
                    state[name] = self.get_state_buffer(parameter, dtype=state[name].dtype).copy_(state[name])
            self._loaded = False
        return super().step(closure)


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LRScheduler:
    """Linear warm-up over `warmup_fraction` of the optimizer steps, then cosine or linear to 0, or constant."""
    name = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[config.schedule.value]
    warmup = round(config.warmup_fraction * total_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)

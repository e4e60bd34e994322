"""Optimizer and learning-rate schedule."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from cyberlm.config import OptimConfig, OptimizerName
from cyberlm.errors import ConfigError, Problem


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW over what is trained; weight decay on matrices only, never on norms and biases.

    Raises:
        ConfigError: If 8-bit states are asked for on a CPU.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    on_gpu = trained[0].device.type == "cuda"
    shared = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.name is OptimizerName.adamw:
        return torch.optim.AdamW(groups, fused=True, **shared)  # type: ignore[arg-type]
    if not on_gpu:
        raise ConfigError(
            "8-bit optimizer states need a GPU:",
            [Problem(f"optim.name={config.name.name} on a CPU", "adamw", "optim=adamw")],
        )
    import bitsandbytes

    kind = {
        OptimizerName.adamw_8bit: bitsandbytes.optim.AdamW8bit,
        OptimizerName.paged_adamw_8bit: bitsandbytes.optim.PagedAdamW8bit,
    }[config.name]
    return kind(groups, **shared)


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LRScheduler:
    """Linear warm-up over `warmup_fraction` of the optimizer steps, then cosine or linear to 0, or constant."""
    name = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[config.schedule.value]
    warmup = round(config.warmup_fraction * total_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)

"""LoRA layers as one operation: B A x is added where W x was computed, and so are their gradients.

PEFT's layer scales and adds whole outputs and gradients in passes over memory of their own, and launches about twice as
many kernels: on a GPU a step waits for either. Results differ in rounding alone.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners import lora
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from torch import Tensor, nn

from cyberlm.models.cpu_kernels import OneDnnLinear, OneDnnLinear4bit, product, product_onto, quant_state


def fuse_lora(model: nn.Module) -> None:
    """Lets plain LoRA layers compute as one operation.

    Layers keep their parameters and remain instances of their classes; call it when layers were added.
    """
    for module in model.modules():
        if type(module) in FUSED and _is_plain(module):
            module.__class__ = FUSED[type(module)]


class FusedLora(lora.Linear):
    """PEFT's LoRA layer on whole weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.base_layer.weight.dtype != x.dtype or not _computes_plainly(self, x):
            return super().forward(x, *args, **kwargs)
        return _compute(self, x)


class FusedLora4bit(Lora4bit):
    """PEFT's LoRA layer on 4-bit weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not _computes_plainly(self, x):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        return _compute(self, x)


FUSED: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: FusedLora, Lora4bit: FusedLora4bit}


def _is_plain(layer: Any) -> bool:
    """Neither dropout, DoRA nor a bias that is trained, on a base layer that is a product and nothing else."""
    dropped = any(not isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    biases = [layer.base_layer.bias, *(part.bias for part in layer.lora_B.values())]
    biased = any(bias is not None and bias.requires_grad for bias in biases)
    known = type(layer.base_layer) in (nn.Linear, Linear4bit, OneDnnLinear, OneDnnLinear4bit)
    return known and not (dropped or biased or layer.lora_variant)


def _computes_plainly(layer: Any, x: Tensor) -> bool:
    """One active adapter, and numbers of the type in which PEFT would compute its product."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or not x.numel():
        return False
    if torch.is_autocast_enabled(x.device.type):
        return x.dtype == torch.get_autocast_dtype(x.device.type)
    return x.dtype == layer.lora_A[layer.active_adapters[0]].weight.dtype


def _compute(layer: Any, x: Tensor) -> Tensor:
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = x.reshape(-1, x.shape[-1])
    result: Tensor = _Lora.apply(rows, layer.base_layer, down, up, layer.scaling[name])
    return result.view(*x.shape[:-1], -1)


class _Lora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ for x (N, I), a base layer with frozen W (O, I) and b (O,), A (R, I), B (O, R)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.dtypes = down.dtype, up.dtype
        down, up = down.to(x.dtype), up.to(x.dtype)
        narrow = product(x, down).mul_(scale)  # (N, R)
        ctx.save_for_backward(x, narrow, down, up)
        ctx.base, ctx.scale = base, scale
        return product_onto(narrow, up, base(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, down, up = ctx.saved_tensors
        grad = grads[0]  # (N, O)
        to_narrow = product(grad, up.t()).mul_(ctx.scale)  # (N, R)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = product_onto(to_narrow, down.t(), product(grad, _weight(ctx.base, grad.dtype).t()))
        to_down = product(to_narrow.t(), x.t())
        to_up = product(narrow.t(), grad.t()).t()  # as (R, O): a product with few columns is slow
        return to_x, None, to_down.to(ctx.dtypes[0]), to_up.to(ctx.dtypes[1]), None


def _weight(base: Any, dtype: torch.dtype) -> Tensor:
    """W (O, I), expanded where it is in 4 bits."""
    if not isinstance(base, Linear4bit):
        weight: Tensor = base.weight
        return weight
    return dequantize_4bit(base.weight.data, quant_state(base)).to(dtype)

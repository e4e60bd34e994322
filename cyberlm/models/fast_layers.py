"""Linear and LoRA layers that compute faster: oneDNN's products on a CPU, and LoRA as one operation on any device.

PyTorch multiplies float32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which
comes with PyTorch too, uses AVX-512 wherever it is (docs/performance.md has the ratio). Elsewhere (GPU, Intel, other
types, autocast) products are PyTorch's own. Of LoRA, B A x is added where W x was computed, and so are their gradients:
PEFT's layer scales and adds whole outputs and gradients in passes over memory of their own, and launches about twice as
many kernels: on a GPU a step waits for either. Results differ in rounding alone.
"""

import functools
import os
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners import lora
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from torch import Tensor, nn

CPU_INFO = Path("/proc/cpuinfo")

CACHE_LINE = 64
"""Bytes; as many as AVX-512 loads at once."""

CACHE_SIZES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Environment variables that PyTorch's layer above oneDNN, and oneDNN, read at the first product: how many products of
other shapes they keep the compiled code of. Both keep 1,024 otherwise."""
PRODUCTS_KEPT = 128
"""A LoRA step of a Llama has about 50, the same in each block. Every batch brings new shapes, and 1,024 of some hundred
KiB each look like a leak (docs/performance.md)."""


def align_weights(model: nn.Module) -> None:
    """Moves CPU weights that do not begin at a cache line to memory of their own.

    safetensors maps its file into memory, where a tensor begins at a multiple of 8 bytes: products then load across
    cache lines, and are up to a fifth slower in training (docs/performance.md).
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % CACHE_LINE:
            parameter.data = parameter.data.clone()


@functools.cache
def onednn_is_faster() -> bool:
    """True on an AMD processor with AVX-512: a rule, not a measurement, so that a run repeats on the same machine."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return CPU_INFO.is_file() and "AuthenticAMD" in CPU_INFO.read_text(encoding="utf-8", errors="replace")


def use_fast_layers(model: nn.Module) -> None:
    """Lets plain LoRA layers compute as one operation, and linear layers (4-bit too) on a CPU multiply with oneDNN.

    The latter where that is faster. Layers keep their parameters and remain instances of their classes; call it again
    when layers were added.
    """
    faster = dict(FUSED)
    if onednn_is_faster() and not any(parameter.device.type == "cuda" for parameter in model.parameters()):
        for name in CACHE_SIZES:
            os.environ.setdefault(name, str(PRODUCTS_KEPT))
        faster |= {nn.Linear: OneDnnLinear, Linear4bit: OneDnnLinear4bit}
    for module in model.modules():
        if type(module) in faster and (type(module) not in FUSED or _is_plain(module)):
            module.__class__ = faster[type(module)]


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose three products (output, and both gradients) are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:
        if not (_is_float32(input) and self.weight.dtype == torch.float32):
            return super().forward(input)
        result: Tensor = _Linear.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
        return result.view(*input.shape[:-1], -1)


class OneDnnLinear4bit(Linear4bit):
    """`Linear4bit`, which expands its weights before each product, with oneDNN's products."""

    def forward(self, x: Tensor) -> Tensor:
        state = quant_state(self)
        expands_to_float32 = state is not None and state.dtype == self.compute_dtype == torch.float32
        if not (expands_to_float32 and _is_float32(x)):
            return super().forward(x)
        result: Tensor = _Linear4bit.apply(x.reshape(-1, x.shape[-1]), self.weight.data, state, self.bias)
        return result.view(*x.shape[:-1], -1)


def quant_state(layer: Linear4bit) -> Any:
    """State by which a layer's weight is expanded; None before the weights are on a device."""
    return getattr(layer.weight, "quant_state", None) or layer.quant_state  # FSDP2 gathers bytes alone


def _is_float32(x: Tensor) -> bool:
    """True where a layer gets, and would compute with, float32 numbers on a CPU."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    return plain and not torch.is_autocast_enabled("cpu")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, I) and weight (O, I) to x weightᵀ + bias (N, O); either may be a transposed view."""
    if not (_is_float32(x) and onednn_is_faster()):
        return nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def product_onto(x: Tensor, weight: Tensor, sum_: Tensor) -> Tensor:
    """x (N, I), weight (O, I) and sum (N, O), which may be overwritten, to x weightᵀ + sum (N, O)."""
    if not (_is_float32(x) and onednn_is_faster()):
        return sum_.addmm_(x, weight.t())
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, sum_, weight, None, "add")
    return result


# What these functions give is no view, so that a model may change it in place.


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b for x (N, I), W (O, I), b (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0]  # (N, O)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if to_x else None,
            product(grad.t(), x.t()) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


class _Linear4bit(torch.autograd.Function):
    """y = x Wᵀ + b for x (N, I), frozen 4-bit W that expands to (O, I), frozen b (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, state: Any, bias: Tensor | None) -> Tensor:
        ctx.packed, ctx.state = packed, state
        return product(x, dequantize_4bit(packed, state), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = dequantize_4bit(ctx.packed, ctx.state)
        return product(grads[0], weight.t()), None, None, None


# ------------------------------------------------------------------------------------------------------------- LoRA


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
            base, packed = ctx.base, isinstance(ctx.base, Linear4bit)
            weight = dequantize_4bit(base.weight.data, quant_state(base)).to(grad.dtype) if packed else base.weight
            to_x = product_onto(to_narrow, down.t(), product(grad, weight.t()))
        to_down = product(to_narrow.t(), x.t())
        to_up = product(narrow.t(), grad.t()).t()  # as (R, O): a product with few columns is slow
        return to_x, None, to_down.to(ctx.dtypes[0]), to_up.to(ctx.dtypes[1]), None

"""Matrix products, of float32 on a CPU by the library that is fastest on it.

PyTorch multiplies float32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which
comes with PyTorch too, uses AVX-512 wherever it is (docs/performance.md has the ratio). Both compute in float32:
results differ in the order of sums alone. Elsewhere (GPU, Intel, other types, autocast) nothing is changed.
"""

import functools
import os
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
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


def use_fast_products(model: nn.Module) -> None:
    """Lets every linear layer (4-bit too) on a CPU multiply with oneDNN, where that is faster.

    Layers keep their parameters and remain instances of their classes; call it again when layers were added.
    """
    if not onednn_is_faster() or any(parameter.device.type == "cuda" for parameter in model.parameters()):
        return
    for name in CACHE_SIZES:
        os.environ.setdefault(name, str(PRODUCTS_KEPT))
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
        elif type(module) is Linear4bit:
            module.__class__ = OneDnnLinear4bit


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


def _by_onednn(x: Tensor) -> bool:
    return _is_float32(x) and onednn_is_faster()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, I) and weight (O, I) to x weightᵀ + bias (N, O); either may be a transposed view."""
    if not _by_onednn(x):
        return nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def product_onto(x: Tensor, weight: Tensor, sum_: Tensor) -> Tensor:
    """x (N, I), weight (O, I) and sum (N, O), which may be overwritten, to x weightᵀ + sum (N, O)."""
    if not _by_onednn(x):
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

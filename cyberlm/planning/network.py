"""What the planner needs to know of a model: its sizes, and its tensors with their types."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from cyberlm.config.schema import Attention, LoraConfig, QuantConfig
from cyberlm.models.adapters import count_parameters
from cyberlm.models.cpu_kernels import OneDnnLora
from cyberlm.models.meta_model import Skeleton
from cyberlm.runtime.errors import ModelError, Problem

NF4_BLOCK = 64
"""Weights that share one scale (bitsandbytes, 4-bit)."""
NESTED_BLOCK = 256
"""Scales that share one scale of their own (double quantisation)."""

KNOWN_BLOCKS = (
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
)
"""Linear layers of a Llama's block; of a Phi's, which joins some."""


class NotPlanned(ModelError):
    """The model is not made of Llama's blocks, and what other blocks keep is not known."""


@dataclass(frozen=True)
class Projection:
    """A linear layer of one block: `inputs` to `outputs`, with an adapter of `rank` (0: none).

    A `fused` one adds the adapter's output where it is computed (`cyberlm.models.cpu_kernels.OneDnnLora`).
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    fused: bool = False


@dataclass(frozen=True)
class Numbers:
    """Bytes of one number.

    Attributes:
        stream: Of the hidden states that run from block to block.
        compute: Of what linear layers give.
        adapter: Of what adapters compute with.
        autocast: Whether torch converts inputs and trained weights to bfloat16 for each product.
        mask: Of one element of dropout's mask.
        widened: Whether PEFT converts adapters' inputs to float32 (`cyberlm.models.adapters.keep_inputs_narrow`).
    """

    stream: int
    compute: int
    adapter: int
    autocast: bool
    mask: int
    widened: bool


@dataclass(frozen=True)
class Network:
    """A Llama-like model in numbers.

    Attributes:
        blocks, hidden, inner, heads, vocabulary: Sizes of the model.
        query, key_value: Width of all query heads, and of all key (or value) heads.
        projections: Linear layers of one block.
        all_trained: Full fine-tuning; otherwise adapters are trained on a frozen base.
        dropout, dora: Of the adapters.
        quantised: Whether base weights are expanded from 4 bits for each product.
        numbers: How wide a number is.
        attention: Which implementation.
        parameters, trainable: Counts.
        weights: Bytes of the base weights by type, for example `{"weights, float32": ...}`.
        adapter: Bytes of the adapter weights.
        gradients: Bytes of the gradients: those of every trained weight, in its type.
        head_gradient: Bytes of the largest one, the output head's (0 where it is frozen): it comes first.
        half_copies: Bytes of the bfloat16 copies that autocast makes of float32 weights: it keeps those of trained
            weights for one forward pass, and autograd keeps all of them for the backward pass.
        trained: Elements of each trained tensor.
    """

    blocks: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    query: int
    key_value: int
    projections: tuple[Projection, ...]
    all_trained: bool
    dropout: float
    dora: bool
    quantised: bool
    numbers: Numbers
    attention: Attention
    parameters: int
    trainable: int
    weights: Mapping[str, int]
    adapter: int
    gradients: int
    head_gradient: int
    half_copies: int
    trained: tuple[int, ...]


def read_network(
    skeleton: Skeleton, quant: QuantConfig, lora: LoraConfig | None, attention: Attention, *, on_gpu: bool, mixed: bool
) -> Network:
    """Reads sizes from a model on the meta device.

    Args:
        skeleton: With its adapter, or with all weights trainable.
        quant, lora, attention: As in the run.
        on_gpu: Whether it would run on a GPU.
        mixed: Whether training autocasts (precision bf16-mixed or 16-mixed).

    Raises:
        NotPlanned: If a block is not made of attention and a gated feed-forward layer as Llama's are.
    """
    blocks = _blocks(skeleton)
    shape, model = skeleton.shape, skeleton.loaded.model
    trainable, total = count_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head: Any = skeleton.loaded.head.weight
    base = {id(parameter) for parameter in skeleton.base}
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    embeddings: Any = skeleton.loaded.causal.get_input_embeddings()
    stream = embeddings.weight.element_size()
    widened = not (on_gpu and mixed) or (lora is not None and lora.use_dora)
    groups = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    return Network(
        blocks=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        inner=shape.intermediate_size,
        heads=shape.num_attention_heads,
        vocabulary=shape.vocab_size,
        query=shape.num_attention_heads * head_size,
        key_value=groups * head_size,
        projections=tuple(_projections(skeleton, blocks[-1], in_float32=not on_gpu and not mixed and stream == 4)),
        all_trained=lora is None,
        dropout=lora.dropout if lora else 0.0,
        dora=lora.use_dora if lora else False,
        quantised=bool(skeleton.quantised),
        numbers=Numbers(stream, 2 if mixed else stream, 2 if mixed else 4, mixed, 1 if on_gpu else 4, widened),
        attention=attention,
        parameters=total,
        trainable=trainable,
        weights=_base_weights(skeleton, quant.double_quant),
        adapter=sum(_bytes(parameter) for parameter in trained if id(parameter) not in base),
        gradients=sum(map(_bytes, trained)),
        head_gradient=_bytes(head) if head.requires_grad else 0,
        half_copies=_half_copies(skeleton) if mixed else 0,
        trained=tuple(parameter.numel() for parameter in trained),
    )


def _half_copies(skeleton: Skeleton) -> int:
    packed = {id(parameter) for parameter in skeleton.quantised}
    linear = {id(m.weight): m.weight for m in skeleton.loaded.model.modules() if isinstance(m, nn.Linear)}
    return sum(2 * w.numel() for name, w in linear.items() if name not in packed and w.dtype == torch.float32)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocks(skeleton: Skeleton) -> nn.ModuleList:
    """The decoder's blocks, each of linear layers that are known."""
    layers = [module for module in skeleton.loaded.backbone.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(layers, key=len) if layers else nn.ModuleList()
    found = [{item.name for item in _projections(skeleton, block, in_float32=False)} for block in blocks]
    odd = next((names for names in found if names not in KNOWN_BLOCKS), None)
    if odd is not None or not blocks:
        raise NotPlanned(
            f"The memory of {type(skeleton.loaded.causal).__name__} cannot be planned:",
            [
                Problem(
                    f"a block has the linear layers {', '.join(sorted(odd or ())) or 'none'}",
                    "blocks of attention and a gated feed-forward layer, as Llama, Mistral, Qwen, Gemma and Phi have",
                )
            ],
        )
    return blocks


def _projections(skeleton: Skeleton, block: nn.Module, *, in_float32: bool) -> Iterator[Projection]:
    """Linear layers of a block; an adapter's own small layers are not among them."""
    adapters = {name: module for name, module in block.named_modules() if isinstance(module, LoraLayer)}
    for name, module in block.named_modules():
        if isinstance(module, LoraLayer):
            inputs, outputs = int(module.in_features or 0), int(module.out_features or 0)
            fused = in_float32 and not skeleton.quantised and isinstance(module, OneDnnLora)
            yield Projection(name.rsplit(".", 1)[-1], inputs, outputs, max(module.r.values()), fused)
        elif isinstance(module, nn.Linear) and not any(name.startswith(f"{adapted}.") for adapted in adapters):
            yield Projection(name.rsplit(".", 1)[-1], module.in_features, module.out_features, 0)


def _base_weights(skeleton: Skeleton, double_quant: bool) -> dict[str, int]:
    packed = {id(parameter) for parameter in skeleton.quantised}
    found: dict[str, int] = {}
    for parameter in skeleton.base:
        if id(parameter) not in packed:
            name = f"weights, {str(parameter.dtype).removeprefix('torch.')}"
            found[name] = found.get(name, 0) + _bytes(parameter)
    if packed:
        found["weights, nf4"] = sum(-(-parameter.numel() // 2) for parameter in skeleton.quantised)
        found["nf4 constants"] = sum(nf4_constants(p.numel(), double_quant) for p in skeleton.quantised)
    return found


def nf4_constants(weights: int, double_quant: bool) -> int:
    """Bytes that bitsandbytes stores beside a 4-bit tensor (arXiv 2305.14314, section 3; `QuantState`).

    One scale for 64 weights: float32, or one byte with double quantisation, which adds a float32 scale for 256 of
    these, their offset, and a code table of 256 float32 numbers. Either way there are nf4's 16 values, in float32.
    """
    scales = -(-weights // NF4_BLOCK)
    table = 16 * 4
    if not double_quant:
        return scales * 4 + table
    return scales + -(-scales // NESTED_BLOCK) * 4 + 4 + 256 * 4 + table

"""Memory of a training run: an estimate from shapes alone, without weights, and the overrides that make it fit."""

import contextlib
import copy
import ctypes
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from rich import box
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig
from transformers.quantizers.base import get_keys_to_not_convert

from cyberlm.config.method_rules import LORA
from cyberlm.config.rules import device_problems
from cyberlm.config.schema import Attention, LoraConfig, OptimizerName, QuantName, Strategy, TrainConfig
from cyberlm.config.shapes import ShapeConfig
from cyberlm.models.loaded import LoadedModel, quiet
from cyberlm.models.loading import weights_dtype
from cyberlm.models.methods.method import method_of
from cyberlm.runtime.errors import ModelError, Problem

CUDA_CONTEXT = 600 * 2**20
"""Bytes of a CUDA context with cuBLAS's workspace, which torch does not count: an allowance, not a measurement."""
KERNEL_BUFFERS = 150 * 2**20
"""Bytes of buffers and compiled products of oneDNN and MKL on a host (measured: docs/performance.md)."""
HEAP_GAPS = 1.3
"""Factor on tensors that come and go on a host: glibc's heap keeps gaps between them (docs/performance.md)."""
LOGITS_AT_ONCE = 2**26
"""Numbers of the logits, rows times vocabulary, that scoring computes at once: 256 MiB of float32."""
SCALE_BITS = {True: 0.127, False: 0.5}
"""Bits of a 4-bit weight's share of the scales, by double quantisation (arXiv 2305.14314, section 3)."""
STATE_BYTES, STATE_BYTES_8BIT = 8, 2 + 8 / 256
"""Bytes of AdamW's two running means for one weight: float32, or 8 bits with a float32 scale for 256 of them
(bitsandbytes). Paged states are counted as if all were on the GPU."""
CGROUP = Path("/sys/fs/cgroup")
SCALES = "scales of nf4"
"""Part of the weights that FSDP2 leaves whole in every process."""


@dataclass(frozen=True)
class Batches:
    """Shapes of the largest batches of a run.

    Attributes:
        rows, width, prefix: Of a micro-batch: B rows of T tokens behind P tokens that all share, encoded once.
        labels: Answer tokens of the micro-batch: places that the output head is applied to.
        scored: Tokens of a scored batch that go through the model at once.
        cached: Places whose keys and values it holds: of each option where prompts continue with their options.
        scored_labels: Places of it that the output head is applied to.
    """

    rows: int
    width: int
    prefix: int
    labels: int
    scored: int
    cached: int
    scored_labels: int


@dataclass(frozen=True)
class ModelSizes:
    """A model in numbers, as it would be trained.

    Attributes:
        shape: The configuration of the model's decoder.
        parameters, trained: Numbers in all tensors, and in those that are trained.
        weights: Bytes of the weights by kind.
        gradients: Bytes of the gradients, in the type of each trained weight.
        loading: Bytes beside the weights while they are loaded and quantised: on a host, and with FSDP2.
        stream, compute: Bytes of one number of the hidden states, and of what linear layers give.
        saved_inputs: Bytes that all trained and adapted linear layers save for one token.
        copies: Bytes of the bfloat16 copies that mixed precision keeps of float32 weights.
        expanded: Bytes of the largest 4-bit weight while a product uses it.
        gathered: Bytes of weights, and gradients, that FSDP2 has gathered for a moment.
    """

    shape: Any
    parameters: int
    trained: int
    weights: Mapping[str, int]
    gradients: int
    loading: int
    stream: int
    compute: int
    saved_inputs: int
    copies: int
    expanded: int
    gathered: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted bytes of one process: by phase, then by part, at the phase's own peak; besides, `host` beside a GPU."""

    phases: Mapping[str, Mapping[str, int]]
    host: int = 0

    @property
    def total(self) -> int:
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def measurable(self) -> int:
        """The peak that a run reports: resident memory on a host, on a GPU what torch has allocated."""
        return self.total - self.phases["load"].get("CUDA context", 0)

    def table(self) -> Table:
        """Parts as rows, phases as columns, MiB."""
        table = Table("", *self.phases, title="Memory, MiB", title_justify="left", box=box.SIMPLE, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for part in dict.fromkeys(part for parts in self.phases.values() for part in parts):
            sizes = [parts.get(part, 0) for parts in self.phases.values()]
            if any(sizes):
                table.add_row(part, *(f"{size / 2**20:,.1f}" if size else "-" for size in sizes))
        table.add_section()
        table.add_row("total", *(f"{sum(parts.values()) / 2**20:,.1f}" for parts in self.phases.values()))
        return table


def published_shape(shape: ShapeConfig, tied: bool) -> LlamaConfig:
    """A Llama's configuration from its published sizes: enough to count its memory."""
    return LlamaConfig(**vars(shape), tie_word_embeddings=tied)


def measure_model(shape: PretrainedConfig, config: TrainConfig, device: torch.device) -> ModelSizes:
    """Counts a model as it would be trained, built on torch's meta device with its adapter or every weight trainable.

    Args:
        shape: The model's own configuration (`read_shape`), or `published_shape`.

    Raises:
        ModelError: If the model's blocks are not attention and one feed-forward layer.
    """
    precision, sharded = config.trainer.precision, config.trainer.strategy is Strategy.fsdp2
    on_host, mixed = device.type == "cpu", precision.endswith("mixed") or (precision == "auto" and device.type != "cpu")
    method = method_of(config.method)
    dtype = weights_dtype(config.model, device, method.trains_all_weights)
    with torch.device("meta"), quiet():
        causal = AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=config.model.trust_remote_code)
    decoder = causal.config.get_text_config(decoder=True)
    _check_blocks(decoder, type(causal).__name__)
    base = {id(parameter): parameter.numel() for parameter in causal.parameters()}
    packed: dict[int, int] = {}
    if config.quant.name is QuantName.nf4:
        kept = get_keys_to_not_convert(causal)
        linear = {name: module.weight for name, module in causal.named_modules() if isinstance(module, nn.Linear)}
        packed = {id(weight): weight.numel() for name, weight in linear.items() if name not in kept}
    in_4_bits = sum(packed.values())
    plain = sum(base.values()) - in_4_bits
    loaded = method.attach(LoadedModel(causal, causal, config.model.name, "none"))
    parameters = list(loaded.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    products = {id(m.weight): m.weight for m in loaded.model.modules() if isinstance(m, nn.Linear)}
    wide = sum(w.numel() for key, w in products.items() if key not in packed and w.dtype == torch.float32)
    number = 2 if mixed else dtype.itemsize
    stream = number if sharded else dtype.itemsize
    gathered, loading = _sharded(loaded, packed, number) if sharded else (0, 0)
    if on_host and not sharded:
        loading = sum(base.values()) * getattr(decoder.dtype, "itemsize", 4)  # the file
        loading += in_4_bits * dtype.itemsize // 2  # threads hold 5 to 90% of it (docs/performance.md)
    return ModelSizes(
        shape=decoder,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        weights={
            "weights, nf4": in_4_bits // 2,
            SCALES: round(in_4_bits * SCALE_BITS[config.quant.double_quant] / 8),
            f"weights, {str(dtype).removeprefix('torch.')}": plain * dtype.itemsize,
            "adapter weights": sum(parameter.nbytes for parameter in parameters if id(parameter) not in base),
        },
        gradients=sum(parameter.nbytes for parameter in trained),
        loading=loading,
        stream=stream,
        compute=number,
        saved_inputs=_saved_inputs(loaded, config.method.lora, stream, mixed, on_host),
        copies=2 * wide if mixed and not sharded else 0,
        expanded=max(packed.values(), default=0) * number,
        gathered=gathered,
    )


def _check_blocks(decoder: Any, architecture: str) -> None:
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    experts = any(getattr(decoder, name, None) for name in ("num_local_experts", "num_experts"))
    if experts or not all(isinstance(getattr(decoder, name, None), int) for name in needed):
        known = "blocks of attention and one feed-forward layer, as Llama, Mistral, Qwen, Gemma and Phi have"
        title = f"The memory of {architecture} cannot be estimated:"
        raise ModelError(title, [Problem("its blocks are of another kind", known)])


def _saved_inputs(loaded: LoadedModel, lora: LoraConfig | None, stream: int, mixed: bool, on_host: bool) -> int:
    """Bytes that trained and adapted layers save for one token: inputs, each tensor once, and LoRA's A x.

    Dropout, and a type other than the hidden states', give each layer an input of its own.
    """
    adapted = isinstance(loaded.model, PeftModel)
    number = 2 if mixed else 4 if adapted else stream
    alone = number != stream or (lora is not None and (lora.dropout > 0 or (mixed and on_host and lora.use_dora)))
    kind: Any = BaseTunerLayer if adapted else nn.Linear
    inputs: dict[tuple[str, int], int] = {}
    extra = 0
    for path, layer in loaded.backbone.named_modules():
        if not isinstance(layer, kind) or not (adapted or layer.weight.requires_grad):
            continue
        width: Any = layer.in_features or 0  # None of a norm
        inputs[path if alone else path.rpartition(".")[0], width] = width * number
        if lora is not None:
            extra += lora.rank * number
            extra += width * (4 if on_host else 1) if lora.dropout else 0  # dropout's mask
            extra += 2 * layer.out_features * number if lora.use_dora else 0  # magnitudes
    return sum(inputs.values()) + extra


def _sharded(loaded: LoadedModel, packed: Mapping[int, int], number: int) -> tuple[int, int]:
    """Bytes that FSDP2 gathers at once (`cyberlm.models.sharding.shard`), and those of the unit being loaded.

    Gathered, in the type of the products: the output head until its backward pass; a layer in use and the next one on
    its way, or the embeddings; and the gradients of the largest of them before they are spread.
    """
    blocks = next(module for module in loaded.backbone.modules() if isinstance(module, nn.ModuleList))
    units = [list(unit.parameters()) for unit in (blocks[0], loaded.causal.get_input_embeddings(), loaded.head)]
    layer, embeddings, head = (
        sum(p.numel() // 2 if id(p) in packed else p.numel() * number for p in unit) for unit in units
    )
    gradients = max(layer, head) if loaded.head.weight.requires_grad else 0
    return head + max(2 * layer, embeddings) + gradients, max(sum(p.nbytes for p in unit) for unit in units)


def activation_bytes(sizes: ModelSizes, config: TrainConfig, batches: Batches) -> int:
    """Bytes that the forward pass of a micro-batch keeps for its backward pass, without the logits.

    After Korthikanti et al. 2022 (arXiv 2205.05198, section 4), who count 34 sbh + 5 a s^2 b bytes a layer for GPT. One
    layer of a Llama with width H, feed-forward width F and query width Q, numbers of e bytes, keeps of M tokens

        M (8 H + e (2 Q + 3 F) + inputs) + 2 A e Q

    that is the float32 inputs of two norms; queries and attention's output; silu(gate), gate and up; inputs of trained
    and adapted layers; keys and values of the A tokens that attention reads, repeated for each query head. Trained
    norms keep their outputs, too. SDPA and flash attention recompute the s^2 term; eager attention keeps it in float32,
    and in e bytes. With checkpointing a layer keeps its input only (2 sbh there), and one layer at a time is whole.
    """
    shape, e, layers = sizes.shape, sizes.compute, sizes.shape.num_hidden_layers
    tokens = batches.rows * batches.width + batches.prefix
    query, _ = _heads_width(shape)
    read = batches.rows * (batches.width + batches.prefix) + batches.prefix
    norm = tokens * shape.hidden_size * (4 + (sizes.stream if method_of(config.method).trains_all_weights else 0))
    inputs = tokens * sizes.saved_inputs // layers
    layer = 2 * norm + tokens * e * (2 * query + 3 * shape.intermediate_size) + inputs + 2 * read * e * query
    if config.model.attention is Attention.eager:
        pairs = batches.rows * batches.width * (batches.width + batches.prefix)
        layer += shape.num_attention_heads * pairs * (4 if e == 4 else 4 + e)
    kept = layers * tokens * shape.hidden_size * sizes.stream + layer
    return (kept if config.trainer.gradient_checkpointing else layers * layer) + norm + sizes.copies


def _heads_width(shape: Any) -> tuple[int, int]:
    """Width Q of all query heads, and of all key (or value) heads."""
    heads = shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    return heads * size, (getattr(shape, "num_key_value_heads", None) or heads) * size


def estimate_memory(
    sizes: ModelSizes, config: TrainConfig, batches: Batches, device: torch.device, runtime: int
) -> MemoryEstimate:
    """Estimates what a process of a run takes while it loads the model, trains, and scores.

    A step holds the gradients of the step before until its own backward pass; validation scores beside them. FSDP2
    spreads weights, gradients and optimizer states over the processes of a replica, keeps them in host memory where
    `trainer.cpu_offload` says so, and gathers a layer at a time.

    Args:
        runtime: Bytes that a host holds before a model is loaded.
    """
    shape, e, on_gpu, trainer = sizes.shape, sizes.compute, device.type == "cuda", config.trainer
    hidden, inner, vocabulary = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    query, key_value = _heads_width(shape)
    per_weight = STATE_BYTES if config.optim.name is OptimizerName.adamw else STATE_BYTES_8BIT
    weights = dict(sizes.weights)
    states = {"gradients": sizes.gradients, "optimizer states": round(sizes.trained * per_weight)}
    host = 0
    if trainer.strategy is Strategy.fsdp2:
        shards = trainer.devices // trainer.replicas
        states = {name: -(-size // shards) for name, size in states.items()}
        weights = {name: size if name == SCALES else -(-size // shards) for name, size in weights.items()}
        if trainer.cpu_offload and on_gpu:
            host = sum(weights.values()) - weights[SCALES] + sum(states.values())
            weights, states = {SCALES: weights[SCALES], "shards on their way": -(-sizes.loading // shards)}, {}
        weights["gathered layers"] = sizes.gathered
    gaps = 1.0 if on_gpu else HEAP_GAPS
    start = {"CUDA context": CUDA_CONTEXT} if on_gpu else {"python and libraries": runtime}
    warm = start if on_gpu else {**start, "kernels": KERNEL_BUFFERS}
    tokens = batches.rows * batches.width + batches.prefix
    forward = batches.scored * 5 * inner
    attention = batches.scored * 3 * query + batches.cached * 2 * (query + key_value)
    phases = {
        "load": {**start, **weights, "weights being converted": sizes.loading},
        "train": {
            **warm,
            **weights,
            **states,
            "activations": round(gaps * activation_bytes(sizes, config, batches)),
            "logits": batches.labels * vocabulary * 4 * 3,  # as they are, their log-softmax, and the gradient
            "working space": round(gaps * (tokens * (3 * inner + 2 * hidden) * e + sizes.expanded)),
        },
        "score": {
            **warm,
            **weights,
            **states,
            "keys and values": round(gaps * 2 * shape.num_hidden_layers * batches.cached * key_value * e),
            "logits": min(batches.scored_labels * vocabulary, LOGITS_AT_ONCE) * 4 * 2,
            "working space": round(
                gaps * (max(forward, attention) * e + batches.scored * hidden * 12 + sizes.expanded)
            ),
        },
    }
    return MemoryEstimate(phases, host)


def overrides_that_fit(
    config: TrainConfig, total_of: Callable[[TrainConfig], int], capacity: int, *, on_gpu: bool
) -> list[str]:
    """Overrides whose estimate is within `capacity`, the first in the order of what they cost; empty where none is.

    Smaller scored batches cost least; then smaller micro-batches, with gradients accumulated over more of them, so that
    a step stays what it was; then gradient checkpointing, 8-bit optimizer states (on a GPU), lora, qlora.
    """
    data, trainer, method = config.data, config.trainer, config.method
    size, tokens, steps = data.micro_batch_size, data.max_batch_tokens, trainer.accumulate_grad_batches
    lighter = ["lora", "qlora"] if method_of(method).trains_all_weights else ["qlora"]
    unchanged: dict[str, Any] = {}
    methods = [unchanged, *({"method": name} for name in lighter if config.quant.name is QuantName.none)]
    optimizers = [unchanged, *([{"optim": OptimizerName.paged_adamw_8bit}] if on_gpu else [])]
    recomputing = [unchanged, *([] if trainer.gradient_checkpointing else [{"trainer.gradient_checkpointing": True}])]
    halves = [2**power for power in range(1, size.bit_length()) if size % 2**power == 0]
    more = {n: {} if data.batch_size else {"trainer.accumulate_grad_batches": steps * n} for n in halves}
    batches = [{"data.micro_batch_size": size // n, **more[n]} for n in halves]
    limits = [{"data.max_batch_tokens": tokens >> power} for power in range(1, 9) if tokens >> power >= 256]
    for parts in product(methods, optimizers, recomputing, [unchanged, *batches], [unchanged, *limits]):
        changes = {key: value for part in parts for key, value in part.items()}
        candidate = _changed(config, changes)
        if total_of(candidate) <= capacity and not any(device_problems(candidate)):
            return [f"{key}={str(value).lower()}" for key, value in changes.items()]
    return []


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The configuration with overrides of `overrides_that_fit`."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        group, _, name = key.partition(".")
        setattr(getattr(config, group), name or "name", value)
    if "method" in changes:
        config.method._target_, config.method.lora = LORA, config.method.lora or LoraConfig()
        config.quant.name = QuantName.nf4 if changes["method"] == "qlora" else QuantName.none
    return config


def resident_bytes() -> int:
    """Host memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes(device: torch.device) -> int:
    """Memory that this process may hold in all: what it has, and what is free within its and its container's limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) + CUDA_CONTEXT
    process = psutil.Process()
    free = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no such group, or `max`; psutil does not read a container's limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cache = int(counts["active_file"]) + int(counts["inactive_file"])  # of files, which the kernel frees
        free.append(max(0, limit - used + cache))
    if hasattr(process, "rlimit") and process.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY:
        free.append(process.rlimit(psutil.RLIMIT_AS)[0] - process.memory_info().vms)
    return resident_bytes() + min(free)


def release_freed_memory() -> None:
    """Returns freed memory to the system: glibc keeps it in gaps that another phase's tensors seldom fit in."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
        ctypes.CDLL(None).malloc_trim(0)

"""What a run takes in memory, phase by phase: the peak is that of the phase that takes most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cyberlm.config.schema import OptimizerName
from cyberlm.evaluation.scoring import LOGITS_AT_ONCE
from cyberlm.planning.activations import MicroBatch, saved_activations
from cyberlm.planning.network import Network

SMALLEST_8BIT = 4096
"""bitsandbytes keeps 32-bit states for tensors with fewer elements (`min_8bit_size`)."""
STATE_BLOCK = 256
"""Elements of an 8-bit state that share a float32 scale (bitsandbytes)."""
CUDA_CONTEXT = 600 * 2**20
"""A CUDA context with cuBLAS's workspace, which torch does not count: about half a GiB on recent cards (an allowance,
not measured here)."""

HEAP_SLACK = 0.3
"""Share of what comes and goes that a host's allocator takes on top: glibc serves aligned blocks from a heap
in which the gaps between what is kept are seldom of use again (measured: docs/planning.md)."""
KERNEL_BUFFERS = 150 * 2**20
"""What oneDNN and MKL take on a host, compiled products that are kept among it (measured: docs/planning.md)."""

PASSING = ("activations", "working space", "keys and values")
"""Parts made of many blocks that come and go."""

Bytes = Mapping[str, int]


@dataclass(frozen=True)
class ScoringBatch:
    """The shape of one batch of questions whose options are scored.

    Attributes:
        rows: Questions B.
        width: Tokens T of the longest prompt, prefix left out.
        prefix: Tokens that all prompts begin with, where they are encoded once.
        options: Most options K of a question.
        option_width: Tokens O of the longest option.
        continued: Option tokens behind each option's first, in all rows: places that the output head is applied to.
    """

    rows: int
    width: int
    options: int
    option_width: int
    continued: int
    prefix: int = 0


@dataclass(frozen=True)
class GenerationBatch:
    """The shape of one batch of greedy completions: at most `new` tokens behind each prompt.

    Attributes:
        rows: Prompts B.
        width: Tokens T of the longest, prefix left out.
        new: Tokens of a completion.
        prefix: Tokens that all begin with, where they are encoded once.
    """

    rows: int
    width: int
    new: int
    prefix: int = 0


@dataclass(frozen=True)
class Workload:
    """All batches of a run, by shape.

    Attributes:
        training: Micro-batches in their order.
        accumulate: Of these in an optimizer step.
        scoring, generation: Batches of the test questions.
        validation: Batches that are scored while gradients and optimizer states are held.
    """

    training: tuple[MicroBatch, ...]
    accumulate: int
    scoring: tuple[ScoringBatch, ...]
    generation: tuple[GenerationBatch, ...]
    validation: tuple[ScoringBatch, ...]


@dataclass(frozen=True)
class Placement:
    """Where and how a run takes place.

    Attributes:
        optimizer: Whose states are counted.
        checkpointing: Of gradients (`trainer.gradient_checkpointing`).
        on_gpu: Otherwise host memory is planned.
        runtime: Bytes that Python and libraries hold before a model is loaded; on a GPU `CUDA_CONTEXT`.
        converted: Bytes that loading holds beside the weights, where it converts or quantises them on the host.
    """

    optimizer: OptimizerName
    checkpointing: bool
    on_gpu: bool
    runtime: int
    converted: int = 0


def phases(network: Network, work: Workload, place: Placement) -> dict[str, dict[str, int]]:
    """Bytes of each part in each phase of a run, at the phase's own peak."""
    weights = {"python and libraries" if not place.on_gpu else "CUDA context": place.runtime, **network.weights}
    trained = {**weights, "adapter weights": network.adapter}
    states = optimizer_states(network, place.optimizer)
    held: Bytes = {**trained, "gradients": network.gradients, "optimizer states": states}
    found = {"load": {**weights, "weights being converted": place.converted}}
    answering = list(_answering(network, work.scoring, work.generation))
    if answering:
        found["score"] = {**trained, **_largest(answering)}
    found["train"] = {**trained, **_largest(list(_steps(network, work, place)))}
    found["validate"] = {**held, **_largest(list(_answering(network, work.validation, ())))}
    if not place.on_gpu:
        for name, parts in found.items():
            if name != "load":
                slack = HEAP_SLACK * sum(parts.get(part, 0) for part in PASSING)
                parts["kernels and allocator"] = KERNEL_BUFFERS + round(slack)
    return {name: {part: size for part, size in parts.items() if size} for name, parts in found.items()}


def _largest(candidates: Sequence[Bytes]) -> dict[str, int]:
    def in_all(parts: Bytes) -> int:
        return sum(parts.values())

    largest = max(candidates, key=in_all, default={})
    return dict(largest)


def optimizer_states(network: Network, optimizer: OptimizerName) -> int:
    """Bytes of AdamW's two running means: float32, or 8-bit with a scale for each block (bitsandbytes)."""
    if optimizer is OptimizerName.adamw:
        return 2 * 4 * sum(network.trained)
    large = [count for count in network.trained if count >= SMALLEST_8BIT]
    blocks = sum(-(-count // STATE_BLOCK) for count in large)
    tables = 2 * 256 * 4  # of the codes, shared by all tensors
    return 2 * (sum(large) + 4 * blocks) + tables + 2 * 4 * sum(n for n in network.trained if n < SMALLEST_8BIT)


# -------------------------------------------------------------------------------------------------------- training


def _steps(network: Network, work: Workload, place: Placement) -> Iterator[dict[str, int]]:
    """What each micro-batch holds beside the weights; equal shapes in an equal state are looked at once."""
    states = optimizer_states(network, place.optimizer)
    seen = set()
    for number, batch in enumerate(work.training):
        stepped, opens = number >= work.accumulate, number % work.accumulate == 0
        if (batch, stepped, opens, number == 0) in seen:
            continue
        seen.add((batch, stepped, opens, number == 0))
        yield from _micro_batch(network, batch, place, states if stepped else 0, first=number == 0, opens=opens)
    yield {"gradients": network.gradients, "optimizer states": states}


def _micro_batch(
    network: Network, batch: MicroBatch, place: Placement, states: int, *, first: bool, opens: bool
) -> Iterator[dict[str, int]]:
    """The end of a micro-batch's forward pass, the start of its backward pass, and the end of it.

    Gradients of the step before are dropped behind the forward pass that opens a step, not before it (Lightning).
    """
    kept = saved_activations(network, batch, checkpointing=place.checkpointing)
    logits = kept.pop("logits and loss")
    recomputed = kept.pop("recomputed block", 0)
    activations = sum(kept.values()) + network.half_copies
    old = 0 if first else network.gradients
    loss = batch.labels * network.vocabulary * 4
    yield {
        "optimizer states": states,
        "gradients": old,
        "activations": activations,
        "logits and loss": logits + loss,  # the logits themselves, and their log-softmax
    }
    accumulated = 0 if opens else network.gradients
    working = max(_backward_work(network, batch) + recomputed, 2 * loss)
    yield {
        "optimizer states": states,
        "gradients": accumulated + network.head_gradient,
        "activations": activations,
        "logits and loss": logits,
        "working space": working,
    }


def _backward_work(network: Network, batch: MicroBatch) -> int:
    """Gradients on their way through one block's feed-forward layer, and a weight expanded from 4 bits."""
    wide = 3 * network.inner + 2 * network.hidden
    return batch.tokens * wide * network.numbers.compute + _expanded(network)


def _expanded(network: Network) -> int:
    if not network.quantised:
        return 0
    return max(layer.inputs * layer.outputs for layer in network.projections) * network.numbers.compute


# -------------------------------------------------------------------------------------------------------- answering


def _answering(
    network: Network, scoring: Sequence[ScoringBatch], generation: Sequence[GenerationBatch]
) -> Iterator[dict[str, int]]:
    for batch in dict.fromkeys(scoring):
        yield from _scoring(network, batch)
    for prompts in dict.fromkeys(generation):
        yield from _generation(network, prompts)


def _scoring(network: Network, batch: ScoringBatch) -> Iterator[dict[str, int]]:
    """The pass over the prompts, then the pass over the options from the prompts' keys and values."""
    prompts = batch.rows * (batch.width + batch.prefix)
    cached = prompts if batch.option_width > 1 or batch.prefix else 0
    yield {
        "keys and values": _cache(network, cached),
        "working space": max(
            _forward_work(network, batch.rows * batch.width, prompts), _head_work(network, batch.rows)
        ),
    }
    if batch.option_width > 1:
        rows = batch.rows * batch.options
        inputs = rows * (batch.option_width - 1)
        attended = rows * (batch.width + batch.prefix) + inputs
        yield {
            "keys and values": _cache(network, attended),
            "logits and loss": _head_work(network, batch.continued),
        }
        mask = inputs * (batch.width + batch.prefix + batch.option_width) * (1 + network.numbers.compute)
        yield {
            "keys and values": _cache(network, attended),
            "working space": _forward_work(network, inputs, attended) + mask,
        }


def _generation(network: Network, batch: GenerationBatch) -> Iterator[dict[str, int]]:
    prompts = batch.rows * (batch.width + batch.prefix)
    yield {
        "keys and values": _cache(network, prompts),
        "working space": _forward_work(network, batch.rows * batch.width, prompts),
    }
    attended = prompts + batch.rows * batch.new
    yield {
        "keys and values": _cache(network, attended),
        "working space": max(_forward_work(network, batch.rows, attended), _head_work(network, batch.rows)),
    }


def _cache(network: Network, places: int) -> int:
    return 2 * network.blocks * places * network.key_value * network.numbers.compute


def _head_work(network: Network, places: int) -> int:
    """Logits and their log-softmax in float32, of so many places at a time as `cyberlm.evaluation.scoring` takes."""
    return min(places * network.vocabulary, LOGITS_AT_ONCE) * (4 + 4)


def _forward_work(network: Network, tokens: int, attended: int) -> int:
    """Most that a block holds at once without gradients, in its feed-forward layer or in attention.

    Feed-forward: silu(gate), up and their product; an adapter's own output beside up's, and its scaled copy, where
    neither is added as it is computed.
    Attention: queries before and after rotation, keys and values with the cache and repeated for each head, the output.
    """
    numbers = network.numbers
    adapted = any(layer.rank and layer.name == "up_proj" and not layer.fused for layer in network.projections)
    forward = tokens * (3 + 2 * adapted) * network.inner
    attention = tokens * 3 * network.query + attended * 2 * (network.query + network.key_value)
    stream = tokens * 3 * network.hidden * 4
    return max(forward, attention) * numbers.compute + stream + _expanded(network)

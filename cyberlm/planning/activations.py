"""Bytes that one forward pass keeps for the backward pass, from what PyTorch saves in the modules of a Llama block.

Source of every term: `transformers/models/llama/modeling_llama.py` (5.x), PEFT's LoRA layer, and the tensors that
autograd saves for each operation in them. `tests/test_planning.py` compares the sums with what autograd really saves.

A frozen linear layer saves nothing but its weight; one that is trained, or has an adapter, saves its input. RMSNorm
computes in float32. The activation of the feed-forward layer is silu(gate) * up, where all three are saved.
"""

from dataclasses import dataclass

from cyberlm.config.schema import Attention
from cyberlm.planning.network import Network, Projection

SHARED_INPUTS = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
}
"""Projections that read the same tensor."""
ALREADY_STORED = ("o_proj",)
"""Reads what attention gives, which attention has saved."""


@dataclass(frozen=True)
class MicroBatch:
    """The shape of one micro-batch of training.

    Attributes:
        rows: Questions B.
        width: Tokens T of the longest, prefix left out.
        prefix: Tokens P that all begin with, where they are encoded once.
        labels: Answer tokens N in all rows: the places that the output head is applied to.
    """

    rows: int
    width: int
    labels: int
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Places that go through the model."""
        return self.rows * self.width + self.prefix

    @property
    def attended(self) -> int:
        """Places whose keys and values attention reads, in all rows, and in the prefix's own pass."""
        return self.rows * (self.width + self.prefix) + self.prefix


def saved_activations(network: Network, batch: MicroBatch, *, checkpointing: bool) -> dict[str, int]:
    """Bytes that autograd holds when the forward pass ends, the loss included.

    Args:
        checkpointing: Only the input of each block is kept; one block is then computed again at a time.

    Returns:
        By term; with checkpointing `recomputed block` is what the backward pass brings back of one block.
    """
    numbers, tokens = network.numbers, batch.tokens
    block = _saved_by_a_block(network, batch)
    if checkpointing:
        kept = {"block inputs": network.blocks * tokens * network.hidden * numbers.stream}
        kept["recomputed block"] = sum(block.values())
    else:
        kept = {name: network.blocks * size for name, size in block.items()}
        if not network.all_trained:  # nothing before the first adapter needs a gradient
            kept["norms"] -= tokens * (network.hidden + 1) * 4
    kept["last norm"] = _norm(network, tokens)
    kept["logits and loss"] = batch.labels * (network.vocabulary * 4 + 8)
    if network.all_trained:
        kept["logits and loss"] += batch.labels * network.hidden * numbers.compute
    return kept


def _norm(network: Network, tokens: int) -> int:
    """The float32 input and its scale; a trained norm's output before its weight, too."""
    trained = network.hidden * network.numbers.stream if network.all_trained else 0
    return tokens * (4 * network.hidden + 4 + trained)


def _saved_by_a_block(network: Network, batch: MicroBatch) -> dict[str, int]:
    numbers, tokens = network.numbers, batch.tokens
    attended = batch.attended if network.attention is not Attention.flash_attention_2 else 0
    kept = {
        "norms": 2 * _norm(network, tokens),
        "queries and attention output": 2 * tokens * network.query * numbers.compute,
        "keys and values, repeated for each head": 2 * attended * network.query * numbers.compute,
        "silu(gate) * up": 3 * tokens * network.inner * numbers.compute,
        "inputs of linear layers": sum(_inputs(network, tokens).values()),
    }
    pairs = batch.rows * batch.width * (batch.width + batch.prefix)
    if network.attention is Attention.eager:
        copy = 0 if numbers.compute == 4 else numbers.compute  # softmax is in float32
        kept["attention weights"] = network.heads * pairs * (4 + copy)
    else:
        kept["attention normalisers"] = tokens * network.heads * 4
    if network.attention is Attention.sdpa and batch.prefix:  # padding needs no mask (cyberlm.data.batches.AnswerBatch)
        kept["attention mask"] = pairs * numbers.compute
    if network.attention is Attention.flash_attention_2:
        kept["keys and values"] = 2 * tokens * network.key_value * numbers.compute
    if any(projection.rank for projection in network.projections):
        kept["adapters"] = tokens * sum(_adapter(network, projection) for projection in network.projections)
    return kept


def _inputs(network: Network, tokens: int) -> dict[str, int]:
    """Bytes of the inputs that linear layers save, each tensor once.

    Autocast of float32 inputs, and adapters in float32 on a bfloat16 base, convert an input for each layer: then
    nothing is shared.
    Dropout, too, gives each adapter an input of its own.
    """
    numbers = network.numbers
    kept: dict[str, int] = {}
    for projection in network.projections:
        if not (network.all_trained or projection.rank):
            continue
        width = numbers.adapter if projection.rank else numbers.compute
        size = tokens * projection.inputs * width
        alone = _has_own_input(network, projection)
        if alone or projection.name not in ALREADY_STORED:
            kept[projection.name if alone else SHARED_INPUTS.get(projection.name, projection.name)] = size
    return kept


def _has_own_input(network: Network, projection: Projection) -> bool:
    numbers = network.numbers
    if projection.rank:
        converted = numbers.stream != numbers.adapter or (numbers.autocast and numbers.widened)
        return converted or network.dropout > 0
    return numbers.autocast and numbers.stream == 4 and projection.name in SHARED_INPUTS


def _adapter(network: Network, projection: Projection) -> int:
    """Bytes for one token: A x, dropout's mask, and with DoRA the outputs that its magnitude is learned from."""
    if not projection.rank:
        return 0
    size = projection.rank * network.numbers.adapter
    if network.dropout:
        size += projection.inputs * network.numbers.mask
    if network.dora:
        size += 2 * projection.outputs * network.numbers.compute
    return size

"""What all prompts of a batch begin with (system prompt, instructions), encoded once instead of once a question.

Keys and values of the shared tokens are the same in every row, since a token sees only what stands before it; a
gradient to them is the sum over the rows. So results are those of whole prompts, with fewer tokens computed.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

SHORTEST = 8
"""Fewer shared tokens are not worth a forward pass of their own."""


def shared_length(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens to encode once: those that all rows begin with, where that saves work.

    Args:
        rows: Token ids of each prompt; every row keeps at least its last token.
    """
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # in lexicographic order: what these two share, all share
    most = min(map(len, rows)) - 1
    length = next((k for k in range(most) if first[k] != last[k]), most)
    return length if length >= SHORTEST else 0


def encode_prefix(backbone: nn.Module, config: PretrainedConfig, prefix_ids: Tensor, rows: int) -> DynamicCache | None:
    """Keys and values of the shared tokens, as the past of `rows` continuations.

    Args:
        backbone: Token ids to hidden states, with gradients where it is trained.
        config: Of the model.
        prefix_ids: (P,) int64.
        rows: Batch size B of what continues.

    Returns:
        A cache of (B, heads, P, head size) a layer; None where P is 0.
    """
    if not len(prefix_ids):
        return None
    cache = DynamicCache(config=config)
    backbone(input_ids=prefix_ids[None], past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)  # type: ignore[union-attr]
        layer.values = layer.values.expand(rows, -1, -1, -1)  # type: ignore[union-attr]
    return cache

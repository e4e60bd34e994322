"""Prefix cache: what all prompts of a batch begin with (system prompt, instructions) is encoded once.

Keys and values of the shared tokens are the same in every row, since a token attends to earlier tokens only; a
gradient to them is the sum over the rows. So results are those of whole prompts, with fewer tokens computed.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

MIN_SHARED_TOKENS = 8
"""Fewer shared tokens are not worth a forward pass of their own."""
MIN_SAVED_TOKENS_ON_GPU = 8192
"""Tokens that sharing must save a batch on a GPU: there the host launches kernels more slowly than they compute a few
thousand tokens, and the prefix is a pass of its own (docs/performance.md)."""
PROBE_TOKENS = 12
"""Tokens that a model is tried on when it is loaded."""
MAX_ROUNDING = 0.3
"""Distance of hidden states that is more than rounding, however deep the model."""


def shared_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Counts the tokens to encode once: those that all rows begin with, where that saves work.

    Args:
        rows: Token ids of each prompt; every row keeps at least its last token.
    """
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # in lexicographic order: what these two share, all share
    most = min(map(len, rows)) - 1
    length = next((k for k in range(most) if first[k] != last[k]), most)
    return length if length >= MIN_SHARED_TOKENS else 0


def saves_enough(shared: int, rows: int, device: torch.device) -> bool:
    """True where computing `shared` tokens once for `rows` rows is worth a pass of its own."""
    return device.type != "cuda" or shared * (rows - 1) >= MIN_SAVED_TOKENS_ON_GPU


def encode_prefix(backbone: nn.Module, config: PretrainedConfig, prefix_ids: Tensor, rows: int) -> DynamicCache | None:
    """Keys and values of the shared tokens (P,), as the past of `rows` continuations.

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


def cacheable_tokens_of(config: PretrainedConfig) -> int:
    """Tokens up to which a model's cache is the keys and values of all tokens before, in their order.

    Beyond, keys that have left a sliding window or a chunk of attention are dropped, and padding counts as distance.

    Returns:
        The smallest window or chunk; `sys.maxsize` where there is none; 0 where the cache holds anything else, for
        example the states of recurrent or convolutional layers.
    """
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a kind of layer that transformers has no cache for
        return 0
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=sys.maxsize)


@torch.inference_mode()
def find_cacheable_tokens(backbone: nn.Module, config: PretrainedConfig, device: torch.device) -> int:
    """`cacheable_tokens_of`, or 0 where a model in eval mode does not give from its cache what it gives for whole rows.

    Two rows share a prefix, continue with padding behind the shorter, and continue once more behind the padding.
    """
    limit = cacheable_tokens_of(config)
    if limit < PROBE_TOKENS:
        return 0
    ids = torch.arange(PROBE_TOKENS, device=device).repeat(2, 1)  # (2, 12): 4 shared, 4 (2 in the second row), 4 more
    mask = torch.ones_like(ids)
    mask[1, 6:8] = 0
    positions = (mask.cumsum(1) - 1)[:, 8:]
    try:
        past = encode_prefix(backbone, config, ids[0, :4], rows=2)
        backbone(input_ids=ids[:, 4:8], past_key_values=past, use_cache=True)
        continued = backbone(
            input_ids=ids[:, 8:], attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
        ).last_hidden_state
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):  # it takes no such cache
        return 0
    rows = (ids[0], ids[1][mask[1].bool()])
    whole = [backbone(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
    expected = torch.stack([row[-4:] for row in whole])
    if nearly_equal(continued, expected):
        return limit
    # rounding, where other shapes are computed by other kernels, grows in a deep model of few bits
    begun = backbone(input_ids=ids[:1, :8], use_cache=False).last_hidden_state[0]
    masked = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0]
    rounding = max(distance(begun, whole[0][:8]), distance(masked, whole[0]))
    return limit if distance(continued, expected) <= min(2 * rounding, MAX_ROUNDING) else 0


def nearly_equal(found: Tensor, expected: Tensor) -> bool:
    """Compares two ways to compute hidden states, up to rounding."""
    return distance(found, expected) <= (1e-3 if expected.dtype == torch.float32 else 5e-2)


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of `expected`."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())

"""Floating-point operations that a training step of a Llama needs: of the model, on non-padding tokens, nothing
recomputed.

A matrix of p weights costs 2p a token in the forward pass; in the backward pass 2p for the gradient of its input and
2p for its own. So per token:

- full fine-tuning: 6p for every matrix (arXiv 2001.08361, section 2.1);
- LoRA: 4p for a frozen matrix, which needs no gradient of its own, and 6n for an adapter's n weights. The query, key
  and value matrices of the first layer need no gradient of their input either, because the embedding is frozen.

The output head counts on the places that are trained on only: 4VH each when frozen, else 6VH. Attention over an
example of T tokens costs, per layer, 2·2·d·T(T+1)/2 forward (scores and mixture, d = heads × head size, the causal
half only) and twice that backward: 6d·T(T+1). Norms, rotations, softmax and the optimizer count nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of one layer's matrices."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q": (self.hidden, queries),
            "k": (self.hidden, keys),
            "v": (self.hidden, keys),
            "o": (queries, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }


def shape_of(config: Any) -> Shape:
    """From a transformers LlamaConfig."""
    return Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.vocab_size,
    )


def training_flops(shape: Shape, lengths: Sequence[int], labels: int, rank: int | None, shared: int = 0) -> float:
    """One forward and backward pass.

    Args:
        lengths: Input tokens of each example, padding left out.
        labels: Places that are trained on.
        rank: Of LoRA on all matrices but the head; None for full fine-tuning.
        shared: Tokens that all examples begin with and that are computed once; they are left out of `lengths`.
    """
    pairs = shared * (shared + 1) + sum(n * (n + 1) + 2 * n * shared for n in lengths)  # twice those of attention
    tokens = shared + sum(lengths)
    attention = 6 * shape.heads * shape.head_size * shape.layers * pairs
    matrices = shape.matrices()
    weights = sum(a * b for a, b in matrices.values())
    head = shape.vocabulary * shape.hidden * labels
    if rank is None:
        return 6.0 * shape.layers * weights * tokens + 6.0 * head + attention
    adapters = sum(rank * (a + b) for a, b in matrices.values())
    no_gradient = sum(2 * a * b + 2 * rank * a for a, b in (matrices[name] for name in "qkv"))
    layers = shape.layers * (4 * weights + 6 * adapters) - no_gradient
    return float(layers) * tokens + 4.0 * head + attention

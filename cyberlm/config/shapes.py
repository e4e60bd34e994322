"""Sizes of models: of the tiny one of tests, and of one that is planned for and out of reach."""

from dataclasses import dataclass

from omegaconf import MISSING

from cyberlm.config.bounds import at_least


@dataclass
class TinyModelConfig:
    """Shape of a randomly initialised Llama with a byte-level tokenizer, for tests."""

    hidden_size: int = at_least(1, 64)
    """Width H."""
    intermediate_size: int = at_least(1, 192)
    """Width of the feed-forward layer."""
    num_hidden_layers: int = at_least(1, 2)
    """Decoder blocks."""
    num_attention_heads: int = at_least(1, 4)
    """Query heads."""
    num_key_value_heads: int = at_least(1, 2)
    """Key and value heads."""
    tie_word_embeddings: bool = False
    """Use the input embedding as the output head."""
    seed: int = at_least(0, 0)
    """Of the random weights."""


@dataclass
class ShapeConfig:
    """Published sizes of a model of Llama's kind, for plan=true where the model itself cannot be reached."""

    hidden_size: int = MISSING
    """Width H."""
    intermediate_size: int = MISSING
    """Width of the feed-forward layer."""
    num_hidden_layers: int = MISSING
    """Decoder blocks."""
    num_attention_heads: int = MISSING
    """Query heads."""
    num_key_value_heads: int = MISSING
    """Key and value heads."""
    head_dim: int | None = None
    """Width of a head; null: hidden_size / num_attention_heads."""
    vocab_size: int = MISSING
    """Tokens of the vocabulary."""

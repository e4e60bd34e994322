"""Tiny models of many architectures, saved as folders with the tiny tokenizer."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from cyberlm.models.tiny import tiny_tokenizer

VOCABULARY = len(tiny_tokenizer())
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def _shape(**more: object) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.125,
        "tie_word_embeddings": False,
        "bos_token_id": VOCABULARY - 6,
        "eos_token_id": VOCABULARY - 5,
        "pad_token_id": VOCABULARY - 1,
        **more,
    }


def _of(name: str, **more: object) -> Callable[[], PreTrainedModel]:
    """A model by the name of its class in transformers, for example Qwen3 or Gemma3Text."""

    def make() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(**_shape(**more))
        model: PreTrainedModel = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
        return model

    return make


def _gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=2048,
        initializer_range=0.125,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"), 0.0),
    )
    return transformers.GPT2LMHeadModel(config)


PLAIN = {
    "llama": _of("Llama"),
    "qwen2": _of("Qwen2"),
    "qwen3": _of("Qwen3", head_dim=16),
    "phi3": _of("Phi3"),
    "olmo2": _of("Olmo2"),
    "mixtral": _of("Mixtral", num_local_experts=2, sliding_window=None),
    "gpt2": _gpt2,
}
"""The cache is the keys and values of all tokens."""
WINDOWED = {
    "mistral_16": _of("Mistral", sliding_window=16),
    "mistral_64": _of("Mistral", sliding_window=64),
    "gemma3": _of("Gemma3Text", head_dim=16, sliding_window=32, layer_types=["sliding_attention", "full_attention"]),
    "llama4": _of(
        "Llama4Text",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=32,
    ),
}
"""The cache is that up to a window, or a chunk of attention."""
RECURRENT = {
    "lfm2": _of("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "qwen3_next": _of("Qwen3Next", num_experts=0, mlp_only_layers=[0, 1], **LINEAR),
    "qwen3_5": _of("Qwen3_5Text", **LINEAR),
    "granite_hybrid": _of(
        "GraniteMoeHybrid",
        layer_types=["mamba", "attention"],
        num_local_experts=0,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_expand=2,
        mamba_n_groups=1,
        mamba_d_state=16,
        shared_intermediate_size=128,
    ),
    "mamba": _of("Mamba", state_size=8),
}
"""The cache holds other states."""
FAMILIES = {**PLAIN, **WINDOWED, **RECURRENT}


def save_family(name: str, folder: Path) -> Path:
    """Writes a model with random weights, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FAMILIES[name]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder

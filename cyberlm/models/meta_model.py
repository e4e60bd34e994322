"""Models without weights: every tensor has its shape and its type, and nothing behind it (torch's meta device)."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig
from transformers.quantizers.base import get_keys_to_not_convert

from cyberlm.config.schema import LoraConfig, ModelConfig, ModelSource, QuantName, ShapeConfig
from cyberlm.models.adapters import add_adapter
from cyberlm.models.loaded import LoadedModel, quiet
from cyberlm.models.loading import locate, read_shape, weights_dtype
from cyberlm.models.tiny import hash_tensors, tiny_model, tiny_tokenizer


@dataclass
class Skeleton:
    """A model as it would be trained, on the meta device.

    Attributes:
        loaded: The model, with its adapter where it has one.
        base: Parameters of the base model.
        quantised: Parameters that bitsandbytes would store in 4 bits: those of linear layers, but neither the output
            head nor what is tied to it.
    """

    loaded: LoadedModel
    base: tuple[nn.Parameter, ...]
    quantised: tuple[nn.Parameter, ...]

    @property
    def shape(self) -> PretrainedConfig:
        return self.loaded.causal.config.get_text_config(decoder=True)


def hash_weights(config: ModelConfig) -> str:
    """`LoadedModel.weights_hash` of a base model: its weights are hashed where they lie, and not loaded."""
    if config.source is ModelSource.tiny:
        assert config.tiny is not None
        return hash_tensors(tiny_model(config.tiny, len(tiny_tokenizer())))
    digest = locate(config).digest or getattr(read_shape(config), "_commit_hash", None)
    return digest or "unknown"


def published_shape(shape: ShapeConfig, tied: bool) -> LlamaConfig:
    """A Llama's configuration from the sizes that its authors published: enough to count its memory."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        tie_word_embeddings=tied,
    )


def build_skeleton(
    shape: PretrainedConfig, model: ModelConfig, quant: QuantName, lora: LoraConfig | None, device: torch.device
) -> Skeleton:
    """Builds the model of a configuration, with its adapter or with every weight trainable.

    Args:
        shape: The model's own configuration (`cyberlm.models.loading.read_shape`), or `published_shape`.
        model, quant, lora: As in the run that is planned; lora is None for full fine-tuning.
        device: Where the run would take place: it decides the type of the weights.
    """
    dtype = weights_dtype(model, device, lora is None)
    with torch.device("meta"), quiet():
        causal = AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=model.trust_remote_code)
    kept = get_keys_to_not_convert(causal) if quant is QuantName.nf4 else []
    quantised = tuple(
        cast(nn.Parameter, module.weight)
        for name, module in causal.named_modules()
        if quant is QuantName.nf4 and isinstance(module, nn.Linear) and name not in kept
    )
    base = tuple(causal.parameters())
    loaded = LoadedModel(causal, causal, model.name, "none")
    if lora is None:
        causal.requires_grad_(True)
    else:
        loaded = add_adapter(loaded, lora, gradient_checkpointing=False)
    return Skeleton(loaded, base, quantised)

"""A Llama with random weights, drawn where they are used: nothing is downloaded, nothing big is saved."""

from typing import Any

SEED = 0

LLAMA_3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
TINY = {
    **LLAMA_3_8B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


SFT_LAYERS = 8
"""Of full fine-tuning: states, gradients and activations of all 32 layers fit no card of 80 GB, and paged states, which
take more managed memory than a card has free, can hang it."""


def shape(tiny: bool, method: str) -> Any:
    """As a transformers LlamaConfig."""
    from transformers import LlamaConfig

    sizes = dict(TINY if tiny else LLAMA_3_8B)
    if method == "sft":
        sizes["num_hidden_layers"] = min(SFT_LAYERS, sizes["num_hidden_layers"])
    return LlamaConfig(**sizes, attn_implementation="sdpa", pad_token_id=0)


def random_model(method: str, device: str, tiny: bool) -> Any:
    """The same numbers on both sides; bfloat16, or float32 where all weights are trained or there is no GPU."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    dtype = torch.float32 if method == "sft" or device == "cpu" else torch.bfloat16
    torch.set_default_dtype(dtype)
    try:
        if method == "qlora":
            return _random_nf4(shape(tiny, method), device, dtype)
        with torch.device(device):
            return LlamaForCausalLM(shape(tiny, method))
    finally:
        torch.set_default_dtype(torch.float32)


def _random_nf4(config: Any, device: str, dtype: Any) -> Any:
    """Each layer is drawn and quantised by itself: the whole model never exists in 16 bits."""
    import bitsandbytes
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, LlamaForCausalLM
    from transformers.integrations import replace_with_bnb_linear
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.quantizers import AutoHfQuantizer

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=settings)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            size = weight.shape
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                size = (module.out_features, module.in_features)  # a 4-bit weight on meta may already be packed
            drawn = torch.empty(size, dtype=dtype, device=device)
            drawn.fill_(1.0) if drawn.dim() == 1 else drawn.normal_(std=config.initializer_range)
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                packing = {"quant_type": "nf4", "compress_statistics": True, "module": module}
                module.weight = bitsandbytes.nn.Params4bit(drawn, requires_grad=False, **packing).to(device)
            else:
                setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.is_loaded_in_4bit = model.is_quantized = True  # what from_pretrained leaves behind, and PEFT and TRL look at
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.config.quantization_config = settings
    return model

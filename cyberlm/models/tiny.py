"""A Llama small enough for tests: random weights, a byte-level tokenizer, Llama 3's chat format."""

import hashlib
import string

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cyberlm.config.shapes import TinyModelConfig

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a space joined with each capital letter, so that " A" is one token as in real vocabularies."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: k for k, symbol in enumerate(symbols)}
    space = "Ġ"
    merges = [(space, letter) for letter in string.ascii_uppercase]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[5],
        additional_special_tokens=list(SPECIAL[2:5]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_shape(config: TinyModelConfig, vocab_size: int) -> LlamaConfig:
    sizes = {name: value for name, value in vars(config).items() if name != "seed"}
    return LlamaConfig(
        **sizes,
        vocab_size=vocab_size,
        initializer_range=config.hidden_size**-0.5,  # a frozen random head can then still reach any letter
        max_position_embeddings=4096,
        bos_token_id=vocab_size - len(SPECIAL),
        eos_token_id=vocab_size - len(SPECIAL) + 1,
        pad_token_id=vocab_size - 1,
    )


def tiny_model(config: TinyModelConfig, vocab_size: int) -> LlamaForCausalLM:
    """A Llama with weights drawn from `config.seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(tiny_shape(config, vocab_size))


def hash_tensors(model: nn.Module) -> str:
    """SHA-256 of all weights of a model on the CPU."""
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()

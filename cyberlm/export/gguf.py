"""GGUF export, by llama.cpp's converter where it is installed, else (Llama only) by the `gguf` package.

Names, metadata and the order of the rows of query and key weights follow llama.cpp's convert_hf_to_gguf.py.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, get_gguf_tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cyberlm.config.commands import GgufType
from cyberlm.models.loaded import LoadedModel, open_causal, quiet
from cyberlm.runtime.errors import ModelError, Problem

CONVERTER = "convert_hf_to_gguf.py"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_SPLIT = {"Regex": GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]}
PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([BYTE_LEVEL], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], False),
    "llama-bpe": (
        [
            {"type": "Split", "pattern": LLAMA3_SPLIT, "behavior": "Isolated", "invert": False},
            {**BYTE_LEVEL, "use_regex": False},
        ],
        True,
    ),
}
"""Steps of llama.cpp's cut of text under each name of `tokenizer.ggml.pre`; True where a word that is a token stays."""


def write_gguf(folder: Path, file: Path, kind: GgufType, name: str, licence: str) -> str:
    """Writes `file` by the converter in the folder $LLAMA_CPP_DIR or on the PATH, else by `gguf`; says which.

    Raises:
        ModelError: If the converter fails or is not there, and the model is more than this module can write.
    """
    given = os.environ.get("LLAMA_CPP_DIR")
    converter = f"{given}/{CONVERTER}" if given else shutil.which(CONVERTER)
    if converter is None:
        write_llama(folder, file, kind, name, licence)
        return f"gguf {metadata.version('gguf')}"
    if not Path(converter).is_file():
        raise ModelError(f"LLAMA_CPP_DIR={given} holds no {CONVERTER}.", hint="Point it at a copy of llama.cpp.")
    line = [sys.executable, converter, str(folder), "--outfile", str(file), "--outtype", kind.value]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not file.is_file():
        last = [row for row in (done.stderr or done.stdout).splitlines() if row.strip()][-3:]
        raise ModelError(f"{converter} failed (exit code {done.returncode}):", [Problem(row) for row in last])
    return CONVERTER


def load_gguf(file: Path, device: torch.device, dtype: torch.dtype, source: Path) -> LoadedModel:
    """Reads a GGUF file back with transformers.

    Args:
        source: The transformers folder that the file was made from: Llama 3.1's rotary frequencies, a tensor of their
            own in the file, are read from its configuration.
    """
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar cannot be switched off
        config = AutoConfig.from_pretrained(str(source))
        options = {} if config.rope_parameters["rope_type"] == "default" else {"config": config}
        causal = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=dtype, device_map={"": device}, **options
        )
    return open_causal(causal, str(file), "")


def check_tokens(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a GGUF file whose byte-level BPE tokens, merges, cuts or chat template are not those of a tokenizer."""
    _, stored, settings = get_gguf_tokenizer(str(file))
    if stored["tokenizer_type"] != "gpt2":
        return
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    numbers = {token: number for number, token in enumerate(stored["tokens"])}
    other = [token for token, number in described["model"]["vocab"].items() if numbers.get(token) != number]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    pre = stored.get("pre_tokenizer_type")
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    problems = {
        f"{len(other)} tokens are others, for example {other[:1]}": bool(other),
        "its merges are others": list(stored["merges"]) != merges,
        f"it says that text is cut as by {pre}": pre in PRE_TOKENIZERS and pre != pre_tokenizer(described),
        "its chat template is another": settings.get("chat_template") != template,
    }
    if any(problems.values()):
        shown = [Problem(what) for what, found in problems.items() if found]
        raise ModelError(f"The tokenizer in {file.name} is not the run's own:", shown)


def write_llama(folder: Path, file: Path, kind: GgufType, name: str, licence: str) -> None:
    """Writes a Llama with a byte-level BPE tokenizer, one tensor at a time.

    Raises:
        ModelError: If the folder holds anything else.
    """
    with quiet():
        config = AutoConfig.from_pretrained(str(folder))
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    problems = list(_problems(config, described))
    if problems:
        raise ModelError(
            "This model can be written as GGUF only by llama.cpp's converter, which is not installed:",
            problems,
            f"{CONVERTER} is in https://github.com/ggml-org/llama.cpp: put it on the PATH, or name its folder:\n"
            "    LLAMA_CPP_DIR=FOLDER python -m cyberlm export ...",
        )
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_license(licence)
    stored = "ALL_F32" if kind is GgufType.f32 else f"MOSTLY_{kind.name.upper()}"
    writer.add_file_type(gguf.LlamaFileType[stored])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, config)
    _add_tokenizer(writer, folder, tokenizer, described, config.vocab_size)
    _write_tensors(writer, folder, config, kind)
    writer.close()


def _problems(config: Any, described: Mapping[str, Any]) -> Iterator[Problem]:
    """Lists what only llama.cpp's converter can write."""
    model = described["model"]
    if config.model_type != "llama":
        yield Problem(f"model_type is {config.model_type}", "llama")
    elif config.attention_bias or config.mlp_bias:
        yield Problem("its linear layers have biases", "a Llama without")
    elif config.rope_parameters["rope_type"] not in ("default", "llama3"):
        yield Problem(f"rope_type is {config.rope_parameters['rope_type']}", "default, llama3")
    if model["type"] != "BPE" or model.get("byte_fallback"):
        yield Problem(f"its tokenizer is {model['type']}", "byte-level BPE")
    elif pre_tokenizer(described) is None:
        yield Problem("its tokenizer cuts text in a way that has no name here", ", ".join(PRE_TOKENIZERS))


def pre_tokenizer(described: Mapping[str, Any]) -> str | None:
    """Finds llama.cpp's name for the way a tokenizer.json cuts text before merging; None where it has none here."""
    given = described.get("pre_tokenizer") or {}
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in given.get("pretokenizers", [given])
    ]
    found = (steps, bool(described["model"].get("ignore_merges")))
    names = (name for name, wanted in PRE_TOKENIZERS.items() if found == wanted)
    return next(names, None) if described.get("normalizer") is None else None


def _add_architecture(writer: gguf.GGUFWriter, config: Any) -> None:
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(
    writer: gguf.GGUFWriter,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    described: Mapping[str, Any],
    vocab_size: int,
) -> None:
    """Tokens, their types and merges; special tokens; the chat template."""
    added = {token["id"]: token["special"] for token in described["added_tokens"]}
    kinds = {None: gguf.TokenType.NORMAL, True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    spelled = {number: token for token, number in tokenizer.get_vocab().items()}
    rows = range(vocab_size)
    pre = pre_tokenizer(described)
    assert pre is not None
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([spelled.get(row, f"[PAD{row}]") for row in rows])
    writer.add_token_types([kinds[added.get(row)] if row in spelled else gguf.TokenType.UNUSED for row in rows])
    special_vocab = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    starts_with_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    special_vocab.add_special_token["bos"] = starts_with_bos
    special_vocab.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(False)


def _write_tensors(writer: gguf.GGUFWriter, folder: Path, config: Any, kind: GgufType) -> None:
    """Announces every tensor, then writes them in that order, so that one at a time is in memory."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    places: list[tuple[Path, str]] = []
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # it is no mapping
                target = names.get_name(name, try_suffixes=(".weight",))
                if target is None:
                    raise ModelError(f"{file} holds {name}, which has no name in GGUF.")
                shape = stored.get_slice(name).get_shape()
                qtype = _type_of(shape, kind)
                as_bytes = gguf.quant_shape_to_byte_shape(shape, qtype)
                size = int(np.prod(as_bytes))
                writer.add_tensor_info(target, as_bytes, np.dtype(np.uint8), size, raw_dtype=qtype)
                places.append((file, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for file, name in places:
        with safe_open(file, framework="pt") as stored:
            tensor = stored.get_tensor(name)
        values = _as_stored(tensor, name, config)
        writer.write_tensor_data(gguf.quantize(values, _type_of(list(values.shape), kind)))


def _type_of(shape: list[int], kind: GgufType) -> gguf.GGMLQuantizationType:
    """Vectors stay float32; rows that do not fill the blocks of Q8_0 become F16."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[kind.name.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _as_stored(tensor: torch.Tensor, name: str, config: Any) -> np.ndarray:
    """A weight as float32, query and key rows in the order of llama.cpp's rotary embedding (pairs, not halves)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is not None:
        rows, columns = tensor.shape
        tensor = tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return tensor.float().contiguous().numpy()


def _rope_factors(config: Any) -> np.ndarray | None:
    """Divisors of the frequencies of Llama 3.1's rotary embedding; None for plain frequencies."""
    if config.rope_parameters["rope_type"] == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    base = config.rope_parameters["rope_theta"]
    plain = base ** -(torch.arange(0, 2 * len(scaled), 2, dtype=torch.float64) / (2 * len(scaled)))
    return (plain / scaled.double()).float().numpy()

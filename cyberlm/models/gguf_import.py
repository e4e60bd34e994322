"""GGUF files from outside: checked, then converted to transformers folders once.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What transformers' reader allocates is in proportion
to the file; what a model allocates is in proportion to sizes that the file only claims.
"""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata

from cyberlm.models.loaded import one_line, quiet
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ModelError, Problem, UserError, lfs_problems
from cyberlm.runtime.files import new_folder
from cyberlm.runtime.progress import say

MAX_PARTS = 4096
"""Of a `_count` in the metadata (blocks, heads, experts): each is built on its own."""
MAX_NUMBERS = 2_000_000
"""Of all arrays in the metadata: gguf's reader makes an object of each number."""
MALFORMED = (OSError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, RuntimeError, struct.error)


def convert_gguf(gguf: Path, digest: str) -> Path:
    """Converts a GGUF file to a float32 transformers folder, once: loading it is then 20 times faster.

    Raises:
        ModelError: If it is torn, or transformers does not read it whole.
    """
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    shape = check_gguf(gguf)
    say(f"Preparing {gguf.name} (once, a few seconds)")
    try:
        place = new_folder(folder, existing="keep")  # another process makes the same
        with place as building, quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model = _load(gguf, shape)
            model.hf_quantizer = None  # type: ignore[assignment]  # else save_pretrained refuses: "quantized with gguf"
            del model.config.quantization_config
            # of several processes, whichever converts: transformers would save in rank 0 alone
            model.should_save_on_this_rank = lambda is_main_process: True  # type: ignore[method-assign]
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    except (torch.OutOfMemoryError, OSError, UserError):
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise _unreadable(gguf, error) from error
    return folder


def check_gguf(gguf: Path) -> PretrainedConfig:
    """Refuses a file that is torn, or whose metadata claims another size than its tensors have.

    Returns:
        The model's configuration.
    """
    pointers = lfs_problems([gguf])
    if pointers:
        raise ModelError(f"{gguf} is not a GGUF file that can be read:", pointers)
    try:
        metadata, _ = read_gguf_metadata(str(gguf))
        _check_parts(metadata)
        held = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
        with quiet():
            shape = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            # transformers reads the size of a head for few architectures, and takes the default for others
            head_size = metadata.get(f"{metadata['general.architecture']}.attention.key_length")
            if head_size is not None and hasattr(shape, "head_dim"):
                shape.head_dim = head_size
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(shape)
        claimed = sum(parameter.numel() for parameter in model.parameters())
        if claimed > 2 * held:
            raise ValueError(f"its metadata claims {claimed:,} weights, its tensors hold {held:,}")
    except MALFORMED as error:
        raise _unreadable(gguf, error) from error
    return shape


def _check_parts(metadata: dict[str, Any]) -> None:
    """Refuses (ValueError) one part of a split model, and numbers that no model has."""
    parts = metadata.get("split.count", 1)
    if parts != 1:
        raise ValueError(
            f"it is part {metadata.get('split.no', 0) + 1} of {parts} of a split model; llama.cpp joins them: "
            "llama-gguf-split --merge FIRST_PART OUT.gguf"
        )
    numbers = sum(len(value) for value in metadata.values() if isinstance(value, list))
    if numbers > MAX_NUMBERS:
        raise ValueError(f"its metadata has arrays of {numbers:,} numbers")
    for name, value in metadata.items():
        if name.endswith("_count") and isinstance(value, int) and not 0 <= value <= MAX_PARTS:
            raise ValueError(f"{name} is {value:,}")


def _load(gguf: Path, shape: PretrainedConfig) -> PreTrainedModel:
    """Loads a GGUF file in float32; refuses one that lacks weights of the model, which transformers draws at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, config=shape, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing, unknown = sorted(set(report["missing_keys"]) - tied), sorted(report["unexpected_keys"])
    problems = [
        Problem(f"{len(names)} weights {what}: {', '.join(names[:3])}")
        for what, names in (("are missing", missing), ("have no place in the model", unknown))
        if names
    ]
    if problems:
        raise ModelError(f"{gguf} does not fit {type(model).__name__} as transformers reads it:", problems)
    return cast(PreTrainedModel, model)


def _unreadable(gguf: Path, error: Exception) -> ModelError:
    torn = f"its {gguf.stat().st_size:,} bytes end within what they claim to hold"
    what = torn if isinstance(error, struct.error) else one_line(error)
    return ModelError(
        f"{gguf} is not a GGUF file that can be read:",
        [Problem(what, "a whole GGUF file, version 2 or 3, of a model that transformers knows")],
        "Download it again, or take a folder that save_pretrained wrote: model=local model.path=FOLDER",
    )

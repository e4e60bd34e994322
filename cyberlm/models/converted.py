"""GGUF files as transformers folders."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cyberlm.models.gguf_validation import check_gguf
from cyberlm.models.loaded import first_line, quiet
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ModelError, Problem, UserError
from cyberlm.runtime.files import new_folder
from cyberlm.runtime.progress import say


def converted(gguf: Path, digest: str) -> Path:
    """The GGUF file as a plain float32 transformers folder, made once and kept: loading it is then 20 times faster.

    Args:
        digest: SHA-256 of the file.

    Raises:
        ModelError: If it is torn, or transformers does not read it whole.
    """
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"
    if not folder.is_dir():
        header = check_gguf(gguf)
        say(f"Preparing {gguf.name} (once, a few seconds)")
        try:
            with new_folder(folder) as building, quiet(), contextlib.redirect_stderr(io.StringIO()):
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
                model = _read_gguf(gguf, header)
                model.hf_quantizer = None  # type: ignore[assignment]  # else save_pretrained refuses: "quantized with gguf"
                del model.config.quantization_config
                model.save_pretrained(building)
                tokenizer.save_pretrained(building)
        except (torch.OutOfMemoryError, OSError, UserError):
            raise
        except Exception as error:  # tokenizers raises no narrower class
            kind = f"architecture {header.get('general.architecture')}: {first_line(error)}"
            raise ModelError(
                f"{gguf} cannot be turned into a model.",
                [Problem(kind, "a GGUF file of a Llama-like model that transformers knows")],
                "Or take a folder that save_pretrained wrote: model=local model.path=FOLDER",
            ) from error
    return folder


def _read_gguf(gguf: Path, header: dict[str, Any]) -> PreTrainedModel:
    """The model of a GGUF file, in float32, all of its weights read from the file.

    transformers reads the size of a head for few architectures (`attention.key_length`), takes the default of the
    architecture for others, and draws at random what a file does not hold.

    Raises:
        ModelError: With the weights that the file does not hold, or of which nothing is known.
    """
    place, file = str(gguf.parent), gguf.name
    shape = AutoConfig.from_pretrained(place, gguf_file=file)
    head_size = header.get(f"{header['general.architecture']}.attention.key_length")
    if head_size is not None and hasattr(shape, "head_dim"):
        shape.head_dim = head_size
    loading: Any = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=file, config=shape, dtype=torch.float32, output_loading_info=True
    )
    model: PreTrainedModel = loading[0]
    told = loading[1]
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing, unknown = sorted(set(told["missing_keys"]) - tied), sorted(told["unexpected_keys"])
    if missing or unknown:
        shown = [
            Problem(f"{len(names)} weights {what}: {', '.join(names[:3])}")
            for what, names in (("are missing", missing), ("have no place in the model", unknown))
            if names
        ]
        raise ModelError(f"{gguf} does not fit {type(model).__name__} as transformers reads it:", shown)
    return model

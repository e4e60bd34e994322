"""A loaded causal language model: the parts that training and scoring call, and what it can do, tried once."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from cyberlm.models.prefix_cache import PROBE_TOKENS, find_cacheable_tokens, nearly_equal
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ModelError, Problem

LOADING_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError)
"""Errors of transformers, peft and safetensors at files that are torn or are not what their names say."""

MAX_MESSAGE_CHARS = 300
"""Characters of a library's own message that are shown."""


@dataclass
class LoadedModel:
    """A causal language model, and the two halves that training and scoring call one after the other.

    Attributes:
        model: What is trained and saved: the causal model itself, or a PEFT model around it.
        causal: The transformers model; adapters are injected into it in place.
        name: Hub id or path, written into adapter_config.json.
        weights_hash: Of the base weights: SHA-256 of the file, commit of the repository, or the random shape.
        cacheable_tokens: Tokens up to which the KV cache gives exact results (`find_cacheable_tokens`).
        root: FSDP2 module around a sharded model (`cyberlm.models.sharding.ShardedRoot`); None of a whole one.
    """

    model: nn.Module
    causal: PreTrainedModel
    name: str
    weights_hash: str
    cacheable_tokens: int = 0
    root: Any = None

    @property
    def backbone(self) -> nn.Module:
        """Token ids to hidden states (B, T, H): the text decoder, where there are others."""
        decoder: nn.Module = self.causal.get_decoder()
        if decoder is self.causal:  # Llama 4 names its decoder otherwise than its base class says
            parts = (part for part in self.causal.children() if isinstance(part, PreTrainedModel))
            decoder = next(parts, decoder)
        return decoder

    @property
    def head(self) -> nn.Module:
        """Hidden states (..., H) to logits (..., V)."""
        return self.causal.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """That it computes on; a sharded model's weights may lie in host memory."""
        return self.head.weight.device if self.root is None else self.root.device  # type: ignore[return-value]

    @property
    def sharded(self) -> bool:
        return self.root is not None

    def within(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function that uses the model's halves; all processes of a sharded model call it together."""
        if self.root is None:
            return compute(*arguments)
        result = self.root(compute, *arguments)
        if not torch.is_grad_enabled() and not self.root.stays_whole:
            self.root.reshard()  # FSDP2 leaves it whole for a backward pass, which does not come
        return result


def check_causal(loaded: LoadedModel) -> None:
    """Tries a model that was just loaded, in eval mode, on a few tokens; sets its `cacheable_tokens`.

    Raises:
        ModelError: If it computes its logits in a way that the loss here would not repeat.
    """
    causal, name = loaded.causal, loaded.name
    ids = torch.arange(PROBE_TOKENS, device=loaded.device)[None]  # (1, 12)
    half = PROBE_TOKENS // 2
    others = torch.cat([ids[:, :half], ids[:, half:].flip(1)], dim=1)
    try:
        with torch.inference_mode():
            logits = causal(input_ids=ids, use_cache=False).logits
            hidden, changed = (
                loaded.backbone(input_ids=rows, use_cache=False).last_hidden_state for rows in (ids, others)
            )
            same = torch.allclose(logits.float(), loaded.head(hidden).float(), rtol=1e-3, atol=1e-3)
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as error:
        if distributed.lost_process(error):
            raise
        what = f"{type(causal).__name__} (model_type {causal.config.model_type}): {one_line(error)}"
        allowed = "a decoder that maps token ids to hidden states, with an output head"
        raise ModelError(f"{name} cannot be trained or scored here.", [Problem(what, allowed)]) from error
    if not same:
        raise ModelError(
            f"{name} scales or caps its logits behind the output head, which cyberlm does not repeat.",
            hint="Llama, Mistral, Qwen and other models with a plain output head work.",
        )
    # of one shape: other kernels, for another one, would round otherwise, and a deep model in few bits multiplies that
    if not nearly_equal(changed[:, :half], hidden[:, :half]):
        raise ModelError(
            f"{name} is no causal language model: its tokens attend to later ones.",
            hint="Llama, Mistral, Qwen and other decoders work.",
        )
    loaded.cacheable_tokens = find_cacheable_tokens(loaded.backbone, causal.config, loaded.device)


def open_causal(causal: PreTrainedModel, name: str, weights_hash: str) -> LoadedModel:
    """Takes a model that was just loaded, in eval mode; refuses one as `check_causal` does."""
    loaded = LoadedModel(causal, causal, name, weights_hash)
    check_causal(loaded)
    return loaded


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit parameter counts as one, though two share a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if not parameter.is_floating_point():
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def one_line(error: Exception) -> str:
    """Shortens a library's message to one line that a screen has room for."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message[:MAX_MESSAGE_CHARS] + ("..." if len(message) > MAX_MESSAGE_CHARS else "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' bars and advice off the screen, and nothing else."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)

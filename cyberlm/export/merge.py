"""An adapter and its base as one plain model, saved so that transformers alone loads it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cyberlm.models.loaded import LoadedModel, open_causal, quiet
from cyberlm.models.saving import drop_invalid_generation_settings, write_prompt
from cyberlm.models.virtual_tokens import put_virtual_tokens


def save_merged(
    merged: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    prompt: Mapping[str, str],
    folder: Path,
) -> None:
    """Writes a transformers folder: safetensors, configuration, tokenizer with its chat template, prompt.json.

    Generation stops at `stop_ids`, as generation_config.json says then.
    """
    drop_invalid_generation_settings(merged)
    generation = merged.causal.generation_config
    if generation is not None:
        generation.eos_token_id, generation.pad_token_id = list(stop_ids), tokenizer.pad_token_id
    with quiet():
        merged.causal.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    write_prompt(folder, prompt)


def load_exported(folder: Path, device: torch.device, attention: str) -> tuple[LoadedModel, PreTrainedTokenizerBase]:
    """Loads a saved model and its tokenizer with transformers alone, as users of the folder will."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        causal = AutoModelForCausalLM.from_pretrained(
            str(folder), device_map={"": device}, attn_implementation=attention, use_safetensors=True
        )
    return open_causal(causal, str(folder), ""), tokenizer


def load_exported_adapter(base: LoadedModel, folder: Path) -> LoadedModel:
    """Puts an adapter's folder on its base with PEFT alone."""
    with quiet():
        model = PeftModel.from_pretrained(base.causal, str(folder), torch_device=str(base.device))
    loaded = replace(base, model=model)
    put_virtual_tokens(loaded)
    return loaded

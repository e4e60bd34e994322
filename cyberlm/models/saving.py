"""Saving tried before it is needed: what could fail after hours of training fails in the first minute."""

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from cyberlm.models.adapters import save_tuned
from cyberlm.models.loaded import UNREADABLE, LoadedModel, on_one_line
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.progress import say

COPIES = 3
"""Of the trained weights, at least: those that are saved, the best checkpoint, and one to resume from."""


def try_saving(loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, prompt: Mapping[str, str], run: Path) -> None:
    """Saves what will be saved after training, whole weights left out, into a folder that is deleted at once.

    Raises:
        RunError: If any of it cannot be saved, or the disk has not the room.
    """
    keep_saveable(loaded)
    run.mkdir(parents=True, exist_ok=True)
    trained = sum(p.numel() * p.element_size() for p in loaded.model.parameters() if p.requires_grad)
    needed = trained if any(run.glob("checkpoints/*.ckpt")) else COPIES * trained
    free = shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            "The disk has no room for what this run saves:",
            [Problem(f"{run}: {free:,} bytes free", f"at least {needed:,} bytes: weights of {trained:,}, checkpoints")],
        )
    no_weights: dict[str, Any] = {} if isinstance(loaded.model, PeftModel) else {"state_dict": {}}
    with saving(run), tempfile.TemporaryDirectory(prefix=".saving-", dir=run) as name:
        save_tuned(loaded, tokenizer, prompt, Path(name), **no_weights)


@contextlib.contextmanager
def saving(run: Path, hint: str = "") -> Iterator[None]:
    """Turns what fails while a model is saved into one screen.

    Args:
        hint: What to do about it.

    Raises:
        RunError: In place of what transformers, peft or the operating system raised.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, AssertionError, *UNREADABLE) as error:
        raise RunError(f"The tuned model cannot be saved in {run}:", [Problem(on_one_line(error))], hint) from error


def keep_saveable(loaded: LoadedModel) -> None:
    """Drops, and names, generation settings that transformers does not save: a temperature without sampling, say."""
    own: GenerationConfig | None = loaded.causal.generation_config
    settings = {} if own is None else own.to_diff_dict()
    settings.pop("transformers_version", None)
    kept = GenerationConfig()
    dropped: list[str] = []
    for name in sorted(settings, key=lambda name: name not in ("do_sample", "num_beams")):  # others depend on these
        tried = copy.deepcopy(kept)
        setattr(tried, name, settings[name])
        try:
            tried.validate(strict=True)
            kept = tried
        except ValueError:
            dropped.append(f"{name}={settings[name]}")
    if dropped:
        loaded.causal.generation_config = kept
        say(f"Left out of {loaded.name}'s generation settings, which contradict each other: {', '.join(dropped)}")

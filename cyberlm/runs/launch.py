"""From the command line to a checked configuration, and to what runs it."""

import atexit
import contextlib
import copy
import errno
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import composition_error, conf_folder, part_error
from cyberlm.config.help import help_text
from cyberlm.config.rules import Config, build_config
from cyberlm.config.schema import EvaluateConfig, RootConfig, TrainConfig
from cyberlm.runs.jobs import run_in_child
from cyberlm.runs.run_folder import (
    check_places,
    check_sweep,
    check_typed,
    check_working_directory,
    claim_folder,
    hide_secrets,
    refuse_results,
    register_resolvers,
    seen_from_here,
    sole_owner,
    typed_overrides,
)
from cyberlm.runtime import signals
from cyberlm.runtime.cache import keep_home
from cyberlm.runtime.errors import UserError
from cyberlm.runtime.progress import keep_output
from cyberlm.runtime.redaction import guard_output, refuse_typed
from cyberlm.runtime.screens import not_made, not_written, sentence, show, stopped

STOPPABLE = ("train", "evaluate")
"""Commands that a signal asks to stop; the others answer to Ctrl-C themselves."""

KERNEL_ADVICE = "bitsandbytes.backends.cpu.ops"
"""At its import bitsandbytes advises kernels of the hub on some processors; they would not be used (`models.bases`)."""

VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
INFO_FLAGS = ("--info", "-i")
"""Flags of Hydra that take the next word as their value: always, or where it is one."""

PLAN_SWITCHES = ("plan=true", "plan=false")

PROMPT_TEXTS = ("question", "option", "system", "plain_cue")
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def prepare_process() -> None:
    """Gives a command what it needs of its process, whoever started it: lasting output, a home, quiet libraries."""
    keep_output()
    keep_home()
    logging.getLogger(KERNEL_ADVICE).setLevel(logging.ERROR)


def main(command: str, schema: type[Config], run: Callable[[Config, Path], float | None]) -> None:
    """Composes and checks the configuration of `command`, and runs it.

    A user's error is one screen and exit code 1, without a traceback.

    Args:
        command: `train`, `export` or another: the primary configuration, and the command that a sweep's jobs repeat.
        schema: Dataclass of the primary configuration.
        run: Called with the checked configuration and the run's folder.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(command))
        return
    prepare_process()
    register_schemas()
    register_resolvers()
    sys.argv[1:] = _flags_last(_planning(sys.argv[1:]))
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing: the screen is ours

    composing = True

    def job(composed: DictConfig) -> float | None:
        nonlocal composing
        composing = False
        config = HydraConfig.get()
        hide_secrets(config)
        check_working_directory(config)
        if config.mode == RunMode.MULTIRUN:
            return run_in_child(command, schema, composed)
        _read_escapes(composed)
        return _run_here(command, full_error, lambda folder: run(build_config(composed, schema), folder))

    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)(job)()
    except UserError as error:
        raise SystemExit(show(error)) from None
    except signals.Stopped as stop:
        print(f"\n{sentence(stop)} The sweep starts no further job.\n", file=sys.stderr)
        raise SystemExit(signals.EXIT_STOPPED) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:  # Hydra and OmegaConf raise AssertionError, ValueError and more on what is typed wrong
        if full_error or not (composing or isinstance(error, (HydraException, OmegaConfBaseException))):
            raise
        if isinstance(error, OSError) and error.errno:
            raise SystemExit(show(not_made(error))) from None
        raise SystemExit(show(composition_error(command, error))) from None


def _planning(arguments: Sequence[str]) -> list[str]:
    """`plan=true` in words that Hydra takes, for a plan leaves no folder; of itself it would set a group to a bool."""
    alone = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    if "plan=true" not in arguments or "-m" in arguments or "--multirun" in arguments:
        alone = []
    return [item.replace("plan=", "plan.enabled=") if item in PLAN_SWITCHES else item for item in arguments] + alone


def _flags_last(arguments: Sequence[str]) -> list[str]:
    """The overrides, then the flags, each with its value: Hydra's parser refuses overrides on both sides of a flag."""
    overrides: list[str] = []
    flags: list[str] = []
    for item in arguments:
        value = bool(flags) and (flags[-1] in VALUE_FLAGS or (flags[-1] in INFO_FLAGS and "=" not in item))
        (flags if item.startswith("-") or value else overrides).append(item)
    return overrides + flags


def _read_escapes(composed: DictConfig) -> None:
    r"""Reads \n, \t and \\ in prompt texts that are typed as overrides, which Hydra leaves as they are."""
    typed = {item.split("=")[0].lstrip("+") for item in typed_overrides(HydraConfig.get())}
    for key in (f"prompt.{name}" for name in PROMPT_TEXTS):
        text = OmegaConf.select(composed, key)
        if key in typed and isinstance(text, str):
            read = re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], text)
            OmegaConf.update(composed, key, re.sub(r"(\\*)\$\{", r"\1\1\\${", read))  # no text is a reference


def _run_here(command: str, full_error: bool, run: Callable[[Path], float | None]) -> float | None:
    """Runs a job in this process. Errors are told here, or Hydra prints a line of its own above the screen."""
    folder = seen_from_here(HydraConfig.get().runtime.output_dir)
    try:
        with signals.handled() if command in STOPPABLE else contextlib.nullcontext():
            return run(folder)
    except signals.Stopped as stop:
        raise SystemExit(stopped(stop, command, folder)) from None
    except UserError as error:
        raise SystemExit(show(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise SystemExit(show(part_error(error))) from None
    except OSError as error:
        if full_error or error.errno not in NOT_WRITABLE:
            raise
        raise SystemExit(show(not_written(error, folder))) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


class CheckFirst(Callback):
    """Hydra calls this before it makes the run's folder: a configuration that cannot be run leaves nothing behind."""

    def __init__(self, command: str) -> None:
        self.schema = {"train": TrainConfig, "evaluate": EvaluateConfig}[command]

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process with one screen where no job of the sweep could be run."""
        guard_output()
        try:
            check_sweep(config.hydra)
            check_typed(typed_overrides(config.hydra))
            folder = claim_folder(config, "hydra.sweep.dir", _refuse_sweep_with_results)
            owned = contextlib.ExitStack()
            owned.enter_context(sole_owner(folder))
            atexit.register(owned.close)
        except UserError as error:
            raise SystemExit(show(error)) from None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process with one screen: Hydra would turn any other exception into a warning."""
        try:
            check_working_directory(config.hydra)
            claim_folder(config, "hydra.run.dir", functools.partial(self._check, config))
        except UserError as error:
            raise SystemExit(show(error)) from None
        except OmegaConfBaseException:  # shown as any other that Hydra's composition raises
            return

    def _check(self, config: DictConfig, folder: Path) -> None:
        """Refuses a configuration that cannot be run in the folder."""
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        own = copy.deepcopy(config)
        with read_write(own), open_dict(own):
            del own["hydra"]
        refuse_typed(OmegaConf.to_container(own, resolve=False))  # type: ignore[arg-type]
        _read_escapes(own)
        built: RootConfig = build_config(own, self.schema)
        check_places(built, seen_from_here(str(folder)))
        planned = isinstance(built, TrainConfig) and built.plan.enabled
        if not planned and built.trainer.resume is None:
            refuse_results(folder, ("results.json", "checkpoints/*.ckpt"), "hydra.run.dir")


def _refuse_sweep_with_results(folder: Path) -> None:
    refuse_results(folder, ("**/results.json", "**/checkpoints/*.ckpt"), "hydra.sweep.dir")

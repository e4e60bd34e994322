"""Command lines, typed in this process, which is as before afterwards, or run in a process of its own."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from cyberlm.__main__ import run_command
from cyberlm.config.commands import SCHEMAS
from cyberlm.runs import launch

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")


def run_python(
    folder: Path, *line: str, before: Callable[[], object] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python LINE` in a folder to its end, on one thread; `before` is called in its process first."""
    return subprocess.run(
        [sys.executable, *line],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "", **variables},
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: object
    out: str
    err: str


def type_line(
    folder: Path, command: str, *arguments: str, run: Callable[..., Any] | None = None, **variables: str
) -> Ended:
    """Types `COMMAND.py ARGUMENTS` in a folder, through the real entry.

    Args:
        run: Is called with the checked configuration and the run's folder, in place of the command's own work.
        variables: Of the environment.
    """
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # between libraries
        patch.setattr(sys, "argv", [f"{command}.py", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.chdir(folder)
        os.environ.update({"HYDRA_FULL_ERROR": "", **variables})
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                launch.main(command, SCHEMAS[command], run) if run else run_command(command)  # type: ignore[type-var]
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):  # as Python does at the end of a process
                err.write(code)
                code = 1
        finally:
            for handler in [item for item in root.handlers if item not in handlers]:
                handler.close()
            root.handlers, root.level = handlers, level
            for logger in root.manager.loggerDict.values():  # Hydra's `job_logging: disabled` of export, chat and serve
                logger.disabled = False  # type: ignore[union-attr]
            logging.setLogRecordFactory(logging.LogRecord)
            os.environ.clear()
            os.environ.update(environment)
            HydraConfig.instance().cfg = None
            GlobalHydra.instance().clear()
    return Ended(code, out.getvalue(), err.getvalue().strip())

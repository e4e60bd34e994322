"""Processes for tests, forked from one that has imported the libraries: they begin at once, alone or as ranks."""

import atexit
import gc
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cyberlm.__main__ import run_command

SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["forks", "cyberlm.runs.train", "cyberlm.runs.evaluate", "training_support"])
SECONDS = 300
"""Longest time for a process, on two slow cores that other tests may share."""


def type_command(command: str, *arguments: str) -> None:
    """Types `COMMAND.py ARGUMENTS`."""
    sys.argv = [f"{command}.py", *arguments]
    run_command(command)


class Fork:
    """A call in a process of its own, which prints to a file and ends as Python ends a program.

    Args:
        call: A function of a module.
        folder: Working directory.
        variables: Of its environment, besides those of this process.
    """

    def __init__(self, call: Callable[..., object], *given: object, folder: Path, **variables: str) -> None:
        descriptor, self.log = tempfile.mkstemp()
        os.close(descriptor)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "", **variables}
        self.process = SERVER.Process(target=_work, args=(call, given, folder, self.log, environment))
        self.process.start()

    def ended(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code (minus the signal that killed it), and all that was printed."""
        self.process.join(SECONDS)
        printed = Path(self.log).read_text()
        assert self.process.exitcode is not None, printed
        return self.process.exitcode, printed


def run_ranks(count: int, call: Callable[..., object], *given: object, folder: Path) -> tuple[list[int], str]:
    """Calls in several processes, as a launcher on one machine does; returns their exit codes, and what all print."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1]), "WORLD_SIZE": str(count)}
    forks = [Fork(call, *given, folder=folder, RANK=str(k), LOCAL_RANK=str(k), **world) for k in range(count)]
    codes, printed = zip(*(fork.ended() for fork in forks), strict=True)
    return list(codes), "".join(printed)


def _work(call: Callable[..., object], given: tuple[object, ...], folder: Path, log: str, variables: Any) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    gc.freeze()  # as conftest.py does
    code: object = 0
    try:
        call(*given)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    atexit._run_exitfuncs()
    os._exit(int(code or 0))  # type: ignore[call-overload]

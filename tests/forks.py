"""Processes for tests, forked from one that has imported the libraries: they begin at once, alone or as ranks."""

import atexit
import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cyberlm.__main__ import run_command
from cyberlm.export.serving import free_port

SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["forks", "cyberlm.runs.train", "cyberlm.runs.evaluate", "training_support"])
SECONDS = 300
"""Longest time for a process, on two slow cores that other tests may share."""


def type_command(command: str, *arguments: str) -> None:
    """Types `COMMAND.py ARGUMENTS`."""
    sys.argv = [f"{command}.py", *arguments]
    run_command(command)


class Fork:
    """A call in a process of its own, which prints to a file.

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
        Path(self.log).unlink()
        assert self.process.exitcode is not None, printed
        return self.process.exitcode, printed


def run_ranks(count: int, call: Callable[..., object], *given: object, folder: Path) -> tuple[list[int], str]:
    """Calls in several processes, as a launcher on one machine does; returns their exit codes, and what all print."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1", 0)), "WORLD_SIZE": str(count)}
    forks = [Fork(call, *given, folder=folder, RANK=str(k), LOCAL_RANK=str(k), **world) for k in range(count)]
    codes, printed = zip(*(fork.ended() for fork in forks), strict=True)
    return list(codes), "".join(printed)


def side_by_side(count: int, work: Callable[[Callable[[], object]], str]) -> list[str]:
    """What `work` returns in each of several forks of this process; it is given a function that waits for all."""
    fork = multiprocessing.get_context("fork")
    found, together = fork.SimpleQueue(), fork.Barrier(count, timeout=60)
    started = [fork.Process(target=lambda: found.put(work(together.wait))) for _ in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    return sorted(found.get() for _ in started)


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
    try:
        call(*given)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out

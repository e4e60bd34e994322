"""The further processes of a run (`trainer.devices`): started, met, and ended with it.

The run's own process has rank 0. It alone reads questions, writes files and prints; the others are given its
configuration and its questions, load the base for themselves, and take their share of the work (`assisting`). So a run
with several processes is one command, one folder and one configuration, in a sweep too.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
import torch.distributed as dist

from cyberlm.config.schema import TrainConfig, TrainerConfig
from cyberlm.models.loading import pick_device
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ConfigError, Problem, RunError

SECONDS_TO_END = 10.0
"""Time for a process to end by itself, once the run has ended or failed."""
LINES_TOLD = 12
SECONDS_BETWEEN_LOOKS = 0.05


def store_at(meeting_place: Path, size: int) -> dist.Store:
    return dist.FileStore(str(meeting_place), size)


def meet(store: dist.Store, rank: int, size: int) -> None:
    """Joins the group of `size` processes: gloo on a CPU, NCCL for what lies on a GPU.

    To be called once the base is loaded: in a group, transformers saves (as a tiny 4-bit model is, to be quantised) in
    rank 0 alone.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


@dataclass(frozen=True)
class Order:
    """Orders of a further process, on its standard input, which stays open for as long as the run lasts.

    Attributes:
        rank: Of the process, from 1.
        meeting_place: File through which all find each other.
        folder: Of the run.
    """

    rank: int
    meeting_place: Path
    config: TrainConfig
    folder: Path


class Team:
    """The processes of a run; with `trainer.devices=1`, this one alone.

    Args:
        trainer: How many, and on what.

    Raises:
        ConfigError: If there are fewer GPUs.
    """

    def __init__(self, trainer: TrainerConfig) -> None:
        self.size = trainer.devices
        self.helpers: list[subprocess.Popen[bytes]] = []
        self.said: list[IO[bytes]] = []
        self.threads = torch.get_num_threads()
        if self.size > 1:
            _check_devices(trainer)

    def __enter__(self) -> Self:
        if self.size > 1:
            self.rank_before = os.environ.get("LOCAL_RANK")
            os.environ["LOCAL_RANK"] = "0"  # tells Lightning that it has no processes to start
            self.place = tempfile.TemporaryDirectory(prefix="cyberlm_")  # this user's alone
            self.meeting_place = Path(self.place.name) / "store"
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            threads = max(1, min(self.threads, cores // self.size))
            torch.set_num_threads(threads)
            self.helpers = [self._start(rank, threads) for rank in range(1, self.size)]
        return self

    def _start(self, rank: int, threads: int) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        self.said.append(said)
        return subprocess.Popen(
            [sys.executable, "-m", "cyberlm.runs.worker"],
            env=environment,
            stdin=subprocess.PIPE,  # for its order; closed when this process ends, however that is
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is this process's to handle
        )

    def call(self, config: TrainConfig, folder: Path) -> None:
        """Hands the other processes the configuration, so that they load the base."""
        for rank, helper in enumerate(self.helpers, start=1):
            assert helper.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # one that has ended is missed by `join`
                pickle.dump(Order(rank, self.meeting_place, config, folder), helper.stdin)
                helper.stdin.flush()

    def join(self) -> None:
        """Waits until all processes are ready: from here on they work together."""
        if self.size == 1:
            return
        store = store_at(self.meeting_place, self.size)
        for rank, helper in enumerate(self.helpers, start=1):
            while not store.check([ready_key(rank)]):
                if helper.poll() is not None:
                    raise RuntimeError("a process has ended before it was ready")  # __exit__ tells more
                time.sleep(SECONDS_BETWEEN_LOOKS)
        meet(store, 0, self.size)

    def leave(self) -> None:
        """Ends the common work: from here on this process is alone."""
        if distributed.world_size() > 1:
            dist.destroy_process_group()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        try:
            codes = [self._end(helper) for helper in self.helpers]
            self.leave()
        finally:
            torch.set_num_threads(self.threads)
            self.place.cleanup()
            os.environ.pop("LOCAL_RANK")
            if self.rank_before is not None:
                os.environ["LOCAL_RANK"] = self.rank_before
        told = [_last_lines(said) for said in self.said]
        if error is not None and not isinstance(error, RuntimeError):
            return
        for rank, (code, lines) in enumerate(zip(codes, told, strict=True), start=1):
            if code:
                problem = Problem(f"rank {rank} of {self.size}: exit code {code}")
                raise RunError("Another process of this run has failed.", [problem], lines) from error

    def _end(self, helper: "subprocess.Popen[bytes]") -> int:
        """Its exit code; 0 where it had to be killed here, as one has to be that waits for this process."""
        try:
            return helper.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            helper.kill()
            helper.wait()
            return 0
        finally:
            assert helper.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                helper.stdin.close()


def ready_key(rank: int) -> str:
    return f"ready/{rank}"


def _check_devices(trainer: TrainerConfig) -> None:
    found = torch.cuda.device_count() if pick_device(trainer.accelerator).type == "cuda" else trainer.devices
    if found < trainer.devices:
        allowed = f"at most {found}, or processes on the CPU with trainer.accelerator=cpu"
        problem = Problem(f"trainer.devices={trainer.devices}", allowed, f"trainer.devices={found}")
        raise ConfigError(f"Only {found} GPU{'s are' if found > 1 else ' is'} available:", [problem])


def _last_lines(said: IO[bytes]) -> str:
    """The end of what a process has written, which is closed."""
    with said:
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-LINES_TOLD:])

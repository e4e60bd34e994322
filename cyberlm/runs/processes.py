"""Runs of several processes: those that torch's elastic launcher starts here, and what each further process does.

Rank 0 runs the story (`cyberlm.runs.train`, `cyberlm.runs.evaluate`); the others follow it
(`cyberlm.runtime.distributed`).
"""

import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cyberlm.config.schema import TrainerConfig
from cyberlm.models.loading import pick_device
from cyberlm.runtime import distributed, signals
from cyberlm.runtime.errors import ConfigError, Problem, RunError, UserError
from cyberlm.runtime.progress import console, print_error

SECONDS_TO_STOP = 600
"""Time for the processes to end the step in hand and write a checkpoint, once they are asked to stop."""


def start_processes(command: str, trainer: TrainerConfig, folder: Path) -> None:
    """Runs this process's command line in `trainer.devices` processes, as `torchrun --standalone` does.

    Raises:
        ConfigError: If there are fewer GPUs.
        RunError: If one was killed.
        SystemExit: With the code of the processes, if they fail or are stopped.
    """
    found = torch.cuda.device_count() if pick_device(trainer.accelerator).type == "cuda" else trainer.devices
    if found < trainer.devices:
        allowed = f"at most {found}, or processes on the CPU with trainer.accelerator=cpu"
        problem = Problem(f"trainer.devices={trainer.devices}", allowed, f"trainer.devices={found}")
        raise ConfigError(f"Only {found} GPU{'s are' if found > 1 else ' is'} available:", [problem])
    elastic = logging.getLogger("torch.distributed.elastic")  # the processes say what went wrong
    for logger in (elastic, elastic.getChild("agent.server.api")):  # the latter has a level of its own
        logger.setLevel(logging.CRITICAL)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.getenv("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // trainer.devices)))
    handled = [signum.name for signum in signals.STOPPING if signal.getsignal(signum) != signal.SIG_IGN]
    script = [sys.argv[0]] if Path(sys.argv[0]).name == f"{command}.py" else ["-m", "cyberlm", command]
    given = [item for item in sys.argv[1:] if not item.startswith("hydra.run.dir=")]
    with tempfile.TemporaryDirectory(prefix="cyberlm_") as logs:
        launch = LaunchConfig(
            *(1, 1, trainer.devices),
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle=",".join(handled),
            shutdown_timeout=SECONDS_TO_STOP,
        )
        try:
            elastic_launch(launch, sys.executable)(
                *script, *given, f"hydra.run.dir={signals.quote_override(str(folder))}"
            )
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            if signals.EXIT_STOPPED in codes <= {signals.EXIT_STOPPED, -signal.SIGTERM}:
                raise SystemExit(signals.EXIT_STOPPED) from None
            killed = {rank: -failure.exitcode for rank, failure in error.failures.items() if failure.exitcode < 0}
            if set(killed.values()) <= {signal.SIGTERM}:
                raise SystemExit(1) from None  # the process that failed has said why
            problems = [Problem(f"rank {rank}: {signal.Signals(code).name}") for rank, code in killed.items()]
            raise RunError(
                "A process of this run was killed:", problems, signals.resume_advice(command, folder)
            ) from None
        except SignalException:
            raise SystemExit(signals.EXIT_STOPPED) from None


def follow() -> None:
    """Work of a higher rank: what rank 0 calls; of several ranks that fail, one shows why."""
    console.quiet = True
    logging.disable(logging.WARNING)  # rank 0 says the same
    try:
        with signals.handled():
            distributed.follow()
        atexit.register(_end_at_once)
    except signals.Stopped:
        raise SystemExit(signals.EXIT_STOPPED) from None
    except Exception as error:
        if not distributed.lost_process(error) and distributed.reports_failure():
            print(f"\nRank {distributed.rank()} on {socket.gethostname()} has failed:", file=sys.stderr)
            if isinstance(error, UserError):
                print_error(error)
            else:
                traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a group that has lost a process cannot be destroyed


def _end_at_once() -> None:
    """Ends this process without Python's finalisation, in which a thread of gloo may crash.

    Threads of gloo outlive a group that shards were made in. One that lets go of the last message then needs Python's
    lock, and is ended without it: the whole process aborts (SIGABRT).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def explain_lost_process(command: str, folder: Path) -> Iterator[None]:
    """Turns the error of a connection that has closed into one screen."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.lost_process(error):
            raise
        problem = Problem("its own output, or that of its node, says why")
        hint = signals.resume_advice(command, folder)
        raise RunError("Another process of this run has ended:", [problem], hint) from error


def check_work(questions: int) -> None:
    """Makes sure that every process has a question to train on."""
    size = distributed.world_size()
    if questions < size:
        what = f"{size} processes, {questions} training questions"
        problem = Problem(what, f"at most {questions}")
        raise ConfigError("There are more processes than questions to train on:", [problem])


def check_nodes(folder: Path) -> None:
    """Makes sure that all processes see the run's folder. Called by all of them, once rank 0 has locked it."""
    seen = distributed.all_gather((socket.gethostname(), (folder / ".lock").is_file()))
    without = dict.fromkeys(node for node, found in seen if not found)
    if without and distributed.rank() == 0:
        allowed = "hydra.run.dir=FOLDER on a file system that all nodes share"
        problems = [Problem(f"node {node} does not see {folder}", allowed) for node in without]
        raise RunError("The nodes of this run do not share its folder:", problems)

"""Signals that ask a run to stop: the optimizer step in hand ends first, then a checkpoint and an exit code of its own.

SIGTERM, SIGINT (Ctrl-C), SIGHUP (the terminal is gone; ignored under nohup), SIGUSR1 (what Slurm's `--signal=USR1@60`
sends before the time is up) and SIGUSR2 (submitit's) all mean: stop soon, so that the run can be resumed. Training
checks `requested()` between two optimizer steps; everywhere else the signal raises `Stopped` at once. A second SIGINT
stops at once, a third is Python's own KeyboardInterrupt.
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from cyberlm.runtime.world import find_world

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h, "try again later"."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the run to stop. Not an Exception: nothing that handles errors may swallow it."""

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(f"stopped by {self.signum.name}")


class _Requests:
    """Handler of the signals: remembers the first one, and raises `Stopped` unless training defers it."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.deferred = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        again = self.first is not None
        self.first = self.first or signum
        if not self.deferred:
            raise Stopped(signum)
        if again and signum == signal.SIGINT:
            self.deferred = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise Stopped(signum)


_requests: _Requests | None = None


def _handle_by(handler: Callable[[int, FrameType | None], None]) -> None:
    for signum in STOPPING:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # as nohup starts a process
            signal.signal(signum, handler)


@contextlib.contextmanager
def _handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[Mapping[Any, Any]]:
    """Handles the signals within it, and gives their handlers before it.

    Outside the main thread, where Python cannot, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    _handle_by(handler)
    try:
        yield before
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it, the signals raise `Stopped`, at once or, in training, between two optimizer steps.

    Once stopped, one of several processes ignores SIGTERM, which its launcher may send as soon as another has ended
    (srun's `--kill-on-bad-exit`): all are to end with the code of a run that can be resumed.
    """
    global _requests
    _requests = _Requests()
    try:
        with _handler(_requests):
            yield
    except Stopped:
        if find_world() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        _requests = None


def defer() -> None:
    """From now on a signal is only noted, for `requested`. Takes the signals back from whoever has taken them since.

    Lightning handles SIGTERM itself when training begins (it would stop between two micro-batches, inside an optimizer
    step) and, under Slurm, requeues the job; its handlers are replaced here and not put back.
    """
    if _requests is not None and threading.current_thread() is threading.main_thread():
        _requests.deferred = True
        _handle_by(_requests)


def stop_deferring() -> None:
    """Signals raise `Stopped` at once again, one that has been noted included."""
    if _requests is not None and _requests.deferred:
        _requests.deferred = False
        if _requests.first is not None:
            raise Stopped(_requests.first)


def requested() -> int | None:
    """The signal that has been noted, if any."""
    return _requests.first if _requests is not None else None


def quote_override(text: str) -> str:
    """Text as a value of Hydra's override grammar that is read as this very string."""
    return QuotedString(text, Quote.single).with_quotes()


def resume_command(folder: Path) -> str:
    """The command that resumes the run in `folder`."""
    value = str(folder)
    if not re.fullmatch(r"[\w/.\-]+", value):  # else Hydra would read more into it than a string
        value = quote_override(value)
    return train_command([f"trainer.resume={value}"])


def resume_advice(command: str, folder: Path) -> str:
    """Advice for a run, or an evaluation, that has ended before its work was done."""
    if command == "train" and (folder / "config.yaml").is_file():
        return f"To resume, type:\n{resume_command(folder)}"
    return "Type the same command again."


def train_command(arguments: Sequence[str]) -> str:
    """The command that trains with these arguments, as one types it."""
    script = "train.py" if Path(sys.argv[0]).name == "train.py" else "-m cyberlm train"
    return f"python {script} {shlex.join(arguments)}"


def run_forwarding(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command to its end; a signal that asks to stop is handed on to it, and its end awaited.

    The command is in a process group of its own, so that Ctrl-C in a terminal reaches it once. A handler that the
    signal had before, such as submitit's, which requeues its job, is called once the command has ended.

    Returns:
        Its exit code; minus the signal's number where one ended it.

    Raises:
        Stopped: If a signal came, once the command has ended.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if process is not None and process.poll() is None:
            process.send_signal(signum)

    handles = threading.current_thread() is threading.main_thread()
    with _handler(forward) as before:
        process = subprocess.Popen(command, env=dict(environment), process_group=0 if handles else None)
        if received:
            process.send_signal(received[0])
        code = process.wait()
    if received:
        handler = before[received[0]]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(received[0], None)
        raise Stopped(received[0])
    return code

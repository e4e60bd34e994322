"""Signals that ask a run to stop: one owner, who lets the optimizer step in hand end and leaves with a code of its own.

SIGTERM, SIGINT (Ctrl-C), SIGHUP (the terminal is gone; left alone under nohup) and SIGUSR1 (what Slurm's
`--signal=USR1@60` sends before the time is up) all mean: stop soon, so that the run can be resumed. Training asks
`requested()` between two optimizer steps; everywhere else the signal ends what is being done. A second SIGINT stops at
once, a third is Python's own KeyboardInterrupt.
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h, "try again later"."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the run to stop. Not an Exception: nothing that handles errors may swallow it.

    Args:
        signum: Which one.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(f"stopped by {self.signum.name}")


class _Owner:
    """What has been asked so far, and whether training wants to be told later."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signum
        if not self.deferred:
            raise Stopped(signum)
        if again and signum == signal.SIGINT:
            self.deferred = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise Stopped(signum)


_owner: _Owner | None = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it, the signals raise `Stopped`, at once or, in training, between two optimizer steps.

    Outside the main thread, where Python cannot handle signals, nothing changes.
    """
    global _owner
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _heeded()}
    _owner = _Owner()
    _install(_owner)
    try:
        yield
    finally:
        _owner = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _heeded() -> list[signal.Signals]:
    """The stopping signals, without a SIGHUP that is ignored: nohup starts a process so."""
    return [item for item in STOPPING if item != signal.SIGHUP or signal.getsignal(item) != signal.SIG_IGN]


def _install(handler: Any) -> None:
    for signum in _heeded():
        signal.signal(signum, handler)


def defer() -> None:
    """From now on a signal is only noted, for `requested`. Takes the signals back from whoever has taken them since.

    Lightning handles SIGTERM itself when training begins (it would stop between two micro-batches, inside an optimizer
    step) and, under Slurm, requeues the job; its handlers give way here and are not put back.
    """
    if _owner is not None:
        _owner.deferred = True
        _install(_owner)


def stop_deferring() -> None:
    """A signal raises `Stopped` at once again; so does one that has been noted and not heeded."""
    if _owner is not None and _owner.deferred:
        _owner.deferred = False
        if _owner.asked is not None:
            raise Stopped(_owner.asked)


def requested() -> int | None:
    """The signal that has been noted, if any."""
    return _owner.asked if _owner is not None else None


def quoted(text: str) -> str:
    """Text as a value of Hydra's override grammar that is read as this very string."""
    return QuotedString(text, Quote.single).with_quotes()


def resume_command(folder: Path) -> str:
    """What to type to go on with the run in `folder`."""
    value = str(folder)
    if not re.fullmatch(r"[\w/.\-]+", value):  # else Hydra would read more into it than a string
        value = quoted(value)
    script = "train.py" if Path(sys.argv[0]).name == "train.py" else "-m cyberlm train"
    return f"python {script} {shlex.quote(f'trainer.resume={value}')}"


def run_forwarding(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command to its end; a signal that asks to stop is handed on to it, and its end awaited.

    The command is in a process group of its own, so that Ctrl-C in a terminal reaches it once.

    Returns:
        Its exit code; minus the signal's number where one ended it.

    Raises:
        Stopped: If a signal came, once the command has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return subprocess.run(command, env=dict(environment), check=False).returncode
    heard: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)
        if process is not None and process.poll() is None:
            process.send_signal(signum)

    before = {signum: signal.getsignal(signum) for signum in _heeded()}
    _install(forward)
    try:
        process = subprocess.Popen(command, env=dict(environment), process_group=0)
        if heard:
            process.send_signal(heard[0])
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if heard:
        raise Stopped(heard[0])
    return code

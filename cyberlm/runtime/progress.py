"""Messages and progress on the terminal: standard output that lasts, plain lines, a bar with ETA."""

import contextlib
import functools
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from cyberlm.runtime.errors import UserError
from cyberlm.runtime.redaction import redact

console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
"""Terminal or file that `say` prints to."""

SECONDS_BETWEEN_LINES = 10.0
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Advance = Callable[..., None]
"""`advance(n=1, tokens=0, note="")`: n units are done, with so many non-padding tokens."""

log = logging.getLogger(__name__)


class UnbreakableStream(io.FileIO):
    """A standard stream that goes nowhere once it cannot be written to: a pipe that is closed, a full disk."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for other processes and libraries, too
                log.info("file descriptor %d is lost (%s): its messages end here", self.fileno(), error.strerror)
                break
            if written is None:  # a pipe that does not block, and is full
                time.sleep(0.01)
            else:
                left = left[written:]
        return len(data)


def keep_output() -> None:
    """Makes standard output and standard error last as long as the process, whatever becomes of their reader.

    Characters that their encoding lacks are replaced; a closed stream is opened to nowhere.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # else the next file that is opened would take its number
            setattr(sys, name, Path(os.devnull).open("r+", errors="replace"))  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = UnbreakableStream(number, "w", closefd=False)
            lasting = io.TextIOWrapper(raw, stream.encoding, "replace", write_through=True)
            setattr(sys, name, lasting)


def escape_control(text: str) -> str:
    """Text for a terminal: control characters, which it would obey, are shown as escapes."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def print_error(error: UserError) -> int:
    """Prints the screen of an error; gives the exit code of the process."""
    print(f"\n{escape_control(redact(error.screen()))}\n", file=sys.stderr)
    return 1


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with the screen of a user's error."""
    try:
        yield
    except UserError as error:
        raise SystemExit(print_error(error)) from None


def say(content: str | Text | Table = "", *, wrap: bool = False) -> None:
    """Prints a text as it is: brackets and colons in it are not rich's markup or emoji.

    Args:
        wrap: Breaks lines at the terminal's width; a path stays in one piece without.
    """
    if isinstance(content, str):
        content = Text(escape_control(content) if console.is_terminal else content)
    console.print(content, soft_wrap=not wrap)
    console.file.flush()


def rendered(table: Table) -> str:
    """A table as plain text of 80 columns."""
    text = io.StringIO()
    Console(file=text, width=80, markup=False, emoji=False, highlight=False).print(table)
    return text.getvalue().strip()


@functools.cache
def say_once(line: str) -> None:
    """Prints a line, once in this process."""
    say(line)


@contextlib.contextmanager
def track(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Progress of a piece of work, with its rate and ETA: a bar on a terminal, elsewhere a line every few seconds.

    Args:
        label: For example `Scoring the base model`.
        unit: Name of one unit, plural, for example `questions`.
    """
    done, all_tokens = 0, 0
    started = last = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA", markup=False),
        TimeRemainingColumn(),
        # the rest of the line, and no more: a narrow terminal keeps the ETA
        TextColumn("{task.fields[rate]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
    )
    bar = Progress(*columns, console=console, expand=True) if console.is_terminal else None
    task = bar.add_task(label, total=total, rate=unit) if bar else None

    def rates() -> str:
        seconds = max(time.monotonic() - started, 1e-9)
        text = f"{done / seconds:.3g} {unit}/s"
        return f"{text}, {all_tokens / seconds:.0f} tokens/s" if all_tokens else text

    def advance(n: int = 1, tokens: int = 0, note: str = "") -> None:
        nonlocal done, all_tokens, last
        done, all_tokens, now = done + n, all_tokens + tokens, time.monotonic()
        if bar is not None and task is not None:
            bar.update(task, advance=n, rate=", ".join(filter(None, [note, rates()])))
        elif now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            eta = clock((now - started) / done * (total - done)) if done else "unknown"
            say(f"{label}: {done:.0f}/{total} {unit}, {rates()}, ETA {eta} {note}".rstrip())

    with bar or contextlib.nullcontext():
        yield advance
    if bar is None:
        say(f"{label}: {done:.0f}/{total} {unit} in {clock(time.monotonic() - started)}, {rates()}")


def clock(seconds: float) -> str:
    """`83.4` -> `1:23`; `4000` -> `1:06:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

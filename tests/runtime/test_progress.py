"""Progress as lines and as a bar."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from cyberlm.runtime import progress
from cyberlm.runtime.progress import clock, rendered, say, track

PACKAGE = Path(progress.__file__).parents[1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def console_to(monkeypatch: pytest.MonkeyPatch, terminal: bool, width: int = 120) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=terminal, width=width))
    return screen


def test_lines_have_rates_and_eta_and_come_every_ten_seconds(monkeypatch, now) -> None:
    screen = console_to(monkeypatch, terminal=False)
    with track("Scoring", 100, "questions") as advance:
        now[0] += 10
        advance(0)
        for _ in range(5):
            now[0] += 5
            advance(20, tokens=600, note="loss 1.000")
    assert screen.getvalue().splitlines() == [
        "Scoring: 0/100 questions, 0 questions/s, ETA unknown",
        "Scoring: 40/100 questions, 2 questions/s, 60 tokens/s, ETA 0:30 loss 1.000",
        "Scoring: 80/100 questions, 2.67 questions/s, 80 tokens/s, ETA 0:08 loss 1.000",
        "Scoring: 100/100 questions in 0:35, 2.86 questions/s, 86 tokens/s",
    ]


def test_a_narrow_terminal_keeps_the_eta_and_what_the_note_begins_with(monkeypatch) -> None:
    screen = console_to(monkeypatch, terminal=True, width=80)
    with track("Training", 10_000, "questions") as advance:
        advance(10_000, tokens=1_000_000, note="loss 0.512, val 45.0%")
    last = re.sub(r"\x1b\[[0-9;?]*\w", "", screen.getvalue()).splitlines()[-1]
    assert re.fullmatch(r"Training .+ 10000/10000 0:00:00 ETA 0:00:00 loss 0\.512, val .+", last.strip()), last
    assert len(last) <= 80


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 83.4, 4000)] == ["0:00", "1:23", "1:06:40"]


FOREIGN = ("x[/b]y", "[bold]x[/bold] [link=http://h]l[/link]", ":smile: :warning:", "[1, 2]", "\\[red]", "[/]", "100%")


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("terminal", [False, True])
def test_what_others_wrote_is_printed_as_it_is(monkeypatch, text: str, terminal: bool) -> None:
    screen = console_to(monkeypatch, terminal)
    say(text)
    say(text, wrap=True)
    with track(text, 1, text) as advance:
        advance(1, note=text)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    assert screen.getvalue().count(text) >= 4
    assert rendered(table).count(text) == 3


def test_control_characters_reach_no_terminal(monkeypatch) -> None:
    text = "clear \x1b[2J, title \x1b]0;x\x07, back \r and \x9b1A; tab\t, line\n end"
    screen = console_to(monkeypatch, True)
    say(text)
    assert "clear \\x1b[2J, title \\x1b]0;x\\x07, back \\r and \\x9b1A; tab" in screen.getvalue()
    assert not set("\x1b\x07\r\x9b") & set(screen.getvalue())


def test_nothing_else_prints_through_rich() -> None:
    through_rich = re.compile(r"\.print\(|from_markup|from rich.* import .*\b(Console|print|Progress)\b")
    assert through_rich.search("from rich.console import Console") and through_rich.search("console.print(text)")
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "progress.py"]
    assert [path.name for path in modules if through_rich.search(path.read_text("utf-8"))] == []


CODE = """
import sys
from cyberlm.runtime.progress import keep_output, say
keep_output()
for number in range(20_000):
    say(f"line {number} é ☃ {chr(0xdc80)}")
    print("more", file=sys.stderr)
open("done", "w").close()
"""


def python(folder: Path, redirected: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """CODE in a shell, which loses its output."""
    line = ["bash", "-c", f"set -o pipefail; {sys.executable} -c '{CODE}' {redirected}"]
    return subprocess.run(
        line, cwd=folder, env={**os.environ, **variables}, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "redirected", ["2>&1 | head -1", "> /dev/full 2> /dev/full", ">&- 2>&-", "<&- >&- 2>&-", "> log"]
)
def test_work_goes_on_without_a_reader(tmp_path: Path, redirected: str) -> None:
    done = python(tmp_path, redirected)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").is_file()


def test_what_an_encoding_lacks_is_replaced(tmp_path: Path) -> None:
    done = python(tmp_path, "2>&1 | head -2", PYTHONIOENCODING="ascii")
    assert done.stdout == b"line 0 ? ? ?\nmore\n"
    done = python(tmp_path, "2> /dev/null | head -1", PYTHONIOENCODING="utf-8")
    assert done.stdout.decode() == "line 0 é ☃ ?\n"

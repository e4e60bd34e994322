"""Progress as lines and as a bar."""

import io

import pytest
from rich.console import Console

from cyberlm import progress
from cyberlm.progress import clock, track


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def console_to(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=terminal, width=120))
    return screen


def test_lines_have_rates_and_eta_and_come_every_ten_seconds(monkeypatch, now) -> None:
    screen = console_to(monkeypatch, terminal=False)
    with track("Scoring", 100, "questions") as advance:
        for _ in range(4):
            now[0] += 6
            advance(20, tokens=600)
        now[0] += 6
        advance(20, tokens=600, note="loss 1.000")
    assert screen.getvalue().splitlines() == [
        "Scoring: 40/100 questions, 3.33 questions/s, 100 tokens/s, ETA 0:18",
        "Scoring: 80/100 questions, 3.33 questions/s, 100 tokens/s, ETA 0:06",
        "Scoring: 100/100 questions in 0:30, 3.33 questions/s, 100 tokens/s",
    ]


def test_nothing_done_yet_has_no_eta(monkeypatch, now) -> None:
    screen = console_to(monkeypatch, terminal=False)
    with track("Loading", 10, "files") as advance:
        now[0] += 60
        advance(0)
    assert "ETA unknown" in screen.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch) -> None:
    screen = console_to(monkeypatch, terminal=True)
    with track("Training", 10, "questions") as advance:
        advance(10, tokens=50)
    assert "10/10" in screen.getvalue() and "ETA" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (83.4, "1:23"), (4000, "1:06:40")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text

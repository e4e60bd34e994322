"""`--help`, and the tables of docs/configuration.md: made from schemas and the files of groups."""

import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING

from cyberlm import __main__ as entries
from cyberlm.config.bounds import at_least
from cyberlm.config.commands import SCHEMAS
from cyberlm.config.help import Key, description, help_text, keys_of


class Way(Enum):
    up = "up"
    down = "down"


@dataclass
class Inner:
    rate: float = at_least(1, 2e-4)
    """Steps a second;
    or less."""
    names: Any = "all"


@dataclass
class Base:
    name: str = MISSING
    """Short."""


@dataclass
class Whole(Base):
    inner: Inner | None = None
    way: Way | None = Way.up
    """Where to."""
    off: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def test_keys_of_a_schema() -> None:
    assert list(keys_of(Whole)) == [
        Key("name", "str", "", "required", "Short."),
        Key("inner.rate", "float", "1 or more", "0.0002", "Steps a second; or less."),
        Key("inner.names", "any", "", "all", ""),
        Key("way", "up, down or null", "", "up", "Where to."),
        Key("off", "bool", "", "false", ""),
        Key("extra", "mapping", "", "{}", ""),
    ]


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_has_its_line(command: str) -> None:
    keys = list(keys_of(SCHEMAS[command]))
    assert [key.name for key in keys if not key.meaning] == []
    text = help_text(command)
    assert text.startswith(description(Path("conf") / f"{command}.yaml").splitlines()[0])
    for key in keys:
        assert f"\n{key.name} (" in text


def test_help_opens_with_what_is_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_text("# Trains nothing.\nname: own\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={tmp_path}", "--help"])
    entries.run_command("train")
    shown = capsys.readouterr().out
    assert "  python train.py method=qlora model=llama3_8b data=cybermetric  " in shown.partition("GROUP=OPTION")[0]
    for line in (
        "  * lora                 Low-rank adapters (arXiv 2106.09685) on a frozen base.",
        "    own                  Trains nothing.",
        "trainer.max_epochs (1): Passes over the training questions. [int: 1 or more]",
        "model.name (from the file of its group): Short name, used in folder and run names.",
    ):
        assert f"\n{line}" in shown


def test_every_command_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cyberlm"])
    with pytest.raises(SystemExit) as ended:
        entries.main()
    for name, what in entries.COMMANDS.items():
        assert f"\n  {name:<12} {what}" in str(ended.value)


@pytest.mark.parametrize(
    ("text", "first"),
    [("# @package _global_\n# What it is.\n# More.\nname: x\n", "What it is."), ("name: x\n# Too late.\n", "")],
)
def test_description_of_a_group_file(tmp_path: Path, text: str, first: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert description(file).partition("\n")[0] == first

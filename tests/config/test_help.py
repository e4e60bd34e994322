"""`--help`, and the tables of docs/configuration.md: made from schemas and the files of groups."""

import sys
from pathlib import Path

import pytest

from cyberlm import __main__ as entries
from cyberlm.config.commands import SCHEMAS
from cyberlm.config.help import description, help_text, keys_of


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_has_its_line(command: str) -> None:
    keys = list(keys_of(SCHEMAS[command]))
    assert [key.name for key in keys if not key.meaning] == []
    text = help_text(command)
    assert text.startswith(description(Path("conf") / f"{command}.yaml").splitlines()[0])
    assert [key.name for key in keys if f"\n{key.name} (" not in text] == []


def test_help_opens_with_what_is_typed(monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_text("# @package _global_\n# Trains nothing.\n# More.\nname: own\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={tmp_path}", "--help"])
    entries.run_command("train")
    shown = capsys.readouterr().out
    assert "  python train.py method=qlora model=llama3_8b data=cybermetric  " in shown.partition("GROUP=OPTION")[0]
    for line in (
        "  * lora                   Low-rank adapters (arXiv 2106.09685) on a frozen base.",
        "    own                    Trains nothing.",
        "trainer.max_epochs (1): Passes over the training questions. [int: 1 or more]",
        "model.name (from the file of its group): Short name, used in folder and run names.",
    ):
        assert f"\n{line}" in shown
    (tmp_path / "late.yaml").write_text("name: x\n# Too late.\n")
    assert description(tmp_path / "late.yaml") == ""


def test_every_command_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["trian"]):
        monkeypatch.setattr(sys, "argv", ["cyberlm", *line])
        with pytest.raises(SystemExit) as ended:
            entries.main()
        for name, what in entries.COMMANDS.items():
            assert f"\n  {name:<12} {what}" in str(ended.value)
    for name in ("", *entries.COMMANDS):
        monkeypatch.setattr(sys, "argv", ["cyberlm", *filter(None, [name]), "--help"])
        entries.main()
        shown = capsys.readouterr().out
        assert f"cyberlm {name or 'COMMAND'} " in shown or f"{name}.py" in shown

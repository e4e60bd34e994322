"""`--help`, and the tables of docs/configuration.md: made from schemas and the files of groups."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cyberlm import __main__ as entries
from cyberlm.config.commands import SCHEMAS, ServeConfig
from cyberlm.config.help import Key, description, help_text, keys_of
from cyberlm.config.schema import TrainConfig


def test_keys_of_a_schema() -> None:
    """Of each type; of a group within a group, and inherited."""
    keys = {key.name: key for schema in (TrainConfig, ServeConfig) for key in keys_of(schema)}
    name = "up to 64 letters, digits, spaces and _ . + -, a letter or digit first"
    for expected in (
        Key("model.name", "str", name, "required", "Short name, used in folder and run names."),
        Key("model.tiny.hidden_size", "int", "1 or more", "64", "Width H."),
        Key("trainer.max_steps", "int or null", "1 or more", "null", ""),
        Key("optim.learning_rate", "float", "above 0", "0.0002", "Peak learning rate."),
        Key("method.lora.init", "default, gaussian, pissa, olora", "", "default", ""),
        Key("model.gated", "bool", "", "false", ""),
        Key("method.lora.target_modules", "any", "", "all-linear", ""),
        Key("callbacks", "mapping", "", "{}", ""),
        Key("accelerator", "str", "auto, cpu, cuda", "auto", "auto, cpu or cuda; one device."),
    ):
        found = keys[expected.name]
        assert replace(found, meaning=expected.meaning and found.meaning) == expected
    assert "by evaluation.option_score; lower is better" in keys["trainer.monitor"].meaning  # of several lines


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

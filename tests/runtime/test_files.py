"""Files and folders that are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from cyberlm.runtime.errors import RunError
from cyberlm.runtime.files import new_folder, write_json


def test_a_folder_replaces_another_or_stays_away(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with new_folder(tmp_path / "best", existing="replace") as building:
            (building / name).touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "best", tmp_path / "best" / "second"]
    (tmp_path / "adapter").write_text("a file")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "adapter", existing="replace") as building:
        (building / "weights").touch()
    with pytest.raises(RunError, match="there already"), new_folder(tmp_path / "out") as building:
        (building / "file").touch()
        (tmp_path / "out").mkdir()  # appears while the other is made
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter", "best", "out", "second"]


def test_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'
    with pytest.raises(RunError, match=r"value\.json"):
        write_json(path, {"b": float("nan")})

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"b": 2})
    assert json.loads(path.read_text())["b"] == 1
    assert list(tmp_path.iterdir()) == [path]

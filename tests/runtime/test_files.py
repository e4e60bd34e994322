"""Folders that are written whole or not at all."""

from pathlib import Path

import pytest

from cyberlm.runtime.files import new_folder


def test_a_folder_whose_place_cannot_be_cleared_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_text("a file")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "adapter", existing="replace") as building:
        (building / "weights").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

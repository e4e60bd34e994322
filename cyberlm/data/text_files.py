"""Opens a question file as text: what is not one, or holds other content than its name says, is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

from cyberlm.runtime.errors import DataError, Problem, lfs_problems

MAX_FILE_BYTES = 512 * 10**6
MAX_LINE_BYTES = 10**6
"""Of .jsonl, .csv and .tsv; a .json file may be one line."""


def read_text(path: Path, ending: str, endings: Sequence[str]) -> tuple[bytes, str]:
    """The bytes of a file whose `ending` is one of `endings`, and their text without a byte order mark.

    Raises:
        DataError: It is a folder, too large, empty, not UTF-8, of another ending, or of another format than its name.
    """
    if path.is_dir():
        raise unreadable(path, *_folder(path))
    if ending not in endings:
        raise unreadable(path, f"its name ends in '{ending}'", ", ".join(endings))
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise unreadable(path, f"it has {size / 1e6:,.0f} MB", f"{MAX_FILE_BYTES // 10**6} MB at most")
        raw, pointers = path.read_bytes(), lfs_problems([path])
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "a file that you may read") from error
    if not raw.strip():
        raise unreadable(path, "it is empty", "one row or more")
    if pointers:
        raise DataError(f"{path} cannot be read as a question file:", pointers)
    _check_name(path, raw.removeprefix(b"\xef\xbb\xbf").lstrip(), ending)
    if ending != ".json":
        _check_line_lengths(path, raw)
    return raw, _decode(path, raw)


def unreadable(path: Path, what: str, allowed: str = "", fix: str = "") -> DataError:
    return DataError(f"{path} cannot be read as a question file:", [Problem(what, allowed, fix)])


def _folder(path: Path) -> tuple[str, str, str]:
    """Kind of a folder, a file instead of it, and for one of the datasets library the command that makes that file."""
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        part = "['train']" if (path / "dataset_dict.json").is_file() else ""
        code = f"from datasets import load_from_disk; load_from_disk('{path}'){part}.to_json('questions.jsonl')"
        return "it is a folder that the datasets library saved", "a question file made from it", f'python -c "{code}"'
    return "it is a folder", "a .json, .jsonl, .csv or .tsv file", ""


def _check_name(path: Path, start: bytes, ending: str) -> None:
    """Refuses JSON under the name of JSON Lines, and the other way about."""
    if ending == ".jsonl" and start[:1] == b"[":
        what, allowed, right = "it holds one JSON list, not one object a line", "a list in a .json file", ".json"
    elif ending == ".json" and start[:1] == b"{" and _is_json_lines(start):
        what, allowed, right = "it holds JSON Lines, one object a line", "JSON Lines in a .jsonl file", ".jsonl"
    else:
        return
    raise unreadable(path, what, allowed, f"mv '{path}' '{path.with_suffix(right)}'")


def _is_json_lines(raw: bytes) -> bool:
    """Test the first two lines for a JSON object each."""
    lines = [line for line in raw[: 4 * MAX_LINE_BYTES].splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def _check_line_lengths(path: Path, raw: bytes) -> None:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise unreadable(
                path,
                f"line {number} has {len(line) / 1e6:.1f} MB",
                f"{MAX_LINE_BYTES // 10**6} MB a line at most; one row a line",
            )


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise unreadable(
            path,
            f"it is not UTF-8 text: byte offset {error.start} (line {line}) is 0x{raw[error.start]:02x}",
            "UTF-8, with or without a byte order mark",
            f"iconv -f ENCODING -t UTF-8 {path.name} > NEW_FILE",
        ) from error

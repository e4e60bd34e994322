"""Opens a question file: what is not one, or holds other content than its name says, is refused."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from cyberlm.runtime.errors import DataError, Problem, lfs_problems

MAX_FILE_BYTES = 512 * 10**6
"""Of a file, and of what it unpacks to."""
MAX_LINE_BYTES = 10**6
"""Of .jsonl, .csv and .tsv; a .json file may be one line."""
GZIP = b"\x1f\x8b"


def stem_of(path: Path) -> str:
    """Name of a question file without its endings: `q` of `q.csv.gz`."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def ending_of(path: Path, reader: str | None) -> str:
    """Format of a file, `.csv` of `q.CSV.gz`: by its name, unless `reader` gives it."""
    if reader:
        return f".{reader}"
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def read_bytes(path: Path, ending: str, endings: Sequence[str]) -> tuple[bytes, bytes]:
    """The bytes of a file whose `ending` is one of `endings`, as they are, and unpacked where gzip has packed them.

    Raises:
        DataError: It is a folder, too large, empty, torn, or of another ending.
    """
    if path.is_dir():
        raise unreadable(path, "it is a folder", f"a file ({', '.join(endings)}), or a folder of the datasets library")
    if ending not in endings:
        raise unreadable(path, f"its name ends in '{ending}'", f"{', '.join(endings)}; each also with .gz")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise unreadable(path, f"it has {size / 1e6:,.0f} MB", f"{MAX_FILE_BYTES // 10**6} MB at most")
        raw, pointers = path.read_bytes(), lfs_problems([path])
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "a file that you may read") from error
    if pointers:
        raise DataError(f"{path} cannot be read as a question file:", pointers)
    content = _unpacked(path, raw) if raw.startswith(GZIP) else raw
    if not content.strip():
        raise unreadable(path, "it is empty", "one row or more")
    return raw, content


def _unpacked(path: Path, raw: bytes) -> bytes:
    content = b""
    try:
        while raw:  # a gzip file may have several members
            decoder = zlib.decompressobj(wbits=31)
            content += decoder.decompress(raw, MAX_FILE_BYTES + 1 - len(content))
            if len(content) > MAX_FILE_BYTES:
                raise unreadable(path, f"it unpacks to more than {MAX_FILE_BYTES // 10**6} MB")
            if not decoder.eof:
                raise unreadable(path, "its gzip stream breaks off", "the whole file")
            raw = decoder.unused_data
    except zlib.error as error:
        raise unreadable(path, f"it cannot be unpacked: {error}", "a whole gzip file") from error
    return content


def decode(path: Path, content: bytes, ending: str) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: It is not UTF-8, has a line that is too long, or is JSON under the name of JSON Lines or so.
    """
    _check_name(path, content.removeprefix(b"\xef\xbb\xbf").lstrip(), ending)
    for number, row in enumerate(content.split(b"\n") if ending != ".json" else (), start=1):
        if len(row) > MAX_LINE_BYTES:
            allowed = f"{MAX_LINE_BYTES // 10**6} MB a line at most; one row a line"
            raise unreadable(path, f"line {number} has {len(row) / 1e6:.1f} MB", allowed)
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise unreadable(
            path,
            f"it is not UTF-8 text: byte offset {error.start} (line {line}) is 0x{content[error.start]:02x}",
            "UTF-8, with or without a byte order mark",
            f"iconv -f ENCODING -t UTF-8 {path.name} > NEW_FILE",
        ) from error


def unreadable(path: Path, what: str, allowed: str = "", fix: str = "") -> DataError:
    return DataError(f"{path} cannot be read as a question file:", [Problem(what, allowed, fix)])


def _check_name(path: Path, start: bytes, ending: str) -> None:
    """Refuses JSON under the name of JSON Lines, and the other way about."""
    if ending == ".jsonl" and start[:1] == b"[":
        what, allowed, right = "it holds one JSON list, not one object a line", "a list in a .json file", ".json"
    elif ending == ".json" and start[:1] == b"{" and _is_json_lines(start):
        what, allowed, right = "it holds JSON Lines, one object a line", "JSON Lines in a .jsonl file", ".jsonl"
    else:
        return
    raise unreadable(path, what, allowed, f"mv '{path}' '{path.with_name(path.name.replace(ending, right))}'")


def _is_json_lines(raw: bytes) -> bool:
    """Test the first two lines for a JSON object each."""
    lines = [line for line in raw[: 4 * MAX_LINE_BYTES].splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False

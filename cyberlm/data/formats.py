"""Rows of each format of question file, with the line that each begins on."""

import csv
import functools
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet

from cyberlm.data.text_files import MAX_LINE_BYTES, decode, ending_of, read_bytes, unreadable
from cyberlm.runtime.errors import DataError
from cyberlm.runtime.files import sha256_of
from cyberlm.runtime.validation import describe_type, short_repr

ROW_SHAPE = '{"question": "...", ...}'
PARQUET_ROWS = 1024
"""Rows that are Python objects at a time."""


class RepeatedKeys(dict[str, object]):
    """A JSON object that gives a key more than once: refused, so that no value is chosen in silence."""


@dataclass(frozen=True)
class Row:
    """One row as read.

    Attributes:
        line: On which it begins; 0 where the format has no lines.
        fields: By name, or by 1-based number without a header; or why they cannot be read.
    """

    number: int
    line: int
    fields: object

    @property
    def place(self) -> str:
        return f"row {self.number} (line {self.line})" if self.line else f"row {self.number}"


def _json_value(text: str) -> object:
    """A JSON value. Numbers become floats: no integer is ever computed from a million digits."""
    return json.loads(text, object_pairs_hook=_json_object, parse_int=float)


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    keys = [key for key, _ in pairs]
    return RepeatedKeys({key: None for key in sorted(value) if keys.count(key) > 1})


def key_names(value: dict[str, object]) -> str:
    return ", ".join(map(short_repr, list(value)[:8]))


def _json_rows(path: Path, content: bytes, header: bool) -> Iterator[Row]:
    text = decode(path, content, ".json")
    try:
        value = _json_value(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        end = "; the file breaks off there" if not text[error.pos :].strip() else ""
        raise unreadable(path, f"it is not JSON: {error.msg}: {place}{end}", "one JSON value") from error
    if isinstance(value, dict) and set(value) == {"questions"} and isinstance(value["questions"], list):
        value = value["questions"]
    if not isinstance(value, list):
        found = describe_type(value)
        if isinstance(value, RepeatedKeys):
            found = f"an object that gives {key_names(value)} more than once"
        elif isinstance(value, dict):
            found = f"an object with the keys {key_names(value)}" if value else "an empty object"
        shape = f'{{"questions": [{ROW_SHAPE}, ...]}}, or the bare list'
        raise unreadable(path, f"its top level is {found}", shape)
    for number, (fields, line) in enumerate(zip(value, _lines_of_items(text), strict=True), start=1):
        yield Row(number, line, fields)


def _lines_of_items(text: str) -> Iterator[int]:
    """The line on which each item of the first list in a valid JSON text begins."""
    decoder = json.JSONDecoder(parse_int=float)
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        yield line
        _, position = decoder.raw_decode(text, position)


def _jsonl_rows(path: Path, content: bytes, header: bool) -> Iterator[Row]:
    number = 0
    for line, item in enumerate(decode(path, content, ".jsonl").split("\n"), start=1):
        if not item.strip():
            continue
        number += 1
        try:
            fields = _json_value(item)
        except json.JSONDecodeError as error:
            fields = ValueError(f"it is not one JSON object: {error.msg}: column {error.colno}")
        yield Row(number, line, fields)


def _csv_rows(
    path: Path, content: bytes, header: bool, delimiter: str = ",", quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Iterator[Row]:
    previous_limit = csv.field_size_limit(MAX_LINE_BYTES)
    text = io.StringIO(decode(path, content, ".csv"), newline="")
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    columns: list[str] | list[int] = []
    number, line, repeated = 0, 1, ""
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                _check_separator(path, cells, delimiter)
                names = [" ".join(cell.split()) for cell in cells]
                columns = names if header else list(range(1, len(cells) + 1))
                repeated = ", ".join(short_repr(name) for name in dict.fromkeys(names) if names.count(name) > 1)
                if header:
                    continue
            number += 1
            fields: object = dict(zip(columns, cells, strict=False))
            if len(cells) != len(columns):
                fields = ValueError(
                    f"it has {len(cells)} cells, the {'header' if header else 'first row'} has {len(columns)}"
                )
            elif header and repeated:
                fields = ValueError(f"the header names {repeated} twice; allowed: a name of its own for each column")
            yield Row(number, begun, fields)
    except csv.Error as error:
        raise unreadable(
            path,
            f"the row that begins on line {line} is malformed: {error}",
            'a cell that holds the separator, a line break or a quote is put in "quotes", a quote in it is doubled',
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _check_separator(path: Path, cells: list[str], delimiter: str) -> None:
    """Refuses a table whose first row is one cell with other separators in it."""
    for mark, fix in {";": "", "|": "", "\t": "data.reader=tsv", ",": "data.reader=csv"}.items():
        if mark != delimiter and len(cells) == 1 and mark in cells[0]:
            raise unreadable(
                path, f"its first row is one cell with {mark!r} in it", f"cells apart by {delimiter!r}", fix
            )


def _parquet_rows(path: Path, content: bytes, header: bool) -> Iterator[Row]:
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        rows = (row for batch in table.iter_batches(PARQUET_ROWS) for row in batch.to_pylist())
        yield from (Row(number, 0, fields) for number, fields in enumerate(rows, start=1))
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, f"it is not Parquet: {str(error).splitlines()[0]}", "a whole Parquet file") from error


TABLES = (".csv", ".tsv")
"""Formats in which columns may be given by number, where there is no header."""
FORMATS: dict[str, Callable[[Path, bytes, bool], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": functools.partial(_csv_rows, delimiter="\t"),
    ".raw_tsv": functools.partial(_csv_rows, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".parquet": _parquet_rows,
}
"""By the ending of a file's name, or `data.reader`. In a raw_tsv a quote is a character as any other.

The third argument says of a table that its first row names the columns.
"""


@dataclass(frozen=True)
class QuestionFile:
    """A question file, or a folder of the datasets library.

    Attributes:
        sha256: Of the bytes of the file, or of all files of the folder in the order of their names.
        rows: Reads the rows; called with False where the first row of a table does not name the columns.
        is_table: Its rows are cells, named by a header or by number.
    """

    sha256: str
    rows: Callable[[bool], Iterator[Row]]
    is_table: bool = False


def open_rows(path: Path, reader: str | None, subset: str | None, split: str | None) -> QuestionFile:
    """Opens a question file of any format, or a folder that the datasets library reads.

    Args:
        reader: Format; by the ending of the file's name unless given.
        subset: Of a folder that holds several configurations.
        split: Of a folder that holds several.
    """
    if path.is_dir() and any(ending_of(file, None) in FORMATS for file in path.rglob("*")):
        return _open_folder(path, subset, split)
    ending = ending_of(path, reader)
    raw, content = read_bytes(path, ending, tuple(FORMATS))
    for name, value in (("subset", subset), ("split", split)):
        if value is not None:
            raise unreadable(path, f"data.{name}={value} of a file", f"data.{name}=null: a file has no {name}s")
    rows = functools.partial(FORMATS[ending], path, content)
    return QuestionFile(hashlib.sha256(raw).hexdigest(), rows, ending in TABLES)


def _open_folder(path: Path, subset: str | None, split: str | None) -> QuestionFile:
    """Opens a folder that `save_to_disk` wrote, or one of data files as the hub has them; no code in it is run."""
    import datasets  # takes a second that no file needs

    errors = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pyarrow.ArrowException)
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        names = [] if saved else datasets.get_dataset_config_names(str(path))
        if subset is not None or len(names) > 1:
            default = None if saved else datasets.get_dataset_default_config_name(str(path))
            subset = _choose(path, "subset", subset, names, default)
        loaded = (
            datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), subset, streaming=True)
        )
    except errors as error:
        raise _not_loaded(path, error) from error
    if isinstance(loaded, dict):
        loaded = loaded[_choose(path, "split", split, loaded)]

    def rows(header: bool) -> Iterator[Row]:
        try:
            yield from (Row(number, 0, fields) for number, fields in enumerate(loaded, start=1))
        except errors as error:
            raise _not_loaded(path, error) from error

    shown = (file for file in path.rglob("*") if "/." not in f"/{file.relative_to(path).as_posix()}")
    return QuestionFile(sha256_of(sorted(file for file in shown if file.is_file())), rows)


def _not_loaded(path: Path, error: Exception) -> DataError:
    return unreadable(path, f"the datasets library cannot load it: {' '.join(str(error).split())[:300]}")


def _choose(path: Path, kind: str, given: str | None, names: Collection[str], default: str | None = None) -> str:
    """The subset or split of a folder that is given, or else the only one."""
    chosen = given or default or (next(iter(names)) if len(names) == 1 else "")
    if chosen not in names:
        found = f"it has no {kind} {chosen!r}" if chosen else f"it holds {len(names)} {kind}s"
        raise unreadable(
            path, found, ", ".join(names) or f"data.{kind}=null", f"data.{kind}={next(iter(names), 'null')}"
        )
    return chosen

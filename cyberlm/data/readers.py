"""Reads a file of rows and makes an example of each. The shapes of multiple choice are in docs/data.md."""

import csv
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cyberlm.config.schema import OnBadRow
from cyberlm.data.text_files import MAX_LINE_BYTES, read_text, unreadable
from cyberlm.runtime.errors import DataError, Problem
from cyberlm.runtime.validation import kind_of, shown
from cyberlm.tasks.task import LETTERS, Example, Task

MAX_ROWS = 10**6
ROW_SHAPE = '{"question": "...", ...}'


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file, with where they came from.

    Attributes:
        name: For example `CyberMetric-2000-v1` or `sample`.
        source: File path or address that was read.
        sha256: Of the file's bytes.
        questions: In file order.
        skipped: Bad rows left out (only under `data.on_bad_row=skip`), each with its line and reason.
        whitespace_normalised: How many rows had white space put right.
    """

    name: str
    source: str
    sha256: str
    questions: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    whitespace_normalised: int = 0


class _Repeating(dict[str, object]):
    """A JSON object that gives a key more than once: refused, so that no value is chosen in silence."""


@dataclass(frozen=True)
class _Row:
    """One row as read: its 1-based number among the rows, its line, and its fields or why they cannot be read."""

    number: int
    line: int
    fields: object


def read_questions(
    path: Path,
    name: str,
    on_bad_row: OnBadRow,
    task: Task,
    columns: Mapping[str, str] | None = None,
    reader: str | None = None,
) -> QuestionSet:
    """Reads all examples of a .json, .jsonl, .csv or .tsv file.

    Args:
        name: Name of the set; an example's id is this name and the row's number.
        on_bad_row: Whether bad rows are an error or are left out (`QuestionSet.skipped` lists them).
        task: Makes an example of a row.
        columns: Fields of a row by the names that the file has for them; fields it does not name are left out.
            Without it, every field is handed on under its own name.
        reader: Format; by the ending of the file's name unless given.

    Raises:
        DataError: The file cannot be read, has another shape, holds bad rows (all are listed), or no good one.
    """
    ending = f".{reader}" if reader else path.suffix.lower()
    raw, text = read_text(path, ending, tuple(READERS))
    questions, bad, normalised = [], [], 0
    try:
        for row in READERS[ending](path, text):
            if row.number > MAX_ROWS:
                raise unreadable(path, f"it has more than {MAX_ROWS:,} rows", f"{MAX_ROWS:,} rows at most")
            try:
                fields = _normalise(row.fields)
                example = task.read(_chosen(fields, columns), f"{name}:{row.number}")
                _check_candidates(example, task)
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # of a user's own task, too
                reason = f"there is no field {error}" if isinstance(error, KeyError) else error
                bad.append(f"row {row.number} (line {row.line}): {reason}")
            else:
                questions.append(example)
                normalised += fields != row.fields
    except RecursionError as error:
        raise unreadable(path, "it nests lists or objects too deeply", ROW_SHAPE) from error
    _check_rows(path, len(questions), bad, on_bad_row)
    return QuestionSet(
        name=name,
        source=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
        questions=tuple(questions),
        skipped=tuple(bad),
        whitespace_normalised=normalised,
    )


def _chosen(fields: object, columns: Mapping[str, str] | None) -> dict[str, object]:
    """The fields that a data source names, under its names for them."""
    if not isinstance(fields, dict):
        raise ValueError(f"it is {kind_of(fields)}; allowed: {ROW_SHAPE}")
    if not columns:
        return fields
    missing = [column for column in columns if column not in fields]
    if missing:
        raise ValueError(f"there is no {', '.join(map(shown, missing))}, which data.columns names")
    return {field: fields[column] for column, field in columns.items()}


def _check_candidates(example: Example, task: Task) -> None:
    """Refuses an example that cannot be scored: reports name candidates by letter, and one of them is right."""
    candidates = task.candidates(example)
    if candidates is None:
        return
    if not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(f"the task gives {len(candidates)} candidates; allowed: 2 to {len(LETTERS)}")
    if not 0 <= example.gold < len(candidates):
        raise ValueError(f"the right one of {len(candidates)} candidates is number {example.gold}, counted from 0")


def _check_rows(path: Path, good: int, bad: list[str], on_bad_row: OnBadRow) -> None:
    if bad and (on_bad_row is OnBadRow.error or not good):
        hint = "Put them right, or leave them out (they are counted) with data.on_bad_row=skip." if good else ""
        reasons = {row.partition(": ")[2] for row in bad}
        listed = [f"every row: {reasons.pop()}"] if len(bad) > 1 and not good and len(reasons) == 1 else bad
        raise DataError(f"{path}: {len(bad)} of {good + len(bad)} rows are bad:", map(Problem, listed), hint)
    if not good:
        raise unreadable(path, "it holds no questions", "one row or more")


def _normalise(value: object) -> object:
    """The same value with every run of white space (no-break spaces and line breaks too) turned into one space."""
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, _Repeating):
        raise ValueError(f"an object gives {_keys(value)} more than once")
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {key: _normalise(item) for key, item in value.items()}
    return value


# --- rows of each format ---


def _json_value(text: str) -> object:
    """A JSON value. Numbers have no place in a question file, so none is ever computed from its digits."""
    return json.loads(text, object_pairs_hook=_json_object, parse_int=float)


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    keys = [key for key, _ in pairs]
    return _Repeating({key: None for key in sorted(value) if keys.count(key) > 1})


def _keys(value: dict[str, object]) -> str:
    return ", ".join(map(shown, list(value)[:8]))


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    try:
        value = _json_value(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        end = "; the file breaks off there" if not text[error.pos :].strip() else ""
        raise unreadable(path, f"it is not JSON: {error.msg}: {place}{end}", "one JSON value") from error
    if isinstance(value, dict) and set(value) == {"questions"} and isinstance(value["questions"], list):
        value = value["questions"]
    if not isinstance(value, list):
        found = kind_of(value)
        if isinstance(value, _Repeating):
            found = f"an object that gives {_keys(value)} more than once"
        elif isinstance(value, dict):
            found = f"an object with the keys {_keys(value)}" if value else "an empty object"
        shape = f'{{"questions": [{ROW_SHAPE}, ...]}}, or the bare list'
        raise unreadable(path, f"its top level is {found}", shape)
    for number, (fields, line) in enumerate(zip(value, _lines_of_items(text), strict=True), start=1):
        yield _Row(number, line, fields)


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


def _jsonl_rows(path: Path, text: str) -> Iterator[_Row]:
    number = 0
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        number += 1
        try:
            fields = _json_value(content)
        except json.JSONDecodeError as error:
            fields = ValueError(f"it is not one JSON object: {error.msg}: column {error.colno}")
        yield _Row(number, line, fields)


def _csv_rows(path: Path, text: str, delimiter: str = ",") -> Iterator[_Row]:
    previous_limit = csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    number, line = 0, 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = _header(path, cells)
                continue
            number += 1
            fields: object = dict(zip(columns, cells, strict=False))
            if len(cells) != len(columns):
                fields = ValueError(f"it has {len(cells)} cells, the header has {len(columns)}")
            yield _Row(number, begun, fields)
    except csv.Error as error:
        raise unreadable(
            path,
            f"the row that begins on line {line} is malformed: {error}",
            'a cell that holds the separator, a line break or a quote is put in "quotes", a quote in it is doubled',
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _header(path: Path, cells: list[str]) -> list[str]:
    columns = [" ".join(cell.split()) for cell in cells]
    repeated = [shown(column) for column in dict.fromkeys(columns) if columns.count(column) > 1]
    if repeated:
        raise unreadable(path, f"its header names {', '.join(repeated)} twice", "a name of its own for each column")
    return columns


READERS: dict[str, Callable[[Path, str], Iterator[_Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": functools.partial(_csv_rows, delimiter="\t"),
}
"""By the ending of a file's name."""

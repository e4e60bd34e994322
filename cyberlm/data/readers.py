"""Reads a question file and checks every row. The shapes it takes stand in docs/data.md; all others are refused."""

import csv
import hashlib
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cyberlm.config.schema import OnBadRow
from cyberlm.data.text_files import MAX_LINE_BYTES, read_text, unreadable
from cyberlm.runtime.errors import DataError, Problem, did_you_mean
from cyberlm.tasks.questions import LETTERS, Question

MAX_ROWS = 10**6
MAX_CHARACTERS = 250_000  # of one text

OPTIONS_FIELDS, GOLD_FIELDS = ("answers", "options", "choices"), ("solution", "answer")
FIELDS = ("question", *OPTIONS_FIELDS, *GOLD_FIELDS, "topic", "domain")
OBJECT_SHAPE = '{"question": "...", "answers": {"A": "...", "B": "..."}, "solution": "A"}'
HEADER_SHAPE = "question, A, B[, C ... H], solution (or answer)[, topic][, domain]"

_SEVERAL_LETTERS = re.compile(r"[A-H](\s*(,|;|/|&|\+|and|or)?\s*[A-H])+", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    questions: tuple[Question, ...]
    skipped: tuple[str, ...] = ()
    whitespace_normalised: int = 0


class _BadRow(Exception):
    """Why one row cannot be used."""


@dataclass(frozen=True)
class _RepeatedKeys:
    """Stands for a JSON object that gives a key more than once, so that no value is chosen in silence."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """One row as read: its 1-based number among the rows, its line, and its fields or why they cannot be read."""

    number: int
    line: int
    fields: object

    def __str__(self) -> str:
        return f"row {self.number} (line {self.line})"


def read_questions(path: Path, name: str, on_bad_row: OnBadRow) -> QuestionSet:
    """Reads all questions of a .json, .jsonl, .csv or .tsv file.

    Args:
        path: The file; its ending says its format.
        name: Name of the set; a question's id is this name and the row's number.
        on_bad_row: Whether bad rows are an error or are left out (`QuestionSet.skipped` lists them).

    Raises:
        DataError: The file cannot be read, has another shape, holds bad rows (all are listed), or no good one.
    """
    readers: dict[str, Callable[[Path, str], Iterator[_Row]]] = {
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
    }
    raw, text = read_text(path, tuple(readers))
    reader = readers[path.suffix.lower()]
    questions, bad, normalised = [], [], 0
    try:
        for row in reader(path, text):
            if row.number > MAX_ROWS:
                raise unreadable(path, f"it has more than {MAX_ROWS:,} rows", f"{MAX_ROWS:,} rows at most")
            fields = _normalise(row.fields)
            try:
                questions.append(_question(f"{name}:{row.number}", fields))
            except _BadRow as error:
                bad.append(f"{row}: {error}")
            else:
                normalised += fields != row.fields
    except RecursionError as error:
        raise unreadable(path, "it nests lists or objects too deeply", OBJECT_SHAPE) from error
    _check_rows(path, len(questions), bad, on_bad_row)
    return QuestionSet(
        name=name,
        source=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
        questions=tuple(questions),
        skipped=tuple(bad),
        whitespace_normalised=normalised,
    )


def _check_rows(path: Path, good: int, bad: list[str], on_bad_row: OnBadRow) -> None:
    if bad and (on_bad_row is OnBadRow.error or not good):
        hint = "Put them right, or leave them out (they are counted) with data.on_bad_row=skip." if good else ""
        raise DataError(f"{path}: {len(bad)} of {good + len(bad)} rows are bad:", map(Problem, bad), hint)
    if not good:
        raise unreadable(path, "it holds no questions", "one row or more")


# --- rows of each format ---


def _json_value(text: str) -> object:
    """A JSON value. Numbers have no place in a question file, so none is ever computed from its digits."""
    return json.loads(text, object_pairs_hook=_json_object, parse_int=float)


def _json_object(pairs: list[tuple[str, object]]) -> object:
    keys = [key for key, _ in pairs]
    repeated = tuple(sorted({key for key in keys if keys.count(key) > 1})) if len(set(keys)) < len(keys) else ()
    return _RepeatedKeys(repeated) if repeated else dict(pairs)


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
        found = _shown_keys(value) if isinstance(value, dict) else _kind(value)
        shape = f'{{"questions": [{OBJECT_SHAPE}, ...]}}, or the bare list'
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
            fields = _BadRow(f"it is not one JSON object: {error.msg}: column {error.colno}")
        yield _Row(number, line, fields)


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    previous_limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield from _csv_cells(path, text)
    finally:
        csv.field_size_limit(previous_limit)


def _csv_cells(path: Path, text: str) -> Iterator[_Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    number, line = 0, 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = _columns(path, cells)
                continue
            number += 1
            yield _Row(number, begun, _csv_fields(columns, cells))
    except csv.Error as error:
        raise unreadable(
            path,
            f"the row that begins on line {line} is malformed: {error}",
            'a cell that holds the separator, a line break or a quote stands in "quotes", a quote in it is doubled',
        ) from error


def _columns(path: Path, header: list[str]) -> list[str]:
    """Names of the columns: fields in lower case, options as capital letters."""
    columns = []
    for cell in header:
        column = cell.strip().lower()
        columns.append(column.upper() if column.upper() in tuple(LETTERS) else column)
    options = sorted(column for column in columns if column in tuple(LETTERS))
    known = {"question", *GOLD_FIELDS, "topic", "domain", *LETTERS}
    problems = [f"column {_shown(column)} is not known" for column in columns if column not in known]
    problems += [f"column '{column}' stands twice" for column in sorted(set(columns)) if columns.count(column) > 1]
    if "question" not in columns:
        problems.append("there is no column 'question'")
    if sum(field in columns for field in GOLD_FIELDS) != 1:
        problems.append("there must be one column 'solution' or 'answer'")
    if len(options) < 2 or options != list(LETTERS[: len(options)]):
        found = ", ".join(options) or "missing"
        problems.append(f"the option columns are {found}: two or more are needed, from A on and without a gap")
    if problems:
        separator = "tab" if path.suffix.lower() == ".tsv" else "comma"
        raise DataError(
            f"{path} has a header that cannot be used:",
            map(Problem, problems),
            f"The first line names the columns, in any order, each followed by a {separator}: {HEADER_SHAPE}",
        )
    return columns


def _csv_fields(columns: list[str], cells: list[str]) -> object:
    """The row in the shape of a JSON object."""
    if len(cells) != len(columns):
        return _BadRow(f"it has {len(cells)} cells, the header has {len(columns)}")
    row = dict(zip(columns, cells, strict=True))
    answers = {letter: row.pop(letter) for letter in LETTERS if letter in row}
    return {**row, "answers": answers}


# --- one row ---


def _normalise(value: object) -> object:
    """The same value with every run of white space (no-break spaces and line breaks too) turned into one space."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {key: _normalise(item) for key, item in value.items()}
    return value


def _question(question_id: str, fields: object) -> Question:
    if isinstance(fields, _BadRow):
        raise fields
    if not isinstance(fields, dict):
        raise _BadRow(f"it is {_kind(fields)}; allowed: {OBJECT_SHAPE}")
    for name in fields:
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise _BadRow(f"field {_shown(name)} is not known; allowed: {', '.join(FIELDS)}. {hint}".rstrip())
    question = _text(fields.get("question"), "question")
    options = _options(fields)
    parts = [_optional_text(fields, name) for name in ("domain", "topic")]
    return Question(
        id=question_id,
        question=question,
        options=options,
        gold=_gold(fields, len(options)),
        topic=": ".join(part for part in parts if part),
    )


def _options(fields: dict[str, object]) -> tuple[str, ...]:
    name = _only_one(fields, OPTIONS_FIELDS)
    value = fields[name]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (key.upper(), key))
        letters, texts = [key.upper() for key in keys], [value[key] for key in keys]
        for one, other in itertools.pairwise(keys):
            if one.upper() == other.upper():
                raise _BadRow(f"{name} names option {one.upper()} twice, as {_shown(one)} and {_shown(other)}")
    elif isinstance(value, list):
        letters, texts = list(LETTERS[: len(value)]), value
    else:
        raise _BadRow(f"{name} is {_kind(value)}; allowed: an object of letters and texts, or a list of texts")
    if not 2 <= len(texts) <= len(LETTERS):
        raise _BadRow(f"{len(texts)} options; allowed: 2 to {len(LETTERS)}")
    expected = list(LETTERS[: len(texts)])
    if letters != expected:
        found, wanted = ", ".join(map(_shown, letters)), ", ".join(expected)
        raise _BadRow(f"the options are named {found}; allowed for {len(texts)} options: {wanted}")
    options = tuple(_text(text, f"option {letter}") for letter, text in zip(letters, texts, strict=True))
    first: dict[str, str] = {}
    for letter, option in zip(letters, options, strict=True):
        same = first.setdefault(unicodedata.normalize("NFC", option), letter)
        if same != letter:
            raise _BadRow(f"options {same} and {letter} are the same: {_shown(option)}")
    return options


def _gold(fields: dict[str, object], n_options: int) -> int:
    name = _only_one(fields, GOLD_FIELDS)
    value = fields[name]
    allowed = f"one letter of {LETTERS[0]} to {LETTERS[n_options - 1]}"
    if isinstance(value, list) or (isinstance(value, str) and _SEVERAL_LETTERS.fullmatch(value)):
        found = _shown(value) if isinstance(value, str) else "a list"
        raise _BadRow(f"{name} is {found}: several right answers are not taken; allowed: {allowed}")
    if not isinstance(value, str):
        raise _BadRow(f"{name} is {_kind(value)}; allowed: {allowed}")
    if value.upper() not in tuple(LETTERS[:n_options]):
        raise _BadRow(f"{name} is {_shown(value)}, which names no option; allowed: {allowed}")
    return LETTERS.index(value.upper())


def _only_one(fields: dict[str, object], names: tuple[str, ...]) -> str:
    """The one of several names that a row uses for the same thing."""
    present = [name for name in names if name in fields]
    if len(present) != 1:
        found = " and ".join(present) + " stand side by side" if present else f"{names[0]} is missing"
        raise _BadRow(f"{found}; allowed: one of {', '.join(names)}")
    return present[0]


def _text(value: object, what: str) -> str:
    if value is None:
        raise _BadRow(f"{what} is missing or null")
    if not isinstance(value, str):
        raise _BadRow(f"{what} is {_kind(value)}, not text")
    if not value:
        raise _BadRow(f"{what} is empty")
    if len(value) > MAX_CHARACTERS:
        raise _BadRow(f"{what} has {len(value):,} characters; allowed: {MAX_CHARACTERS:,} at most")
    if _SURROGATE.search(value):
        raise _BadRow(f"{what} holds half of a surrogate pair, which no text can hold: {value[:60]!a}")
    return value


def _optional_text(fields: dict[str, object], name: str) -> str:
    """A field that may be left out or be empty."""
    return _text(fields[name], name) if fields.get(name, "") != "" else ""


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, _RepeatedKeys):
        return f"an object that gives {', '.join(map(_shown, value.keys))} more than once"
    if isinstance(value, float):
        return "NaN" if value != value else f"the number {value:g}"
    words = {dict: "an object", list: "a list", str: "text", bool: str(value).lower(), type(None): "null"}
    return words[type(value)]


def _shown(text: str) -> str:
    """The text in quotes, cut to fit a line, with all that a terminal might not show escaped."""
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}..."


def _shown_keys(value: dict[str, object]) -> str:
    keys = ", ".join(map(_shown, list(value)[:8]))
    return f"an object with the keys {keys}" if keys else "an empty object"

"""Records to JSON and back by pydantic; its errors as sentences that name the field and the value."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cyberlm.runtime.errors import Problem, RunError, did_you_mean

Record = TypeVar("Record")

WORDS = {
    "json_invalid": "it is not JSON: {error}",
    "missing": "{place} is missing",
    "extra_forbidden": "{place} is not known. {near}",
    "unexpected_keyword_argument": "{place} is not known. {near}",
    "string_type": "{place} is {kind}, not text",
    "string_unicode": "{place} holds half of a surrogate pair, which no text can hold: {value}",
    "string_too_short": "{place} is empty",
    "string_too_long": "{place} has {length:,} characters; allowed: {max_length:,} at most",
    "value_error": "{place} {error}",
}
"""Sentences by pydantic's type of error; of other types, pydantic's own are taken."""
EXPECTED = "Input should be "


def validation_messages(error: ValidationError, known: Sequence[str] = ()) -> list[str]:
    """Make a sentence of each thing that is wrong with a record.

    Args:
        known: Its fields; the nearest is named beside one that is not known.
    """
    reasons = []
    for item in error.errors(include_url=False):
        value, message, place = item["input"], item["msg"], ".".join(map(str, item["loc"])) or "it"
        other = "{place} is {value}; allowed: {allowed}" if message.startswith(EXPECTED) else "{place}: {message}"
        reason = WORDS.get(item["type"], other).format(
            place=place,
            message=message,
            allowed=message.removeprefix(EXPECTED),
            kind=describe_type(value),
            value=short_repr(value) if isinstance(value, str) else json.dumps(value, default=str)[:60],
            length=len(value) if isinstance(value, str) else 0,
            near=did_you_mean(place, known),
            **item.get("ctx", {}),
        )
        reasons.append(reason.strip())
    return reasons


def describe_type(value: Any) -> str:
    """Name a JSON value: `the number 7`, `a list`."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return "NaN" if value != value else f"the number {value:g}"
    return {"dict": "an object", "list": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)


def short_repr(text: str) -> str:
    """Quote a text, cut to fit a line, with all that a terminal might not show escaped."""
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}..."


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def to_json(record: Any, where: str) -> Any:
    """Turn a dataclass into JSON values.

    Raises:
        RunError: If a number is infinite or not a number; with all of these.
    """
    value = _adapter(type(record)).dump_python(record, mode="json")
    problems = [
        Problem(f"{name} is {item}", "a finite number")
        for name, item in leaves(value)
        if isinstance(item, float) and not math.isfinite(item)
    ]
    if problems:
        hint = "If this model was trained here, its training diverged: lower optim.learning_rate."
        raise RunError(f"{where} cannot be written.", problems, hint)
    return value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give all that plain containers hold, each with its dotted name."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield name, value
    for key, item in items or ():
        yield from leaves(item, f"{name}.{key}".lstrip("."))


def from_json(kind: type[Record], value: Any, where: str, hint: str = "") -> Record:
    """Makes a dataclass of JSON values. An integer is a float, too; nothing else is converted.

    Raises:
        RunError: If fields are unknown, missing or mistyped; with all of these, and `hint`.
    """
    try:
        record: Record = _adapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
        return record
    except ValidationError as error:
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # every record is a dataclass
        raise RunError(f"{where} cannot be read.", map(Problem, validation_messages(error, known)), hint) from error

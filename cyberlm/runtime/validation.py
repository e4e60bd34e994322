"""Words for the records that pydantic refuses: each problem with its place and its value."""

from typing import Any

from pydantic import ValidationError

WORDS = {
    "json_invalid": "it is not JSON: {error}",
    "missing": "{place} is missing",
    "extra_forbidden": "{place} is not known",
    "unexpected_keyword_argument": "{place} is not known",
    "string_type": "{place} is {kind}, not text",
    "string_unicode": "{place} holds half of a surrogate pair, which no text can hold: {value}",
    "string_too_short": "{place} is empty",
    "string_too_long": "{place} has {length:,} characters; allowed: {max_length:,} at most",
    "value_error": "{place} {error}",
}
"""Sentences by pydantic's type of error; of other types, pydantic's own are taken."""


def reasons_of(error: ValidationError) -> list[str]:
    """Make a sentence of each thing that is wrong with a record."""
    reasons = []
    for item in error.errors(include_url=False):
        value = item["input"]
        other = "{place}: {message}, not {kind}" if item["type"].endswith("_type") else "{place}: {message}"
        words = WORDS.get(item["type"], other)
        reasons.append(
            words.format(
                place=".".join(map(str, item["loc"])) or "it",
                message=item["msg"],
                kind=kind_of(value),
                value=shown(str(value)),
                length=len(value) if isinstance(value, str) else 0,
                **item.get("ctx", {}),
            ).strip()
        )
    return reasons


def kind_of(value: Any) -> str:
    """Name a JSON value: `the number 7`, `a list`."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return "NaN" if value != value else f"the number {value:g}"
    return {"dict": "an object", "list": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)


def shown(text: str) -> str:
    """Quote a text, cut to fit a line, with all that a terminal might not show escaped."""
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}..."

"""Bounds of single settings: metadata of their fields, and the one walker that checks them."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from cyberlm.runtime.errors import Problem

NAME = re.compile(r"\w[\w .+\-]{0,63}")
"""Names that become part of a folder's name: no separator, no leading dot."""
HUB_ID = re.compile(r"\w[\w.-]*/(?!.*\.(?:jsonl?|csv|tsv|parquet)(?:\.gz)?$)\w[\w.-]*")
"""owner/name; a name that ends as a question file does is a path."""


def at_least(least: float, default: Any) -> Any:
    """A field that holds a finite number from `least` on."""
    return _bounded(default, f"{least:g} or more", lambda value: least <= value < math.inf)


def above_zero(default: Any, most: float = math.inf) -> Any:
    allowed = "above 0" if most == math.inf else f"above 0 and at most {most:g}"
    return _bounded(default, allowed, lambda value: 0 < value <= most and value < math.inf)


def between(low: int, high: int, default: Any) -> Any:
    return _bounded(default, f"{low} to {high}", lambda value: low <= value <= high)


def share(default: Any) -> Any:
    return _bounded(default, "at least 0 and below 1", lambda value: 0 <= value < 1)


def one_of(*choices: str) -> Any:
    """The first choice is the default."""
    return _bounded(choices[0], ", ".join(choices), lambda value: value in choices)


def folder_name(default: Any) -> Any:
    allowed = "up to 64 letters, digits, spaces and _ . + -, a letter or digit first"
    return _bounded(default, allowed, lambda value: NAME.fullmatch(value) is not None)


def file(allowed: str) -> Any:
    return _bounded(None, allowed, lambda value: Path(value).exists(), "there is no such file")


def question_file() -> Any:
    """A file or folder that exists, or the hub id of a dataset."""
    allowed = "a .json, .jsonl, .csv, .tsv or .parquet file, a folder of the datasets library, or a hub id (owner/name)"
    return _bounded(None, allowed, lambda value: Path(value).exists() or is_hub_id(value), "there is no such file")


def is_hub_id(path: str) -> bool:
    """True for `owner/name` of a dataset on the hub: no path that exists, and no file in a folder that does."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).exists() and not Path(path).parent.is_dir()


def folder(allowed: str) -> Any:
    return _bounded(None, allowed, lambda value: Path(value).is_dir(), "it is not a folder")


AUTO = "auto"
"""Word of `trainer.resume` for the run's own folder, where that holds a run."""


def run_folder(default: Any = None, word: str = "") -> Any:
    """Folder of a run, finished or not, or a word instead."""
    allowed, wrong = "the folder of a run, under outputs/", "there is no config.yaml in it"
    allowed += f", or {word}" if word else ""
    return _bounded(default, allowed, lambda value: value == word or (Path(value) / "config.yaml").is_file(), wrong)


def _bounded(default: Any, allowed: str, holds: Callable[[Any], bool], wrong: str = "") -> Any:
    return field(default=default, metadata={"allowed": allowed, "holds": holds, "wrong": wrong})


def bound_problems(node: Any, prefix: str = "") -> Iterator[Problem]:
    """Every value of a dataclass, and of those it holds, that is outside the bounds of its field; null never is."""
    for item in fields(node):
        key, value = f"{prefix}{item.name}", getattr(node, item.name)
        if is_dataclass(value):
            yield from bound_problems(value, f"{key}.")
        elif value is not None and item.metadata and not item.metadata["holds"](value):
            typed = f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            yield Problem(": ".join(filter(None, [typed, item.metadata["wrong"]])), item.metadata["allowed"])


def nested_schema(kind: Any) -> type | None:
    """The dataclass that a field of this type holds."""
    return next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and is_dataclass(part)), None)

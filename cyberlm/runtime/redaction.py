"""Secrets are taken out of what is printed, logged or kept as a record, and refused where they are typed to be saved.

What is read back, a run's config.yaml above all, is never changed. A secret is the value of an environment variable or
of a key whose name says so (HF_TOKEN, logger.x.password), the user part of an address (https://user:secret@host) and
its parameters of such names, and a string in the shape of a well-known token.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cyberlm.runtime.errors import ConfigError, Problem

REDACTED = "<redacted>"
LEAST_SECRET = 6
"""Characters: a shorter value of an environment variable is as likely an ordinary word."""

LEAST_TYPED = 12
"""Characters of such a value that is refused where it is typed."""

_NAMES = (
    r"(?:token|secret|passw(?:or)?d|passphrase|api_?key|access_?key(?:_?id)?|secret_?key|private_?key|auth_?key"
    r"|credentials?|authorization|sas|dsn)"
)
_SECRET_NAME = re.compile(rf"(?:^|[._\-]){_NAMES}$|(?:^|[._\-])(?:secret|password)[._\-]", re.IGNORECASE)
_USER_PART = re.compile(r"(?<=://)[^\s/@'\"]+@")
_PASSWORD_PART = re.compile(r"://[^\s/@'\":]*:[^\s/@'\"]+@")
_PARAMETER = re.compile(rf"([?&](?:[\w.\-]*[._\-])?(?:{_NAMES}|sig|signature)=)[^\s&'\"]+", re.IGNORECASE)
_KEY, _VALUE = (
    rf"(?:[\w\-]+[._\-])*{_NAMES}['\"]?",
    r"(?!null\b|None\b|['\"]?\$\{)(?:\"[^\"]*\"|'[^']*'|[^\s,'\"})\]]+)",
)
_OVERRIDE = re.compile(rf"((?:^|(?<=[\s,{{(\['\"+~])){_KEY}\s*=\s*){_VALUE}", re.IGNORECASE)
_MAPPING = re.compile(rf"((?:^[ \t\-]*|[{{,]\s*)['\"]?{_KEY}\s*:\s*){_VALUE}", re.IGNORECASE | re.MULTILINE)
"""As in YAML, JSON and Python's dictionaries."""
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|AKIA[0-9A-Z]{16}"
    r"|sk-[A-Za-z0-9_\-]{20,}|xox[abpr]-[\w\-]{10,})\b|(?<=[Bb]earer )[\w.\-~+/]{8,}=*"
)


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret; `max_new_tokens` and `eos_token_id` do not."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """The text with `<redacted>` in place of every secret."""
    for value in _environment_secrets():
        text = text.replace(value, REDACTED)
    text = _USER_PART.sub(f"{REDACTED}@", text)
    text = _PARAMETER.sub(rf"\1{REDACTED}", text)
    text = _SHAPES.sub(REDACTED, text)
    return _MAPPING.sub(rf"\1{REDACTED}", _OVERRIDE.sub(rf"\1{REDACTED}", text))


def _environment_secrets() -> list[str]:
    """Longest first: one may hold another."""
    found = {value.strip() for name, value in os.environ.items() if is_secret_name(name)}
    return sorted((value for value in found if len(value) >= LEAST_SECRET), key=len, reverse=True)


def refuse_typed(config: Mapping[str, Any]) -> None:
    """Refuses secrets in a configuration, which is saved as it is; references to the environment are none.

    Args:
        config: Plain containers, not resolved; nested or by dotted key.

    Raises:
        ConfigError: With every key that holds one.
    """
    keys = list(dict.fromkeys(_typed_secrets(config, "")))
    if keys:
        raise ConfigError(
            "A run's configuration is saved, so that it may not hold secrets:",
            [Problem(key, "a reference to an environment variable", f"'{key}=${{oc.env:NAME}}'") for key in keys],
            "The variable is read when a run begins or goes on: export NAME=...",
        )


def _typed_secrets(value: Any, key: str) -> Iterator[str]:
    """Keys of secrets. A prompt's texts are questions to a model: they may speak of secrets."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _typed_secrets(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _typed_secrets(item, key)
    elif isinstance(value, str | int) and not isinstance(value, bool) and "${" not in str(value):
        text = str(value)
        named = is_secret_name(key) and text not in ("", REDACTED)
        if named or (not key.startswith("prompt.") and _is_secret(text)):
            yield key


def _is_secret(value: str) -> bool:
    """Whether it is an address with a password, of a token's shape, or a variable's value that is not just a word."""
    if any(shape.search(value) for shape in (_PASSWORD_PART, _PARAMETER, _SHAPES)):
        return True
    return len(value) >= LEAST_TYPED and not value.isalpha() and value in _environment_secrets()


def redact_values(value: Any, name: str = "") -> Any:
    """Plain containers with their secrets taken out, by key and by value."""
    if isinstance(value, Mapping):
        return {key: redact_values(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item, name) for item in value]
    if isinstance(value, str):
        return REDACTED if value and is_secret_name(name) else redact(value)
    return value


def redact_files(folder: Path, pattern: str) -> None:
    """Rewrites the text files of a folder that hold secrets: Hydra writes what was typed before a run begins."""
    for file in folder.glob(pattern):
        text = file.read_text(encoding="utf-8")
        if redact(text) != text:
            draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            draft.write_text(redact(text), encoding="utf-8")
            draft.replace(file)


def guard_output() -> None:
    """From here on log records, and the traceback of a defect, come out without secrets."""
    if logging.getLogRecordFactory() is not _safe_record:
        logging.setLogRecordFactory(_safe_record)
    sys.excepthook = _show_defect


def _safe_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **named)
    record.msg, record.args = redact(record.getMessage()), None
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = redact("".join(traceback.format_exception(record.exc_info[1]))).rstrip("\n")
    return record


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")

"""Secrets are taken out of everything that is written or printed: files of a run, loggers, messages.

A secret is the value of an environment variable or of a key whose name says so (HF_TOKEN, logger.x.password), the user
part of an address (https://user:secret@host) and its parameters of such names, and a string in the shape of a
well-known token.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

REDACTED = "<redacted>"
LEAST_SECRET = 6
"""Characters: a shorter value of an environment variable is as likely an ordinary word."""

_NAMES = (
    r"(?:token|secret|passw(?:or)?d|passphrase|api_?key|access_?key(?:_?id)?|secret_?key|private_?key|auth_?key"
    r"|credentials?|authorization|sas|dsn)"
)
_SECRET_NAME = re.compile(rf"(?:^|[._\-]){_NAMES}$|(?:^|[._\-])(?:secret|password)[._\-]", re.IGNORECASE)
_USER_PART = re.compile(r"(?<=://)[^\s/@'\"]+@")
_PARAMETER = re.compile(rf"([?&](?:[\w.\-]*[._\-])?(?:{_NAMES}|sig|signature)=)[^\s&'\"]+", re.IGNORECASE)
_KEY, _VALUE = rf"(?:[\w\-]+[._\-])*{_NAMES}['\"]?", r"(?!null\b|None\b)(?:\"[^\"]*\"|'[^']*'|[^\s,'\"})\]]+)"
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

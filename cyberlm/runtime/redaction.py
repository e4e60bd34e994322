"""Secrets are taken out of what is printed, logged or sent to loggers, and refused where they are typed to be saved.

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
from typing import Any

from cyberlm.runtime.errors import ConfigError, Problem

REDACTED = "<redacted>"
_NAME = (
    r"(?:token|secret|passw(?:or)?d|passphrase|(?:api|access|secret|private|auth)_?key(?:_?id)?|credentials?"
    r"|authorization|sas|dsn|sig|signature)"
)
_SECRET_NAME = re.compile(rf"(?:^|[._\-]){_NAME}$|(?:^|[._\-])(?:secret|password)[._\-]", re.IGNORECASE)
_KEY = rf"(?:[\w.\-]*[._\-])?{_NAME}['\"]?\s*"  # no repetition within a repetition: it would take exponential time
_ASSIGNED = re.compile(  # an override or a parameter; or a key of YAML, JSON or a dictionary of Python
    rf"((?:(?<![\w.\-]){_KEY}=|(?:^[ \t\-]*+|[{{,]\s*+)['\"]?{_KEY}:)\s*)"
    r"(?!null\b|None\b|['\"]?\$\{)(?:\"[^\"]*\"|'[^']*'|[^\s,&'\"})\]]+)",
    re.IGNORECASE | re.MULTILINE,
)
_USER = re.compile(r"(?<=://)[^\s/@'\"]+@")
_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|AKIA[0-9A-Z]{16}"
    r"|sk-[A-Za-z0-9_\-]{20,}|xox[abpr]-[\w\-]{10,})\b|(?<=[Bb]earer )[\w.\-~+/]{8,}=*"
)


def is_secret_name(name: str) -> bool:
    """True for the name of a variable or key that holds a secret; `max_new_tokens` and `eos_token_id` do not."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """The text with `<redacted>` in place of every secret."""
    for value in _environment_secrets():
        text = text.replace(value, REDACTED)
    text = _SHAPE.sub(REDACTED, _USER.sub(f"{REDACTED}@", text))
    return _ASSIGNED.sub(rf"\1{REDACTED}", text)


def _environment_secrets() -> list[str]:
    """Longest first, for one may hold another; a shorter value than six characters is as likely an ordinary word."""
    found = {value.strip() for name, value in os.environ.items() if is_secret_name(name)}
    return sorted((value for value in found if len(value) >= 6), key=len, reverse=True)


def redact_values(value: Any, name: str = "") -> Any:
    """Plain containers with their secrets taken out, by key and by value."""
    if isinstance(value, Mapping):
        return {key: redact_values(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item, name) for item in value]
    if isinstance(value, str):
        return REDACTED if value and is_secret_name(name) else redact(value)
    return value


def refuse_secrets(config: Any) -> None:
    """Refuses secrets in plain containers that are saved as they are; references to the environment are none."""
    keys = dict.fromkeys(key for key, text in _texts(config, "") if _is_secret(key, text))
    if keys:
        raise ConfigError(
            "A run's configuration is saved, so that it may not hold secrets:",
            [Problem(key, "a reference to an environment variable", f"'{key}=${{oc.env:NAME}}'") for key in keys],
            "The variable is read when a run begins or resumes: export NAME=...",
        )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str | int) and not isinstance(value, bool) and "${" not in str(value):
        yield key, str(value)


def _is_secret(key: str, text: str) -> bool:
    if is_secret_name(key):
        return text not in ("", REDACTED)
    if key.startswith("prompt."):  # questions to a model may speak of secrets
        return False
    known = len(text) >= 12 and not text.isalpha() and text in _environment_secrets()
    with_password = any(":" in user for user in _USER.findall(text))
    return known or with_password or bool(_SHAPE.search(text) or _ASSIGNED.search(text))


def redact_output() -> None:
    """From here on log records, and the traceback of a defect, come out without secrets."""
    logging.setLogRecordFactory(_safe_record)
    sys.excepthook = lambda kind, error, trace: print(_traceback(error), file=sys.stderr)


def _safe_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **named)
    record.msg, record.args = redact(record.getMessage()), None
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = _traceback(record.exc_info[1])
    return record


def _traceback(error: BaseException) -> str:
    return redact("".join(traceback.format_exception(error))).rstrip("\n")

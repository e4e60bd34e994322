"""Where results are written and read: results.json, predictions.jsonl and status.json of a run folder.

Files appear whole or not at all, and are checked against the dataclasses of `cyberlm.evaluation.records` when read.
docs/results.md documents every field.
"""

import json
import math
import os
import platform
import subprocess
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cyberlm import __version__
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import Results
from cyberlm.runtime.errors import Problem, RunError, did_you_mean
from cyberlm.runtime.files import parse_json, read_json, read_text, write_json, write_text, write_whole
from cyberlm.runtime.redaction import redact

SCHEMA_VERSION = 1
"""Of results.json: raised when a field changes its meaning or goes away."""

RESULTS_FILE = "results.json"
STATUS_FILE = "status.json"
STATES = ("running", "finished", "failed", "stopped")
PACKAGES = ("torch", "transformers", "peft", "lightning", "bitsandbytes", "datasets", "torchmetrics")
"""Whose versions decide what a run computes."""

_RESCORE = "A training run is scored again by: python evaluate.py run={}"

Record = TypeVar("Record")


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: `running`, `finished`, `failed`, or `stopped` by a signal. A run that was killed stays `running`.
        objective: The validation figure that chose the weights (`trainer.monitor`), once the run has finished.
        reason: Why it failed or stopped.
    """

    state: str
    objective: float | None
    reason: str


def write_results(results: Results, folder: Path) -> None:
    """Writes results.json.

    Raises:
        RunError: If a number is infinite or not a number where the type does not allow None.
    """
    write_record(folder / RESULTS_FILE, results)


def read_results(folder: Path) -> Results:
    """Reads results.json.

    Raises:
        RunError: If there is none, or it is torn, of a later version, or has wrong fields.
    """
    path = folder / RESULTS_FILE
    hint = _RESCORE.format(folder)
    if not path.is_file():
        raise RunError(f"There is no {RESULTS_FILE} in {folder}.", _unfinished(folder), hint)
    return read_record(Results, path, SCHEMA_VERSION, hint)


def write_record(path: Path, record: Any) -> None:
    """Writes a dataclass as a JSON file, whole or not at all.

    Raises:
        RunError: If a number is infinite or not a number where its type does not allow None.
    """
    write_json(path, _plain(record, type(record), path.name))


def read_record(kind: type[Record], path: Path, version: int, hint: str) -> Record:
    """Reads a dataclass with a `schema_version`, `version` or an older one, from a JSON file.

    Raises:
        RunError: If there is no such file, or it is torn, of a later version, or has unknown, missing or mistyped
            fields: with all of these, and `hint`.
    """
    if not path.is_file():
        raise RunError(f"There is no {path}.", hint=hint)
    value = read_json(path, hint)
    found = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(found, int) or not 1 <= found <= version:
        raise RunError(
            f"{path} cannot be read by this version of cyberlm.",
            [Problem(f"schema_version is {found!r}", allowed=" to ".join(map(str, dict.fromkeys((1, version)))))],
            f"Read it with the cyberlm that wrote it. {hint}",
        )
    return _record(kind, value, str(path), hint)


def _unfinished(folder: Path) -> list[Problem]:
    """What status.json says about a run without results."""
    status = read_status(folder)
    if status is None or status.state == "finished":
        return []
    return [Problem(f"the run's state is {status.state}" + (f": {status.reason}" if status.reason else ""))]


def write_predictions(path: Path, predictions_by_model: Mapping[str, Sequence[Prediction]]) -> None:
    """Writes one row a prediction: the model, the fields of the prediction, and whether it is right.

    Args:
        path: File to write; `.jsonl` gets one JSON object a line, `.parquet` the same rows and columns.
        predictions_by_model: By the model's name.

    Raises:
        RunError: If a number is infinite or not a number.
    """
    rows = list(_prediction_rows(path.name, predictions_by_model))
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_text(path, "".join(lines))


def _prediction_rows(name: str, predictions_by_model: Mapping[str, Sequence[Prediction]]) -> Iterator[dict[str, Any]]:
    for model, predictions in predictions_by_model.items():
        for number, prediction in enumerate(predictions, start=1):
            yield {
                "model": model,
                **_plain(prediction, Prediction, f"{name}, prediction {number} of {model}"),
                "correct": prediction.correct,
                "generated_correct": None if prediction.generated is None else prediction.generated_correct,
            }


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of predictions with the types that `Prediction` declares, so that a column may be null throughout."""
    import pyarrow  # here: every command reads this module, and few write Parquet
    from pyarrow import parquet

    plain = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}

    def column(kind: Any) -> Any:
        kind = _without_none(kind) if _is_optional(kind) else kind
        return pyarrow.list_(column(get_args(kind)[0])) if get_origin(kind) is tuple else plain[kind]

    declared = [(name, column(kind)) for name, kind in get_type_hints(Prediction).items()]
    derived = [("correct", pyarrow.bool_()), ("generated_correct", pyarrow.bool_())]
    schema = pyarrow.schema([("model", pyarrow.string()), *declared, *derived])
    write_whole(path, lambda file: parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file))


def read_predictions(path: Path) -> dict[str, list[Prediction]]:
    """Reads what `write_predictions` wrote: the predictions of each model, in order.

    Raises:
        RunError: If there is no such file, or a line is torn or has wrong fields.
    """
    hint = _RESCORE.format(path.parent)
    if not path.is_file():
        raise RunError(f"There is no {path}.", hint=hint)
    by_model: dict[str, list[Prediction]] = {}
    # Not splitlines(), which also cuts at U+2028 and the like: these stand unescaped in JSON text.
    for number, line in enumerate(read_text(path, hint).split("\n"), start=1):
        if not line:
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where, hint)
        if not isinstance(row, dict) or not isinstance(row.get("model"), str):
            raise RunError(f"{where} cannot be read.", [Problem("it names no model", allowed='{"model": ...}')], hint)
        model = row.pop("model")
        row.pop("correct", None)  # derived
        row.pop("generated_correct", None)
        by_model.setdefault(model, []).append(_record(Prediction, row, where, hint))
    if not by_model:
        raise RunError(f"{path} cannot be read.", [Problem("it is empty", allowed="one row or more")], hint)
    return by_model


def write_status(folder: Path, state: str, objective: float | None = None, reason: str = "") -> None:
    """Writes status.json.

    Args:
        folder: Of the run.
        state: One of `STATES`.
        objective: The validation figure that chose the weights; not a number is written as null.
        reason: Why the run failed or stopped.
    """
    if state not in STATES:
        raise ValueError(f"state is {state!r}; allowed: {', '.join(STATES)}")
    write_json(folder / STATUS_FILE, _plain(Status(state, objective, redact(reason)), Status, STATUS_FILE))


def read_status(folder: Path) -> Status | None:
    """Reads status.json; None where there is none."""
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    hint = "Delete the file, or start the run again."
    return _record(Status, read_json(path, hint), str(path), hint)


def environment() -> dict[str, str]:
    """Versions of what computes, the machine, and the git commit of the working directory where it has one."""
    found = {"cyberlm": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["cpu_count"] = str(os.cpu_count())
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def _git_commit() -> str:
    """Hash of the commit that is checked out here; empty where there is no git or no repository."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _plain(value: Any, kind: Any, where: str) -> Any:
    """A record as JSON values. Infinities and NaN become None where `kind` allows it.

    Args:
        value: A dataclass instance, or a value in one.
        kind: Its declared type.
        where: File and field, for the message.
    """
    if value is not None and not isinstance(value, float) and _is_optional(kind):
        kind = _without_none(kind)
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        return {f.name: _plain(getattr(value, f.name), hints[f.name], f"{where}: {f.name}") for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item, get_args(kind)[1], f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, get_args(kind)[0], where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if _is_optional(kind):
            return None
        raise RunError(
            f"{where} cannot be written.",
            [Problem(f"it is {value}", allowed="a finite number")],
            hint="If this model was trained here, its training diverged: lower optim.learning_rate.",
        )
    return value


def _record(kind: type[Record], value: Any, where: str, hint: str) -> Record:
    """Builds a dataclass from JSON values; every unknown, missing or mistyped field is named."""
    problems: list[Problem] = []
    built = _built(kind, value, "", problems)
    if problems:
        raise RunError(f"{where} cannot be read.", problems, hint)
    return built


def _built(kind: Any, value: Any, name: str, problems: list[Problem]) -> Any:
    """`value` as an instance of `kind`; what is wrong is added to `problems`.

    Args:
        kind: A dataclass, `dict[str, X]`, `tuple[X, ...]`, `X | None`, or str, int, float.
        value: What JSON holds.
        name: Path of the field, for example `scores.base.likelihood`.
        problems: Grows.
    """
    if _is_optional(kind):
        return None if value is None else _built(_without_none(kind), value, name, problems)
    if is_dataclass(kind) and isinstance(value, dict):
        return _built_fields(kind, value, name, problems)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _built(get_args(kind)[1], item, _join(name, key), problems) for key, item in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_built(get_args(kind)[0], item, f"{name}[{i}]", problems) for i, item in enumerate(value))
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    expected = kind.__name__ if isinstance(kind, type) else str(kind)
    problems.append(Problem(f"{name or 'the top level'} is {json.dumps(value)[:60]}", allowed=expected))
    return None


def _built_fields(kind: Any, value: dict[str, Any], name: str, problems: list[Problem]) -> Any:
    """A dataclass from a JSON object; a field with a default may be missing."""
    declared = {f.name: f for f in fields(kind)}
    for key in value.keys() - declared.keys():
        problems.append(Problem(f"{_join(name, key)} is not a field. {did_you_mean(key, list(declared))}".rstrip()))
    hints = get_type_hints(kind)
    built = {}
    for key, field in declared.items():
        if key in value:
            built[key] = _built(hints[key], value[key], _join(name, key), problems)
        elif field.default is MISSING and field.default_factory is MISSING:
            problems.append(Problem(f"{_join(name, key)} is missing"))
    return None if problems else kind(**built)


def _is_optional(kind: Any) -> bool:
    """Whether a declared type is `X | None`."""
    return get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind)


def _without_none(kind: Any) -> Any:
    """`X` of `X | None`."""
    return next(part for part in get_args(kind) if part is not types.NoneType)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key

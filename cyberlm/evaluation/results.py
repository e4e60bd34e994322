"""Files of a run folder, written and read: results.json, predictions.jsonl, passes.jsonl and status.json.

Files are written atomically, and are checked against their dataclasses when read. docs/results.md documents every
field.
"""

import contextlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from cyberlm import __version__
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.records import SCHEMA_VERSION, Results
from cyberlm.evaluation.results_v1 import results_of_v1
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import parse_json, read_json, read_text, write_atomic, write_json, write_text
from cyberlm.runtime.redaction import redact
from cyberlm.runtime.validation import from_json, to_json

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.jsonl"
PASSES_FILE = "passes.jsonl"
STATUS_FILE = "status.json"
State = Literal["running", "finished", "failed", "stopped"]
"""A run that was stopped by a signal is `stopped`; one that was killed stays `running`."""
PACKAGES = ("torch", "transformers", "peft", "lightning", "bitsandbytes", "datasets", "torchmetrics")
"""Whose versions decide what a run computes."""

_RESCORE = "A training run is scored again by: python evaluate.py run={}"
_AGAIN = "Type its command again; a training run is resumed by: python train.py trainer.resume={}"
_DEFAULTS = {field.name: field.default for field in fields(Metric)}


@dataclass(frozen=True)
class Status:
    """State of a run, its objective once it has finished, and the reason why it failed or stopped."""

    state: State
    objective: float | None
    reason: str


def write_results(results: Results, folder: Path) -> None:
    """Writes results.json; what a metric holds beyond its name and value is left out where it is the default.

    Raises:
        RunError: If a number is infinite or not a number where the type does not allow None.
    """
    finite = {name: _finite(figure) for name, figure in results.validation.items()}
    value = to_json(replace(results, objective=_finite(results.objective), validation=finite), RESULTS_FILE)
    for metrics in value["metrics"].values():
        for name, metric in metrics.items():
            metrics[name] = {key: item for key, item in metric.items() if item != _DEFAULTS.get(key, MISSING)}
    write_json(folder / RESULTS_FILE, value)


def read_results(folder: Path) -> Results:
    """Reads results.json, of this version or an older one.

    Raises:
        RunError: If there is none, or it is torn, of a later version, or has unknown, missing or mistyped fields: with
            all of these.
    """
    path = folder / RESULTS_FILE
    hint = _RESCORE.format(folder)
    if not path.is_file():
        problems = []
        if not folder.is_dir():
            problems, hint = [Problem("there is no such folder", "the folder of a run")], ""
        elif (status := read_status(folder)) is not None and status.state != "finished":
            reason = f": {status.reason}" if status.reason else ""
            problems = [Problem(f"the run's state is {status.state}{reason}")]
            hint = _AGAIN.format(folder)
        raise RunError(f"There is no {RESULTS_FILE} in {folder}.", problems, hint)
    value = read_json(path, hint)
    found = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
        raise RunError(
            f"{path} cannot be read by this version of cyberlm.",
            [Problem(f"schema_version is {found!r}", allowed=f"1 to {SCHEMA_VERSION}")],
            f"Read it with the cyberlm that wrote it. {hint}",
        )
    return results_of_v1(value, path, hint) if found == 1 else from_json(Results, value, str(path), hint)


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def write_models(folder: Path, models: Mapping[str, Predictions], *, as_parquet: bool = False) -> None:
    """Writes predictions.jsonl (and .parquet), and passes.jsonl where further passes were made."""
    test = {name: given.test for name, given in models.items()}
    write_predictions(folder / PREDICTIONS_FILE, test)
    if as_parquet:
        write_predictions((folder / PREDICTIONS_FILE).with_suffix(".parquet"), test)
    passes: dict[str, Sequence[Prediction]] = {}
    for name, given in models.items():
        passes[f"{name}:rotated"] = list(chain.from_iterable(group[1:] for group in given.rotated))
        passes[f"{name}:without_question"] = given.without_question
        passes[f"{name}:validation"] = given.validation
    if any(passes.values()):
        write_predictions(folder / PASSES_FILE, passes)


def read_models(folder: Path) -> dict[str, Predictions]:
    """Reads what `write_models` wrote, by the model's name.

    Raises:
        RunError: As `read_predictions`, or if the rotations of a question are not all there.
    """
    passes = read_predictions(folder / PASSES_FILE) if (folder / PASSES_FILE).is_file() else {}
    models = {}
    for name, test in read_predictions(folder / PREDICTIONS_FILE).items():
        turned: dict[str, list[Prediction]] = {}
        for row in passes.get(f"{name}:rotated", ()):
            turned.setdefault(row.id, []).append(row)
        rotated = [[row, *turned[row.id]] for row in test if row.id in turned]
        for first, *others in rotated:
            count = first.n_options
            expected = [(count, (first.gold - shift) % count) for shift in range(1, count)]
            if [(row.n_options, row.gold) for row in others] != expected:
                found = f"{first.id} of {name} has {len(others)} predictions"
                problem = Problem(found, f"{count - 1}: one for each rotation of its options, by shift")
                raise RunError(f"{folder / PASSES_FILE} cannot be read.", [problem], _RESCORE.format(folder))
        further = (passes.get(f"{name}:{kind}", ()) for kind in ("without_question", "validation"))
        models[name] = Predictions(test, rotated, *further)
    return models


def write_predictions(path: Path, rows_by_model: Mapping[str, Sequence[Prediction]]) -> None:
    """Writes one row a prediction: the model, the fields of the prediction, and whether it is right.

    Args:
        path: `.jsonl` gets one JSON object a line, `.parquet` the same rows and columns.
    """
    rows = [
        {
            "model": model,
            **to_json(prediction, f"{path.name}, prediction {number} of {model}"),
            "correct": prediction.correct,
            "generated_correct": None if prediction.generated is None else prediction.generated_correct,
        }
        for model, predictions in rows_by_model.items()
        for number, prediction in enumerate(predictions, start=1)
    ]
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow  # here: every command reads this module, and few write Parquet
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows)
    # a column of nulls alone has its type, too
    text, integer, boolean = pyarrow.string(), pyarrow.int64(), pyarrow.bool_()
    types = {"generated": text, "parsed": integer, "finish_reason": text, "generated_correct": boolean}
    schema = [(f.name, types[f.name] if pyarrow.types.is_null(f.type) else f.type) for f in table.schema]
    write_atomic(path, lambda file: parquet.write_table(table.cast(pyarrow.schema(schema)), file))


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
        fields_of = {key: item for key, item in row.items() if key not in ("model", "correct", "generated_correct")}
        by_model.setdefault(row["model"], []).append(from_json(Prediction, fields_of, where, hint))
    if not by_model:
        raise RunError(f"{path} cannot be read.", [Problem("it is empty", allowed="one row or more")], hint)
    return by_model


def write_status(folder: Path, state: State, objective: float | None = None, reason: str = "") -> None:
    """Writes status.json; an objective that is not a number is written as null."""
    status = Status(state, _finite(objective), redact(reason))
    write_json(folder / STATUS_FILE, to_json(status, STATUS_FILE))


def read_status(folder: Path) -> Status | None:
    """Reads status.json; None where there is none."""
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    hint = "Delete the file, or start the run again."
    return from_json(Status, read_json(path, hint), str(path), hint)


def environment() -> dict[str, str]:
    """Versions of what computes, the machine, and the git commit of the working directory where it has one."""
    found = {"cyberlm": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["cpu_count"] = str(os.cpu_count())
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no repository
        command = ["git", "rev-parse", "HEAD"]
        found["git_commit"] = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return found

"""Recomputation of a run's metrics from its predictions and question files, without a model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyberlm.evaluation.records import Results
from cyberlm.evaluation.results import is_older, read_models, read_results
from cyberlm.runs.eval_set import saved_eval_set
from cyberlm.runs.reporting import results_of
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.validation import to_json


def recompute(run: Path) -> list[str]:
    """Compares the metrics and comparisons in results.json with those computed again.

    Of results that an older version wrote, only the values of the metrics that it had: intervals and other figures
    were defined otherwise then.

    Returns:
        Dotted names of the figures that differ, with both values; empty where all are equal.

    Raises:
        RunError: If the folder holds no finished run.
    """
    written = read_results(run)
    models = read_models(run)
    eval_set = saved_eval_set(run, [row.hash for row in next(iter(models.values())).test])
    again = results_of(eval_set, models, written.models, written.provenance)
    if is_older(run):
        values = {
            name: {key: again.metrics[name][key].value for key in metrics if key in again.metrics[name]}
            for name, metrics in written.metrics.items()
        }
        known = {name: {key: written.metrics[name][key].value for key in found} for name, found in values.items()}
        return list(_differences("metrics", known, values))
    return list(_differences("", _figures(written), _figures(again)))


def _figures(results: Results) -> dict[str, Any]:
    """Figures of results.json without the words beside them, which may change with the version."""
    value = to_json(results, "results.json")
    metrics = {
        model: {name: {key: found[key] for key in ("value", "interval", "n")} for name, found in by_name.items()}
        for model, by_name in value["metrics"].items()
    }
    return {"metrics": metrics, "comparisons": value["comparisons"], "differences": value["differences"]}


def _differences(name: str, written: object, again: object) -> Iterator[str]:
    """Figures that differ by more than rounding, which may change with the version."""
    if isinstance(written, dict) and isinstance(again, dict):
        for key in sorted({*written, *again}):
            yield from _differences(f"{name}.{key}".lstrip("."), written.get(key), again.get(key))
    elif isinstance(written, list) and isinstance(again, list) and len(written) == len(again):
        for place, pair in enumerate(zip(written, again, strict=True)):
            yield from _differences(f"{name}[{place}]", *pair)
    elif isinstance(written, float) and isinstance(again, float) and math.isclose(written, again, rel_tol=1e-6):
        return
    elif written != again:
        yield f"{name}: {written} in the file, {again} computed again"


def show_recomputed(run: Path) -> None:
    """Prints that all figures are equal.

    Raises:
        RunError: With the figures that are not.
    """
    different = recompute(run)
    if different:
        raise RunError(f"{len(different)} figures of {run} are not what its rows give:", hint="\n".join(different[:20]))
    if is_older(run):
        print(
            f"The scores of {run} are what predictions.jsonl gives. An older version wrote its evidence, whose figures "
            "were defined otherwise; python evaluate.py computes them as they are now."
        )
        return
    print(f"Every figure of {run} is what predictions.jsonl gives.")

"""Recomputation of a run's metrics from its predictions and question files, without a model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import SCHEMA_VERSION, Results
from cyberlm.evaluation.results import read_models, read_results
from cyberlm.runs.eval_set import saved_eval_set
from cyberlm.runs.pages import write_run_page
from cyberlm.runs.reporting import results_of
from cyberlm.runtime.errors import RunError
from cyberlm.runtime.validation import leaves, to_json


def recompute(run: Path) -> list[str]:
    """Compares the metrics and comparisons in results.json with those computed again.

    Of results that an older version wrote, only the values of the metrics that it had: intervals and other figures
    were defined otherwise then.

    Returns:
        Dotted names of the figures that differ by more than rounding, with both values; empty where all are equal.
    """
    return _differing(*_read(run))


def _read(run: Path) -> tuple[Results, dict[str, Predictions], EvalSet]:
    """Results, answers and questions of a finished run."""
    results, models = read_results(run), read_models(run)
    return results, models, saved_eval_set(run, [row.hash for row in next(iter(models.values())).test])


def _differing(results: Results, models: Mapping[str, Predictions], eval_set: EvalSet) -> list[str]:
    written = _figures(results)
    again = _figures(results_of(eval_set, models, results.models, results.provenance))
    if results.schema_version < SCHEMA_VERSION:
        written = {name: figure for name, figure in written.items() if name.endswith(".value") and name in again}
        again = {name: again[name] for name in written}
    return [
        f"{name}: {written.get(name)} in the file, {again.get(name)} computed again"
        for name in sorted({*written, *again})
        if not _equal(written.get(name), again.get(name))
    ]


def _figures(results: Results) -> dict[str, Any]:
    """Figures of results.json by their dotted names, without the words beside metrics, which may change."""
    value = to_json(results, "results.json")
    for metrics in value["metrics"].values():
        for name, metric in metrics.items():
            metrics[name] = {key: metric[key] for key in ("value", "interval", "n")}
    return dict(leaves({key: value[key] for key in ("metrics", "comparisons", "differences")}))


def _equal(one: object, other: object) -> bool:
    """Rounding may change with the version."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def show_recomputed(run: Path) -> None:
    """Prints that all figures are equal, and writes the run's page again."""
    results, models, eval_set = _read(run)
    different = _differing(results, models, eval_set)
    if different:
        raise RunError(f"{len(different)} figures of {run} are not what its rows give:", hint="\n".join(different[:20]))
    write_run_page(run, results, eval_set, models)
    if results.schema_version < SCHEMA_VERSION:
        print(
            f"The scores of {run} are what predictions.jsonl gives. An older version wrote its evidence, whose figures "
            "were defined otherwise; python evaluate.py computes them as they are now."
        )
        return
    print(f"Every figure of {run} is what predictions.jsonl gives.")

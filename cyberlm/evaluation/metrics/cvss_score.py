"""Deviation of CVSS base scores as CTI-Bench measures it, and beside always answering 7.5."""

from collections.abc import Iterator

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, mean_metric
from cyberlm.evaluation.predictions import Predictions
from cyberlm.tasks.cvss_vector import base_score, deviation, vector_in

BASELINE = 7.5
"""Base score of most vectors of CTI-VSP, and its median: what no model is needed for."""


def cvss_score(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Deviation over the completions that hold a vector (CTI-Bench, arXiv 2406.07599, leaves out the others), that of
    always 7.5 over all questions, and the mean difference to it.

    The deviation over all questions, where a completion without a vector counts as far off as it could be, is a figure
    of the task.
    """
    rows, clusters = predictions.test, context.clusters
    always = [abs(BASELINE - base_score(row.reference)) for row in rows]
    yield mean_metric("baseline_always_7.5", always, clusters, f"deviation of always {BASELINE}", "evidence")
    if any(row.generated is None for row in rows):
        return
    given = [deviation(row.generated or "", row.reference) for row in rows]
    held = [row.generated is not None and vector_in(row.generated) is not None for row in rows]
    if any(held):
        kept = [value for value, holds in zip(given, held, strict=True) if holds]
        numbers = [number for number, holds in zip(clusters.tolist(), held, strict=True) if holds]
        yield mean_metric("deviation_of_vectors", kept, numbers, "deviation where a vector is given")
    below = [value - baseline for value, baseline in zip(given, always, strict=True)]
    yield mean_metric("deviation_above_floor", below, clusters, "  above that", "evidence")

"""Means of the figures that a task has for each completion (`figures` of the task), with their intervals."""

from collections.abc import Iterator

from scipy.stats import t as student

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.outcomes import Clusters
from cyberlm.evaluation.paired_tests import mean_error
from cyberlm.evaluation.predictions import Predictions
from cyberlm.tasks.task import figures_of, make_task


def figures(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Mean of each figure of the task, over all test questions; nothing where no answers were generated.

    Figures that are 0 or 1 are shares, with Wilson's interval; others have an interval by t, near-duplicates as one.
    """
    rows = predictions.test
    if any(row.generated is None for row in rows):
        return
    for name, figure in figures_of(make_task(context.config)).items():
        values = [figure(row.generated or "", row.reference) for row in rows]
        label = name.replace("_", " ")
        if set(values) <= {0.0, 1.0}:
            yield share_metric(name, values, context.clusters, label=label)
        else:
            yield mean_metric(name, values, context.clusters, label=label)


def mean_metric(name: str, values: list[float], clusters: Clusters, label: str = "", note: str = "") -> Metric:
    """Mean with its 95% interval by t; without one where nothing varies."""
    mean, found = sum(values) / len(values), mean_error(values, clusters)
    half = float(student.ppf(0.975, found[1])) * found[0] if found else None
    limits = None if half is None else (mean - half, mean + half)
    return Metric(name, mean, limits, len(values), note, label, ".3f")

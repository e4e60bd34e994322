"""Means of the figures that a task has for each completion (`figures` of the task), with their intervals."""

from collections.abc import Iterator

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, mean_metric, share_metric
from cyberlm.evaluation.predictions import Predictions
from cyberlm.tasks.task import make_task


def figures(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Mean of each figure of the task, over all test questions; nothing where no answers were generated.

    Figures that are True or False are shares, with Wilson's interval; others have one by t, near-duplicates as one.
    """
    rows = predictions.test
    if any(row.generated is None for row in rows):
        return
    for name, figure in getattr(make_task(context.config), "figures", {}).items():
        values = [figure(row.generated or "", row.reference) for row in rows]
        label = name.replace("_", " ")
        if isinstance(values[0], bool):
            yield share_metric(name, values, context.clusters, label=label)
        else:
            yield mean_metric(name, values, context.clusters, label=label)

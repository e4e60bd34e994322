"""Micro-F1 of extracted labels over all texts, beside always naming the most frequent labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.statistics import Clusters, cluster_sums
from cyberlm.tasks.extraction import labels_of

DRAWS = 2000
"""Bootstrap draws of whole clusters."""

Labels = Sequence[frozenset[str]]


def extraction(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Micro-F1, precision and recall of the completions' labels; micro-F1 of the most frequent labels."""
    right = [labels_of(question.answer) for question in context.questions]
    train = [labels_of(question.answer) for question in context.seen] or right
    counts = Counter(chain.from_iterable(train))
    size = max(1, round(counts.total() / len(train)))  # as many labels as a text has on average
    most = sorted(counts, key=lambda label: (-counts[label], label))[:size]
    note = f"The most frequent labels of {len(train)} texts: {', '.join(most)}"
    always, label = [frozenset(most)] * len(right), "micro-F1 of the most frequent"
    baseline = _metric("baseline_frequent_labels", always, right, context.clusters, label)
    yield replace(baseline, note=note, place="evidence")
    rows = predictions.test
    if any(row.generated is None for row in rows):
        return
    answers = zip(context.questions, rows, strict=True)
    given = [labels_of(question.answer if row.parsed == 0 else str(row.parsed or "")) for question, row in answers]
    yield _metric("micro_f1", given, right, context.clusters, "micro-F1")
    named, true, common = _counts(given, right).sum(axis=0).tolist()
    precision, recall = common / named if named else 0.0, common / true
    for name, value in (("precision", precision), ("recall", recall)):
        label = f"micro {name}"
        yield Metric(f"micro_{name}", value, n=len(rows), label=label, format_spec=".3f", place="evidence")


def _counts(given: Labels, right: Labels) -> np.ndarray:
    """Labels named, labels that are right, and those in common: (N, 3)."""
    pairs = zip(given, right, strict=True)
    return np.array([[len(answer), len(truth), len(answer & truth)] for answer, truth in pairs])


def micro_f1(given: Labels, right: Labels, clusters: Clusters = None) -> tuple[float, tuple[float, float]]:
    """Twice the labels in common over those named and those right, of all texts together, with its 95% interval.

    The interval is a bootstrap of whole clusters.
    """
    sums = cluster_sums(_counts(given, right), clusters)  # (G, 3)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS) @ sums  # (DRAWS, 3)
    values = 2 * drawn[:, 2] / (drawn[:, 0] + drawn[:, 1])
    named, true, common = sums.sum(axis=0).tolist()
    low, high = np.quantile(values, (0.025, 0.975))
    return 2 * common / (named + true), (float(low), float(high))


def _metric(name: str, given: Labels, right: Labels, clusters: Clusters, label: str) -> Metric:
    value, limits = micro_f1(given, right, clusters)
    return Metric(name, value, limits, len(right), label=label, format_spec=".3f")

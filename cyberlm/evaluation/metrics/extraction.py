"""Micro-F1 of extracted labels over all texts, beside always naming the most frequent labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    most_frequent, note = frequent_labels([labels_of(question.answer) for question in context.seen] or right)
    always, label = [most_frequent] * len(right), "micro-F1 of the most frequent"
    baseline = _metric("baseline_frequent_labels", always, right, context.clusters, label)
    yield replace(baseline, note=note, place="evidence")
    rows = predictions.test
    if any(row.generated is None for row in rows):
        return
    answers = zip(context.questions, rows, strict=True)
    given = [labels_of(its.answer if row.parsed == 0 else str(row.parsed or "")) for its, row in answers]
    yield _metric("micro_f1", given, right, context.clusters, "micro-F1")
    named, true, common = _counts(given, right).sum(axis=0).tolist()
    precision, recall = common / named if named else 0.0, common / true
    for name, value in (("precision", precision), ("recall", recall)):
        label = f"micro {name}"
        yield Metric(f"micro_{name}", value, n=len(rows), label=label, format_spec=".3f", place="evidence")


def frequent_labels(train: Labels) -> tuple[frozenset[str], str]:
    """As many of the most frequent labels as a text has on average, and a sentence on it."""
    count = max(1, round(sum(map(len, train)) / len(train)))
    counts = Counter(label for labels in train for label in labels)
    most = sorted(counts, key=lambda label: (-counts[label], label))[:count]
    return frozenset(most), f"The most frequent labels of {len(train)} texts: {', '.join(most)}"


def _counts(given: Labels, right: Labels) -> np.ndarray:
    """Labels named, labels that are right, and those in common: (N, 3)."""
    return np.array([[len(mine), len(its), len(mine & its)] for mine, its in zip(given, right, strict=True)])


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

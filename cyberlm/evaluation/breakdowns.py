"""Breakdowns of one model's answers: by confidence, by topic, by letter. No torch here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.outcomes import BoolArray, Clusters, FloatArray, IntArray
from cyberlm.evaluation.predictions import Prediction

BIN_QUESTIONS = 20
"""Fewest questions of a bin of a reliability diagram."""


def equal_mass_bins(values: FloatArray, bins: int) -> IntArray:
    """Bin of each value (N,), from the smallest on, of equally many values each; equals share a bin."""
    # rankdata counts from 1 and gives equals their mean rank.
    return np.minimum((rankdata(values) - 0.5) * bins / values.size, bins - 1).astype(np.int64)


def reliability(
    confidence: ArrayLike, correct: ArrayLike, clusters: Clusters = None, most_bins: int = 15
) -> list[tuple[float, Metric]]:
    """Points of a reliability diagram: mean confidence and share right of bins of equally many questions.

    Args:
        confidence: (N,) probability of the chosen option.
        correct: (N,) bool.
        most_bins: So many where each has `BIN_QUESTIONS` questions, else fewer.
    """
    values, hits = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    places = equal_mass_bins(values, max(1, min(most_bins, values.size // BIN_QUESTIONS)))
    points = []
    for number in np.unique(places):
        inside = places == number
        own = None if clusters is None else np.asarray(clusters)[inside]
        points.append((float(values[inside].mean()), share_metric(f"bin_{number}", hits[inside], own)))
    return points


def by_topic(rows: Sequence[Prediction], correct: BoolArray, clusters: Clusters = None) -> list[Metric]:
    """Share right of each topic, the one with the most questions first; none where no question states its topic.

    A topic `Cryptography: Broadcast attack` counts as `Cryptography`.
    """
    topics = np.array([row.topic.partition(": ")[0] for row in rows])
    names, counts = np.unique(topics[topics != ""], return_counts=True)
    found = []
    for place in np.lexsort((names, -counts)):
        inside = topics == names[place]
        own = None if clusters is None else np.asarray(clusters)[inside]
        found.append(share_metric(str(names[place]), correct[inside], own))
    return found


def letter_counts(chosen: IntArray, gold: IntArray, n_options: int) -> IntArray:
    """Counts (K, K) of questions by right letter (row) and chosen letter (column); without a choice, none."""
    counts = np.zeros((n_options, n_options), dtype=np.int64)
    named = chosen >= 0
    np.add.at(counts, (gold[named], chosen[named]), 1)
    return counts

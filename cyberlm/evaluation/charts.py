"""Breakdowns of one model's answers by confidence, topic and letter; charts of these as tables.

Each experiment logger draws the tables as it can.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.calibration import confidence_of, equal_mass_bins
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Prediction, Predictions, choices, golds, right
from cyberlm.evaluation.scores import scores_of
from cyberlm.evaluation.statistics import BoolArray, Clusters, IntArray
from cyberlm.tasks.task import LETTERS, option_name

Kind = Literal["bars", "confusion", "lines", "table"]
BIN_QUESTIONS, MAX_BINS = 20, 15
"""Fewest questions of a bin of a reliability diagram, and most bins."""
MAX_ROWS = 1000
"""Questions in the table of predictions."""
MAX_TOPICS = 20
"""Of a chart by topic, those with the most questions."""


@dataclass(frozen=True)
class Chart:
    """Table to draw as `bars` (label, value), `confusion` (right, chosen, count) or `lines` (x, line, y); or plain."""

    name: str
    kind: Kind
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def reliability(confidence: ArrayLike, correct: ArrayLike, clusters: Clusters = None) -> list[tuple[float, Metric]]:
    """Points of a reliability diagram: mean confidence and share right, of (N,), in bins of equally many questions."""
    values, hits = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    places = equal_mass_bins(values, max(1, min(MAX_BINS, values.size // BIN_QUESTIONS)))
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


def letter_counts(rows: Sequence[Prediction]) -> IntArray:
    """Counts (K, K) of questions by right letter (row) and chosen letter (column)."""
    counts = np.zeros((max(row.n_options for row in rows),) * 2, dtype=np.int64)
    np.add.at(counts, (golds(rows), choices(rows)), 1)
    return counts


def charts_of(eval_set: EvalSet, models: Mapping[str, Predictions]) -> Iterator[Chart]:
    """Yields confusion of letters and accuracy by topic of each model, reliability and predictions of all.

    Answers that are free have no options, and so only predictions: what was generated.
    """
    lines: list[tuple[Any, ...]] = [(0.0, "calibrated", 0.0), (1.0, "calibrated", 1.0)]
    answered = {name: given for name, given in models.items() if given.test[0].n_options > 1}
    for name, given in answered.items():
        rows, correct = given.test, right(given.test)
        if rows[0].n_options <= len(LETTERS):
            cells = [(LETTERS[i], LETTERS[j], int(n)) for (i, j), n in np.ndenumerate(letter_counts(rows))]
            yield Chart(f"confusion_of_letters/{name}", "confusion", ("right", "chosen", "questions"), cells)
        topics = [(topic.name, topic.value, topic.n) for topic in by_topic(rows, correct)[:MAX_TOPICS]]
        if topics:
            yield Chart(f"accuracy_by_topic/{name}", "bars", ("topic", "accuracy", "questions"), topics)
        confidence = confidence_of(scores_of(rows, eval_set.option_score).numpy())
        lines += [(x, name, share.value) for x, share in reliability(confidence, correct)]
    if answered:
        yield Chart("reliability", "lines", ("confidence", "model", "share right"), lines)
    yield _predictions(eval_set, models)


def _predictions(eval_set: EvalSet, models: Mapping[str, Predictions]) -> Chart:
    """A row a question, and columns for each model: its choice, whether it is right, and its completion."""
    with_text = eval_set.shows_text
    free = all(given.test[0].n_options == 1 for given in models.values())
    of_model = (*(() if free else ("choice",)), "right", *(("generated",) if with_text else ()))
    columns = ["id", "topic", *(["question"] if with_text else []), "right answer"]
    rows = []
    for k, question in enumerate(eval_set.questions[:MAX_ROWS]):
        row: list[Any] = [next(iter(models.values())).test[k].id, question.topic]
        right = question.answer if free else f"{question.letter}) {question.answer}"
        row += [question.question, right] if with_text else ["" if free else question.letter]
        for given in models.values():
            answer = given.test[k]
            cells = {"choice": option_name(answer.choice), "right": answer.correct, "generated": answer.generated}
            row += [(cells | ({"right": answer.generated_correct} if free else {}))[name] for name in of_model]
        rows.append(tuple(row))
    return Chart("predictions", "table", (*columns, *(f"{name} {what}" for name in models for what in of_model)), rows)

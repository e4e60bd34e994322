"""Charts of a finished run as tables, which each experiment logger draws as it can."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cyberlm.evaluation.breakdowns import by_topic, letter_counts, reliability
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.calibration import confidence_of
from cyberlm.evaluation.outcomes import choices, golds, right
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.scores import scores_of
from cyberlm.tasks.task import LETTERS

Kind = Literal["bars", "confusion", "lines", "table"]
MOST_ROWS = 1000
"""Questions in the table of predictions."""
MOST_TOPICS = 20
"""Of a chart by topic, those with the most questions."""


@dataclass(frozen=True)
class Chart:
    """A chart as a table.

    Attributes:
        kind: `bars` (label, value), `confusion` (right, chosen, count), `lines` (x, line, y), or a plain `table`.
        columns: Their names, in this order.
        rows: From top to bottom.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def charts_of(eval_set: EvalSet, models: Mapping[str, Predictions]) -> Iterator[Chart]:
    """Yields confusion of letters and accuracy by topic of each model, reliability and predictions of all.

    Answers that are free have no options, and so only predictions.
    """
    lines: list[tuple[Any, ...]] = [(0.0, "calibrated", 0.0), (1.0, "calibrated", 1.0)]
    answered = {name: given for name, given in models.items() if given.test[0].n_options > 1}
    for name, given in answered.items():
        rows, correct = given.test, right(given.test)
        counts = letter_counts(choices(rows), golds(rows), max(row.n_options for row in rows)).tolist()
        cells = [(LETTERS[i], LETTERS[j], n) for i, row in enumerate(counts) for j, n in enumerate(row)]
        yield Chart(f"confusion_of_letters/{name}", "confusion", ("right", "chosen", "questions"), cells)
        topics = [(topic.name, topic.value, topic.n) for topic in by_topic(rows, correct)[:MOST_TOPICS]]
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
    of_model = ("choice", "right", "generated") if with_text else ("choice", "right")
    columns = ["id", "topic", *(["question"] if with_text else []), "right answer"]
    rows = []
    for k, question in enumerate(eval_set.questions[:MOST_ROWS]):
        row: list[Any] = [next(iter(models.values())).test[k].id, question.topic]
        row += [question.question, f"{question.letter}) {question.answer}"] if with_text else [question.letter]
        for given in models.values():
            answer = given.test[k]
            row += [LETTERS[answer.choice], answer.correct, answer.generated][: len(of_model)]
        rows.append(tuple(row))
    return Chart("predictions", "table", (*columns, *(f"{name} {what}" for name in models for what in of_model)), rows)

"""Accuracy and likelihood against examples worked by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from statistics_support import answered, measured, predictions, question

from cyberlm.evaluation.metrics.accuracy import accuracy, by_option_score
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.metrics.nll import nll
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.statistics import wilson
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.task import LETTERS


def accuracy_of(rows: Sequence[Prediction], *overrides: str) -> dict[str, Metric]:
    return measured(accuracy, [question(int(row.id[2:]), row.gold) for row in rows], rows, *overrides)


def completed(texts_and_parsed: Sequence[tuple[str, int | None, str | None]]) -> list[Prediction]:
    """Predictions of questions whose answer is A: what was generated, the option it names, and why it ended."""
    return [
        replace(answered(question(k, 0), 0), generated=text, parsed=parsed, finish_reason=reason)
        for k, (text, parsed, reason) in enumerate(texts_and_parsed)
    ]


def test_near_duplicates_count_once_in_the_interval_and_ties_are_told() -> None:
    rows = predictions("AAAA", "AABB")
    asked = [replace(question(k, 0), question=text) for k, text in enumerate(("one", "one", "two", "two"))]
    rows = [replace(row, hash=q.hash) for row, q in zip(rows, asked, strict=True)]
    found = measured(accuracy, asked, rows)
    assert (found["n_eff"].value, found["n_eff"].n) == (2.0, 4)
    assert found["accuracy"].interval == pytest.approx(wilson(0.5, 2))
    assert "ties" not in found
    tied = measured(accuracy, asked, [replace(rows[0], tied=True), *rows[1:]])
    assert tied["ties"].note.startswith("two or more options are equally likely in 1 of 4 questions")


def test_unparseable_is_wrong_and_what_generation_cannot_say_is_explained() -> None:
    named = [("A", 0, "stop"), ("A, because", 0, "length")]  # cut off behind its answer, it is read as any other
    unread = [("Perhaps", None, "stop"), ("Let us see:", None, "length"), ("To begin", None, "length")]
    rows = completed([*named, *unread])
    found = accuracy_of(rows)
    names = ("accuracy_generation", "no_option_named", "cut_off", "agreement")
    assert [found[name].value for name in names] == [0.4, 0.2, 0.4, 0.4]
    assert found["cut_off"].place == "headline"
    older = accuracy_of([replace(row, finish_reason=None) for row in rows])
    assert older["no_option_named"].value == 0.6 and "cut_off" not in older
    # no completions, or options that were not shown
    found = accuracy_of(predictions("AB", "AB"))["accuracy_generation"]
    assert (found.value, found.note) == (None, "no accuracy by generation: no answers were generated")
    rows = completed([("a firewall", None, "stop")])
    hidden = accuracy_of(rows, "prompt=text")
    assert hidden["accuracy_generation"].value is None and "not shown" in hidden["accuracy_generation"].note
    assert "no_option_named" not in hidden
    assert accuracy_of(rows)["accuracy_generation"].value == 0.0
    with pytest.raises(RunError, match="1 of 2"):
        accuracy_of([rows[0], *predictions("AB", "AB")[1:]])


def test_option_scores_are_compared_in_the_text_protocol() -> None:
    row = answered(question(0, 2), 0, (-6.0, -4.0, -9.0))
    row = replace(row, n_options=3, option_tokens=(3, 1, 9), option_chars=(12, 4, 6))
    asked = [question(0, 2, ("x", "y", "z"))]
    by = {name: metric.value for name, metric in measured(by_option_score, asked, [row], "prompt=text").items()}
    assert by == {"accuracy_by_sum": 0.0, "accuracy_by_per_token": 1.0, "accuracy_by_per_char": 0.0}
    assert measured(by_option_score, asked, [row]) == {}


def test_nll_and_letter_mass_are_means_over_questions() -> None:
    logs = [(-0.5, -1.5, -3.0, -4.0), (-2.0, -1.0, -3.0, -4.0)]
    asked = [question(k, LETTERS.index("AB"[k])) for k in range(2)]
    rows = [answered(q, 0, log) for q, log in zip(asked, logs, strict=True)]
    found = measured(nll, asked, rows)
    assert found["gold_nll"].value == 0.75
    mass = (0.6065 + 0.2231 + 0.1353 + 0.3679 + 2 * (0.0498 + 0.0183)) / 2
    assert found["letter_mass"].value == pytest.approx(mass, abs=1e-3)
    assert list(measured(nll, asked, rows, "prompt=text")) == ["gold_nll"]

"""Reordered options: which rows may be, how, and what it shows."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_support import answered, calmly, cybermetric, measured, needs_files, question

from cyberlm.evaluation.metrics.rotations import circular_eval, prior_sample, rotations, safe_to_permute
from cyberlm.evaluation.predictions import Prediction
from cyberlm.tasks.task import Example

CASES = json.loads(Path(__file__).with_name("rotation_cases.json").read_text())
"""Options that refer to others, so that their question must not be reordered, and options that do not."""


def test_options_that_speak_of_others() -> None:
    assert [option for option in CASES["unsafe"] if safe_to_permute(("north", option, "south", "west"))] == []
    assert [option for option in CASES["safe"] if not safe_to_permute(("north", option, "south", "west"))] == []
    # A letter that is no option's is text.
    assert safe_to_permute(("C and D", "Hepatitis")) and not safe_to_permute(("C and D", "Hepatitis", "rabies", "x"))


@needs_files
@pytest.mark.parametrize(("size", "unsafe"), [(80, 4), (500, 16), (2000, 83)])
def test_share_of_cybermetric_that_must_not_be_reordered(size: int, unsafe: int) -> None:
    assert sum(not safe_to_permute(question.options) for question in cybermetric(size).questions) == unsafe


@calmly
@given(st.integers(2, 8), st.integers(0, 7))
def test_rotating_keeps_the_answer_and_comes_round(count: int, gold: int) -> None:
    asked = question(0, gold % count, [f"option {k}" for k in range(count)])
    turned = rotations(asked)
    assert turned[0] == asked and {q.id for q in turned} == {asked.id} and len({q.hash for q in turned}) == count
    for before, after in zip(turned, (*turned[1:], asked), strict=True):
        assert after.answer == asked.answer and after.options == (*before.options[1:], before.options[0])
    assert {q.options[0] for q in turned} == set(asked.options)  # every option stands once behind every letter


def under_rotation(asked: Example, chosen: Sequence[int]) -> list[Prediction]:
    return [answered(turned, choice) for turned, choice in zip(rotations(asked), chosen, strict=True)]


def scores_of(groups: Sequence[Sequence[Prediction]], others: int = 0) -> list[float]:
    """Mean, circular accuracy and consistency, where `others` questions could not be rotated."""
    rows = [*(group[0] for group in groups), *(answered(question(90 + k, 0), 0) for k in range(others))]
    found = measured(circular_eval, [question(0, 0)] * len(rows), rows, rotated=groups)
    left_out = f"The options of {others} of {len(rows)} questions must not be reordered: rotations leave these out"
    assert found["rotations_accuracy"].note == (left_out if others else "")
    assert {metric.n for metric in found.values()} == {len(groups)}
    return [found[name].value for name in ("rotations_accuracy", "circular_accuracy", "rotations_consistency")]


def test_scores_by_hand() -> None:
    asked = question(0, gold=1)  # right are 1, 0, 3, 2
    groups = [
        under_rotation(asked, (1, 0, 3, 2)),  # always right
        under_rotation(asked, (0, 3, 2, 1)),  # always "north": consistent, and wrong
        under_rotation(asked, (0, 0, 0, 0)),  # always the letter A: right once
        under_rotation(asked, (1, 0, 3, 0)),  # right three times
    ]
    assert scores_of(groups, others=3) == [(1 + 0 + 0.25 + 0.75) / 4, 0.25, 0.5] == scores_of(groups[::-1], others=3)
    mixed = [under_rotation(question(0, 0, ("yes", "no")), (0, 1)), under_rotation(question(1, 2), (2, 1, 0, 0))]
    assert scores_of(mixed)[0] == (1 + 0.75) / 2
    assert measured(circular_eval, [asked], [answered(asked, 0)]) == {}


def test_sample_for_the_prior() -> None:
    asked = [question(i, i % 4) for i in range(100)]
    asked += [question(i, 0, ("one", "two", "three", "All of the above")) for i in range(100, 150)]
    asked += [question(i, 0, ("yes", "no")) for i in range(150, 160)]
    sample = prior_sample(asked)
    assert len(sample) == 8  # 5% of 160
    assert all(len(q.options) == 4 and safe_to_permute(q.options) for q in sample)
    assert prior_sample(asked[::-1]) == sample != prior_sample(asked, seed=1)
    assert (len(prior_sample(asked[:3])), len(prior_sample(asked, share=1.0))) == (1, 100)
    assert prior_sample(asked[100:150]) == prior_sample([]) == ()

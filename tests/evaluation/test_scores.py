"""Scores of options, and the choice among them."""

from dataclasses import replace
from typing import Any

import pytest
from statistics_support import answered, question

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.scores import choose, scores_of
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.task import short_hash


def row(*log_probs: float, **fields: Any) -> Prediction:
    return replace(answered(question(0, 0, ["option"] * len(log_probs)), 0, log_probs), **fields)


def test_scores_and_choices_by_hand_and_none_of_a_diverged_model() -> None:
    rows = [
        row(-6.0, -4.0, -9.0, option_tokens=(3, 1, 9), option_chars=(12, 4, 6)),
        row(-3.0, -2.0, option_tokens=(1, 2), option_chars=(3, 2)),
    ]
    none = -float("inf")
    by_hand = {
        OptionScore.sum: ([[-6, -4, -9], [-3, -2, none]], [1, 1]),
        OptionScore.per_token: ([[-2, -4, -1], [-3, -1, none]], [2, 1]),
        OptionScore.per_char: ([[-0.5, -1, -1.5], [-1, -1, none]], [0, 1]),
    }
    for how, (scores, choices) in by_hand.items():
        assert scores_of(rows, how).tolist() == scores
        chosen, best = choose(rows, how)
        assert chosen.tolist() == choices and best.tolist() == [1, 2 if how is OptionScore.per_char else 1]
    assert [found.tolist() for found in choose([], OptionScore.sum)] == [[], []]  # a process without a share
    # a model that has diverged
    for bad in (float("nan"), float("-inf"), float("inf")):
        rows = [row(-1.0, -2.0, -1.0), row(bad, -1.0, id="q:bad")]
        with pytest.raises(RunError, match=r"of q:bad are \[(.|\n)*learning_rate"):
            choose(rows, OptionScore.per_token)


def test_equal_options_are_chosen_by_the_question_and_counted() -> None:
    """Each of the tied ones equally often over questions, never another, and the same whenever it is asked again."""
    rows = [row(-1.0, -2.0, -1.0, -1.0, prompt_hash=short_hash(f"question {k}")) for k in range(3000)]
    chosen, best = choose(rows, OptionScore.sum)
    counts = chosen.bincount(minlength=4).tolist()
    assert set(best.tolist()) == {3}
    assert counts[1] == 0 and all(abs(counts[option] - 1000) < 100 for option in (0, 2, 3))
    assert choose(rows[7:8], OptionScore.sum)[0] == chosen[7]

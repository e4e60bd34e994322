"""Scores of options, and the choice among them."""

import pytest
import torch

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.scores import choose, option_scores, pick_best, validation_metrics
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.prompts import prompt_hash


def test_validation_accuracy_is_micro_over_batches() -> None:
    metrics = validation_metrics()
    metrics.update(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]))
    metrics.update(torch.tensor([7]), torch.tensor([1]))
    assert float(metrics.compute()["accuracy"]) == 0.75


def test_option_scores_by_hand() -> None:
    logprobs, tokens, chars = (-6.0, -4.0, -9.0), (3, 1, 9), (12, 4, 6)
    tensors = [torch.tensor(values) for values in (logprobs, tokens, chars)]
    assert option_scores(*tensors, OptionScore.sum).tolist() == [-6.0, -4.0, -9.0]
    assert option_scores(*tensors, OptionScore.per_token).tolist() == [-2.0, -4.0, -1.0]
    assert option_scores(*tensors, OptionScore.per_char).tolist() == [-0.5, -1.0, -1.5]
    chosen = [choose(logprobs, tokens, chars, how, "0" * 16) for how in OptionScore]
    assert chosen == [(1, False), (2, False), (0, False)]


def test_equal_options_are_chosen_by_the_question_and_counted() -> None:
    """Each of the tied ones equally often over questions, never another, and the same whenever it is asked again."""
    hashes = [prompt_hash(f"question {k}") for k in range(3000)]
    picks = [choose((-1.0, -2.0, -1.0, -1.0), (1,) * 4, (1,) * 4, OptionScore.sum, key) for key in hashes]
    assert all(tied for _, tied in picks)
    counts = [sum(chosen == option for chosen, _ in picks) for option in range(4)]
    assert counts[1] == 0 and all(abs(counts[option] - 1000) < 100 for option in (0, 2, 3))
    assert picks[7] == choose((-1.0, -2.0, -1.0, -1.0), (1,) * 4, (1,) * 4, OptionScore.sum, hashes[7])


def test_validation_picks_as_the_test_does() -> None:
    inf = float("inf")
    scores = torch.tensor([[-1.0, -1.0, -3.0], [-1.0, -1.0, -inf], [-2.0, -1.0, -inf], [-5.0, -5.0, -5.0]])
    chosen, count = pick_best(scores, torch.tensor([0, 5, 9, 5]))
    assert chosen.tolist() == [0, 1, 1, 2]
    assert count.tolist() == [2, 2, 1, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_diverged_model_is_an_error_not_a_choice(bad: float) -> None:
    with pytest.raises(RunError, match="learning_rate"):
        choose((bad, -1.0), (1, 1), (1, 1), OptionScore.per_token, "0" * 16)

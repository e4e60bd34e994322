"""Arrays made from predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from statistics_support import answered, question

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation import outcomes as module
from cyberlm.evaluation.outcomes import choices, cluster_numbers, cluster_sums, golds, option_scores, right
from cyberlm.evaluation.scores import choose
from cyberlm.runtime.errors import RunError


def test_likelihood_and_generation_are_told_apart() -> None:
    rows = [answered(question(i, 0), choice=0, parsed=parsed) for i, parsed in enumerate((0, 2, -1))]
    assert choices(rows).tolist() == [0, 0, 0]
    assert choices(rows, generated=True).tolist() == [0, 2, module.NO_CHOICE]
    assert golds(rows).tolist() == [0, 0, 0]
    assert right(rows).tolist() == [True, True, True]
    assert right(rows, generated=True).tolist() == [True, False, False]  # unparseable is wrong, and counted


def test_missing_completions_are_an_error() -> None:
    rows = [answered(question(0, 0), 0, parsed=0), answered(question(1, 0), 0)]
    with pytest.raises(RunError, match="1 of 2 predictions hold no generated answer"):
        right(rows, generated=True)
    with pytest.raises(RunError, match="no questions"):
        choices([])


def test_clusters_are_renumbered_and_summed() -> None:
    assert cluster_sums([1.0, 2.0, 4.0]).tolist() == [1, 2, 4]
    assert cluster_sums([[1, 2], [3, 4], [5, 6]], [9, 2, 9]).tolist() == [[3, 4], [6, 8]]
    assert cluster_numbers(["a", "b", "c"], None).tolist() == [0, 1, 2]
    assert cluster_numbers(["a", "b", "c"], {"a": 7, "b": 3, "c": 7, "d": 1}).tolist() == [1, 0, 1]


def test_option_scores_by_hand() -> None:
    first = answered(question(0, 0), 0, log_probs=(-6.0, -4.0, -9.0, -8.0))
    first = replace(first, option_tokens=(3, 1, 9, 2), option_chars=(12, 4, 6, 8))
    second = answered(question(1, 1, options=("yes", "no")), 1, log_probs=(-3.0, -2.0))
    second = replace(second, option_tokens=(1, 2), option_chars=(3, 2))
    none = -np.inf
    assert option_scores([first, second], OptionScore.sum).tolist() == [[-6, -4, -9, -8], [-3, -2, none, none]]
    assert option_scores([first, second], OptionScore.per_token).tolist() == [[-2, -4, -1, -4], [-3, -1, none, none]]
    assert option_scores([first], OptionScore.per_char).tolist() == [[-0.5, -1.0, -1.5, -1.0]]


@pytest.mark.parametrize("how", list(OptionScore))
def test_scores_choose_what_metrics_chooses(how: OptionScore) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(50):
        values = torch.randn(4, generator=generator).tolist()
        tokens, chars = (tuple(torch.randint(1, 9, (4,), generator=generator).tolist()) for _ in range(2))
        row = replace(answered(question(number, 0), 0, log_probs=values), option_tokens=tokens, option_chars=chars)
        assert option_scores([row], how).argmax() == choose(values, tokens, chars, how, "0" * 16)[0]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_diverged_model_is_an_error(bad: float) -> None:
    with pytest.raises(RunError, match="learning_rate"):
        option_scores([answered(question(0, 0), 0, log_probs=(bad, -1.0, -1.0, -1.0))], OptionScore.sum)
    with pytest.raises(RunError, match="no questions"):
        option_scores([], OptionScore.sum)

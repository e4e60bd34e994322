"""Arrays made from predictions."""

import pytest
from statistics_support import answered, question

from cyberlm.evaluation.intervals import cluster_sums
from cyberlm.evaluation.predictions import NO_CHOICE, choices, golds, right
from cyberlm.runtime.errors import RunError


def test_likelihood_and_generation_are_told_apart() -> None:
    rows = [answered(question(i, 0), choice=0, parsed=parsed) for i, parsed in enumerate((0, 2, -1))]
    assert choices(rows).tolist() == [0, 0, 0]
    assert choices(rows, generated=True).tolist() == [0, 2, NO_CHOICE]
    assert golds(rows).tolist() == [0, 0, 0]
    assert right(rows).tolist() == [True, True, True]
    assert right(rows, generated=True).tolist() == [True, False, False]  # unparseable is wrong, and counted


def test_missing_completions_are_an_error() -> None:
    rows = [answered(question(0, 0), 0, parsed=0), answered(question(1, 0), 0)]
    with pytest.raises(RunError, match="1 of 2 predictions hold no generated answer"):
        right(rows, generated=True)


def test_clusters_of_any_numbers_are_summed() -> None:
    assert cluster_sums([1.0, 2.0, 4.0]).tolist() == [1, 2, 4]
    assert cluster_sums([[1, 2], [3, 4], [5, 6]], [9, 2, 9]).tolist() == [[3, 4], [6, 8]]

"""Means and differences over seeds and questions; test_statistics_coverage.py simulates their intervals."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from cyberlm.evaluation.seeds import as_outcomes, estimate


def test_one_run_of_each_is_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 200))
    found = estimate([as_outcomes(first), as_outcomes(second)], [-1, 1])
    expected = ttest_rel(second, first)
    assert found.value / found.error == pytest.approx(expected.statistic)

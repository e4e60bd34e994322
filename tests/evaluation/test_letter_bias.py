"""Letter bias against scikit-learn and scipy, PriDe by hand and on a model whose bias is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import chi, chi2
from statistics_support import answered, measured, question

from cyberlm.evaluation.metrics.letter_bias import (
    debiased,
    debiased_choices,
    letter_bias,
    preference_test,
    rstd_by_chance,
)
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.metrics.rotations import prior_sample, rotations
from cyberlm.evaluation.predictions import Prediction
from cyberlm.tasks.task import LETTERS, Example


def bias_of(golds: Sequence[int], choices: Sequence[int], options: Sequence[str] = "wxyz") -> dict[str, Metric]:
    asked = [question(k, gold, options) for k, gold in enumerate(golds)]
    return measured(letter_bias, asked, [answered(q, choice) for q, choice in zip(asked, choices, strict=True)])


def indices(letters: str) -> list[int]:
    return [LETTERS.index(letter) for letter in letters]


def test_bias_by_hand() -> None:
    # Recalls 1, 1/2, 1/2, 0: mean 1/2, RStd √(1/8) = 0.353553. Chosen 5, 2, 1, 0 against 2, 2, 2, 2: D = 3, 0, -1, -2.
    # Each letter's count has the variance 2·(1/2)(1/2) + 6·(1/6)(5/6) = 4/3, any two the covariance -4/9: V⁻¹ is 9/16.
    found = bias_of(indices("AABBCCDD"), indices("AAABCABA"))
    values = {name: metric.value for name, metric in found.items()}
    assert [values[f"recall_{letter}"] for letter in "ABCD"] == [1.0, 0.5, 0.5, 0.0]
    assert [8 * values[f"chosen_{letter}"] for letter in "ABCD"] == [5, 2, 1, 0]
    assert values["letter_rstd"] == pytest.approx(0.353553, abs=1e-6)
    assert values["letter_preference_chi2"] == pytest.approx((9 + 1 + 4) * 9 / 16)
    assert values["letter_preference_p"] == pytest.approx(chi2.sf(14 * 9 / 16, 3))
    lowest = found["lowest_recall"]
    assert (lowest.value, lowest.n, lowest.note) == (0.0, 2, "Recall is lowest where D is right")


def test_answers_that_say_nothing_of_a_preference() -> None:
    """None is wrong; or, of two options, all are, where the wrong one is always the other: χ² would be 0/0."""
    single = bias_of([0] * 4, [0] * 4)
    assert (single["letter_rstd"].value, single["letter_preference_p"].value) == (None, None)
    assert "letter_rstd_chance" not in single and "recall_B" not in single
    reversed_key = bias_of([0, 1] * 2, [1, 0] * 2, options=("yes", "no"))
    assert (reversed_key["letter_preference_p"].value, reversed_key["letter_preference_chi2"].value) == (None, None)
    eight = bias_of(range(8), range(8), [f"option {k}" for k in range(8)])
    assert [eight[f"recall_{letter}"].value for letter in LETTERS[:8]] == [1.0] * 8 and eight["letter_rstd"].value == 0


def flowing_to_a(rng: np.random.Generator, n: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Gold and chosen letters; of the errors on B, C and D 0.8 go to A."""
    gold = rng.integers(0, 4, n)
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[gold]  # A first, but where it is gold
    column = np.where((gold == 0) | (rng.random(n) > 0.8), rng.integers(gold > 0, 3, n), 0)
    wrong = np.take_along_axis(others, column[:, None], 1)[:, 0]
    return gold, np.where(rng.random(n) < accuracy, gold, wrong)


def p_of(gold: np.ndarray, chosen: np.ndarray, clusters: np.ndarray | None = None) -> float:
    numbers = np.arange(gold.size) if clusters is None else clusters
    return preference_test(chosen, gold, np.full(gold.size, 4), numbers)[1]


def test_an_accurate_model_is_judged_by_its_errors() -> None:
    """Power; bench/statistics_coverage.py holds the size."""
    rng = np.random.default_rng(0)
    for accuracy, least in ((0.6, 0.95), (0.95, 0.2)):
        assert np.mean([p_of(*flowing_to_a(rng, 300, accuracy)) < 0.05 for _ in range(200)]) >= least
    assert p_of(np.arange(80) % 4, np.zeros(80, dtype=int)) < 1e-12  # a constant letter
    gold, chosen = flowing_to_a(rng, 60, 0.6)
    assert p_of(np.repeat(gold, 2), np.repeat(chosen, 2), np.arange(120) // 2) == pytest.approx(p_of(gold, chosen))


def test_rstd_by_chance() -> None:
    """By the law of χ with 3 degrees of freedom, which the spread of four equal binomials is close to."""
    by_chance, scale = rstd_by_chance([18, 18, 18, 18], 0.4), (0.4 * 0.6 / 18 / 4) ** 0.5
    assert by_chance.mean() == pytest.approx(scale * chi.mean(3), abs=0.003)
    assert np.quantile(by_chance, 0.95) == pytest.approx(scale * chi.ppf(0.95, 3), abs=0.006)
    golds = indices("ABCD" * 18)
    found = bias_of(golds, [gold if k % 5 < 2 else (gold + 1) % 4 for k, gold in enumerate(golds)])
    assert found["letter_rstd_chance"].value == pytest.approx(0.092, abs=0.003)
    assert found["letter_rstd_chance"].interval[1] == pytest.approx(0.16, abs=0.006)


def test_debiased_choice_by_hand_and_with_other_options() -> None:
    # Ratios to the prior: 1.25, 0.67, 0.5, 2; the first of equals.
    shares = np.log([[0.5, 0.2, 0.1, 0.2], [0.4, 0.3, 0.2, 0.1]])
    assert debiased_choices(shares, [0.4, 0.3, 0.2, 0.1]).tolist() == [3, 0]
    assert debiased_choices(shares[:1], [1.0, 0.0, 0.0, 0.0]).tolist() in ([1], [3])
    # questions with other options stay as they are
    asked = [*(question(i, 0, ("yes", "no")) for i in range(5)), *(question(9 + i, 3) for i in range(6))]
    rows = [biased(q) for q in asked]
    rotated = [[biased(turned) for turned in rotations(q)] for q in asked]
    found = measured(debiased, asked, rows, "evaluation.prior_share=0.01", rotated=rotated)
    assert (found["accuracy_debiased"].n, found["prior_A"].n) == (10, 1)
    right = sum(row.correct for row in rows[:5])
    assert found["accuracy_debiased"].value == (right + 5) / 10  # without the bias all the others are right


BIAS = np.array([2.0, 0.5, -0.5, -2.0])
"""Log-odds that the model of these tests gives to letters whatever they stand for."""


def biased(asked: Example) -> Prediction:
    """A model that knows something of each option, but adds the bias of its letter."""
    knowledge = [np.random.default_rng([*map(ord, asked.id + text)]).normal(0, 0.5) for text in asked.options]
    scores = np.array(knowledge) + 1.5 * (np.arange(len(knowledge)) == asked.gold) + BIAS[: len(asked.options)]
    scores -= np.log(np.exp(scores).sum())
    return answered(asked, int(scores.argmax()), log_probs=scores.tolist())


def test_known_bias_is_found_and_taken_out() -> None:
    asked = [question(i, i % 4) for i in range(400)]
    rows = [biased(q) for q in asked]
    sample = {q.hash for q in prior_sample(asked, 0.05, 0)}
    rotated = [[biased(turned) for turned in rotations(q)] for q in asked]
    found = measured(debiased, asked, rows, "seed=0", rotated=rotated)
    # Options average out exactly over rotations, so that only the bias of the letters remains.
    prior = [found[f"prior_{letter}"].value for letter in "ABCD"]
    assert prior == pytest.approx(np.exp(BIAS) / np.exp(BIAS).sum())
    rest = [row for row in rows if row.hash not in sample]
    assert (found["prior_A"].n, found["accuracy_debiased"].n) == (20, 380)
    before, after = found["accuracy_before_debiasing"].value, found["accuracy_debiased"].value
    assert before == pytest.approx(np.mean([row.correct for row in rest])) and before + 0.2 < after
    assert after == pytest.approx(
        np.mean([(np.array(row.option_logprobs) - BIAS).argmax() == row.gold for row in rest])
    )
    assert found["letter_rstd_debiased"].value < 0.1 < found["letter_rstd_before_debiasing"].value
    assert measured(debiased, asked, rows, "prompt=text", rotated=rotated) == {}  # letters are not asked for
    assert measured(debiased, asked, rows) == {}  # no rotations
    none_left = measured(debiased, asked[:1], rows[:1], rotated=rotated[:1])["accuracy_debiased"]
    assert none_left.value is None and "estimated from all questions" in none_left.note

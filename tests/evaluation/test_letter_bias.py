"""Letter bias against scikit-learn and scipy, PriDe by hand and on a model whose bias is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi, chi2, chisquare
from sklearn.metrics import recall_score
from statistics_support import answered, calmly, predictions, question

from cyberlm.evaluation.metrics.letter_bias import debias, debiased_choices, letter_bias, letter_prior, without_prior
from cyberlm.evaluation.metrics.rotations import rotations
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.questions import LETTERS, Question


def test_bias_by_hand() -> None:
    # Recalls 1, 1/2, 1/2, 0: mean 1/2, RStd √(1/8) = 0.353553. Chosen 5, 2, 1, 0 against 2, 2, 2, 2: D = 3, 0, -1, -2.
    # Each letter's count has the variance 2·(1/2)(1/2) + 6·(1/6)(5/6) = 4/3, any two the covariance -4/9: V⁻¹ is 9/16.
    bias = letter_bias(predictions("AABBCCDD", "AAABABCA"[:4] + "CABA"))
    assert bias.recall == {"A": 1.0, "B": 0.5, "C": 0.5, "D": 0.0}
    assert bias.rstd == pytest.approx(0.353553, abs=1e-6)
    assert bias.gold == {"A": 2, "B": 2, "C": 2, "D": 2}
    assert bias.predicted == {"A": 5, "B": 2, "C": 1, "D": 0}
    assert bias.chi_square == pytest.approx((9 + 1 + 4) * 9 / 16)
    assert bias.p_value == pytest.approx(chi2.sf(14 * 9 / 16, 3))


LETTER = st.sampled_from("ABCD")


@calmly
@given(st.lists(st.tuples(LETTER, LETTER), min_size=1, max_size=60))
def test_recall_equals_scikit_learn(rows: list[tuple[str, str]]) -> None:
    gold, chosen = ("".join(side) for side in zip(*rows, strict=True))
    bias = letter_bias(predictions(gold, chosen))
    ever = sorted(set(gold))
    expected = recall_score(list(gold), list(chosen), labels=ever, average=None, zero_division=0)
    assert list(bias.recall) == ever
    assert list(bias.recall.values()) == pytest.approx(expected)
    assert bias.rstd == (pytest.approx(np.std(expected)) if len(ever) > 1 else None)
    turned = letter_bias(predictions(gold, chosen)[::-1])
    assert replace(turned, chi_square=None, p_value=None) == replace(bias, chi_square=None, p_value=None)
    assert turned.chi_square == (None if bias.chi_square is None else pytest.approx(bias.chi_square))


def test_unparseable_completions_are_wrong_and_no_letter() -> None:
    rows = [answered(question(i, i % 2), 0, parsed=parsed) for i, parsed in enumerate((0, 1, -1, -1, 0, 0))]
    bias = letter_bias(rows, generated=True)
    assert bias.recall == {"A": pytest.approx(2 / 3), "B": pytest.approx(1 / 3)}
    assert bias.predicted == {"A": 3, "B": 1, "C": 0, "D": 0}
    assert bias.chi_square is not None  # of the 4 completions that name a letter
    silent = [answered(question(i, i % 2), 0, parsed=-1) for i in range(4)]
    assert letter_bias(silent, generated=True).chi_square is None


def test_nothing_wrong_says_nothing_of_a_preference() -> None:
    single = letter_bias(predictions("AAAA", "AAAA"))
    assert (single.chi_square, single.p_value, single.rstd, single.rstd_chance) == (None, None, None, None)


def test_answers_that_could_not_be_otherwise_say_nothing_of_a_preference() -> None:
    """Of two options the wrong one is always the other: with no answer right the χ² would be 0/0."""
    rows = [answered(question(i, i % 2, ("yes", "no")), 1 - i % 2) for i in range(4)]
    assert (letter_bias(rows).chi_square, letter_bias(rows).p_value) == (None, None)


def flowing(rng: np.random.Generator, n: int, accuracy: float, to_a: float = 1 / 3) -> tuple[str, str]:
    """Gold and chosen letters; of the errors on B, C and D a share goes to A."""
    gold = rng.integers(0, 4, n)
    wrong = (gold + rng.integers(1, 4, n)) % 4
    if to_a != 1 / 3:
        others = np.array([[0, 2, 3], [0, 1, 3], [0, 1, 2]])[gold - 1]  # of B, C, D: A first
        column = (rng.random(n) > to_a) * rng.integers(1, 3, n)
        wrong = np.where(gold == 0, wrong, np.take_along_axis(others, column[:, None], 1)[:, 0])
    chosen = np.where(rng.random(n) < accuracy, gold, wrong)
    return "".join(LETTERS[k] for k in gold), "".join(LETTERS[k] for k in chosen)


@pytest.mark.parametrize(("accuracy", "least", "fits"), [(0.6, 0.95, 1.0), (0.8, 0.75, 0.6), (0.95, 0.22, 0.01)])
def test_an_accurate_model_is_judged_by_its_errors(accuracy: float, least: float, fits: float) -> None:
    """Goodness of fit of predicted to gold counts rejects 0.00 where 0.05 is right, and misses what is there."""
    rng, size, power, fitted = np.random.default_rng(0), 0, 0, np.zeros(2, dtype=int)
    for _ in range(200):
        for column, to_a in enumerate((1 / 3, 0.8)):
            gold, chosen = flowing(rng, 300, accuracy, to_a)
            bias = letter_bias(predictions(gold, chosen))
            found = bias.p_value is not None and bias.p_value < 0.05
            size, power = size + (found and not column), power + (found and column)
            counts = [[side.count(letter) for letter in "ABCD"] for side in (chosen, gold)]
            fitted[column] += chisquare(*counts).pvalue < 0.05
    assert 0.005 <= size / 200 <= 0.09
    assert power / 200 >= least and fitted[1] / 200 <= fits
    assert accuracy == 0.6 or fitted[0] == 0


def test_a_key_that_is_uneven_is_no_preference() -> None:
    """Errors go to the letters that are seldom right: predicted counts differ from the gold ones, rightly so."""
    rng = np.random.default_rng(0)
    gold = rng.choice(4, 600, p=[0.55, 0.2, 0.15, 0.1])
    chosen = np.where(rng.random(600) < 0.5, gold, (gold + rng.integers(1, 4, 600)) % 4)
    rows = predictions(*("".join(LETTERS[k] for k in side) for side in (gold, chosen)))
    bias = letter_bias(rows)
    assert bias.p_value is not None and bias.p_value > 0.05
    assert chisquare(np.bincount(chosen), np.bincount(gold)).pvalue < 1e-10


def test_a_constant_letter_is_a_preference_and_duplicates_count_once() -> None:
    gold = "ABCD" * 20
    alone = letter_bias(predictions(gold, "A" * 80))
    assert alone.p_value is not None and alone.p_value < 1e-12
    rng = np.random.default_rng(0)
    gold, chosen = flowing(rng, 60, 0.6, 0.8)
    once = letter_bias(predictions(gold, chosen))
    doubled = ("".join(letter * 2 for letter in side) for side in (gold, chosen))
    twice = letter_bias(predictions(*doubled), clusters=np.arange(120) // 2)
    assert twice.p_value == pytest.approx(once.p_value)
    assert twice.rstd_chance == pytest.approx(once.rstd_chance, rel=0.1)


def test_rstd_by_chance() -> None:
    """By the law of χ with 3 degrees of freedom, which the spread of four equal binomials is close to."""
    gold = "ABCD" * 18
    chosen = "".join(letter if k % 5 < 2 else "BCDA"["ABCD".index(letter)] for k, letter in enumerate(gold))
    bias = letter_bias(predictions(gold, chosen))
    accuracy = sum(one == other for one, other in zip(gold, chosen, strict=True)) / 72
    scale = (accuracy * (1 - accuracy) / 18 / 4) ** 0.5
    assert bias.rstd_chance == pytest.approx(scale * chi.mean(3), abs=0.003) == pytest.approx(0.092, abs=0.003)
    assert bias.rstd_chance_hi == pytest.approx(scale * chi.ppf(0.95, 3), abs=0.006) == pytest.approx(0.16, abs=0.006)


def test_prior_by_hand() -> None:
    # One question of two options: p(A) is 0.8, then 0.4. The geometric means are √0.32 and √0.12: 0.620204 to 0.379796.
    log_probs = np.log([[[0.8, 0.2], [0.4, 0.6]]])
    assert letter_prior(log_probs) == pytest.approx([0.620204, 0.379796], abs=1e-6)
    # A second question without bias: the mean over questions.
    both = np.concatenate([log_probs, np.log([[[0.9, 0.1], [0.1, 0.9]]])])
    assert letter_prior(both) == pytest.approx([0.560102, 0.439898], abs=1e-6)


def test_prior_does_not_need_normalised_probabilities() -> None:
    log_probs = np.random.default_rng(0).normal(size=(5, 4, 4))
    shifts = np.random.default_rng(1).normal(size=(5, 4, 1))
    assert letter_prior(log_probs + shifts) == pytest.approx(letter_prior(log_probs))
    assert letter_prior(log_probs).sum() == pytest.approx(1)


def test_debiased_choice_by_hand() -> None:
    prior = [0.4, 0.3, 0.2, 0.1]
    # Ratios to the prior: 1.25, 0.67, 0.5, 2; the first of equals.
    assert debiased_choices(np.log([[0.5, 0.2, 0.1, 0.2], [0.4, 0.3, 0.2, 0.1]]), prior).tolist() == [3, 0]
    assert debiased_choices(np.log([[0.5, 0.2, 0.1, 0.2]]), [1.0, 0.0, 0.0, 0.0]).tolist() in ([1], [3])


BIAS = np.array([2.0, 0.5, -0.5, -2.0])
"""Log-odds that the model of these tests gives to letters whatever they stand for."""


def biased(asked: Question) -> Prediction:
    """A model that knows something of each option, but adds the bias of its letter."""
    knowledge = np.array([hash_of(asked.id, text) + 1.5 * (text == asked.answer) for text in asked.options])
    scores = knowledge + BIAS[: len(asked.options)]
    scores -= np.log(np.exp(scores).sum())
    return answered(asked, int(scores.argmax()), log_probs=scores.tolist())


def hash_of(*texts: str) -> float:
    return np.random.default_rng([ord(letter) for letter in "".join(texts)]).normal(0, 0.5)


def test_known_bias_is_found_and_taken_out() -> None:
    asked = [question(i, i % 4) for i in range(400)]
    rows = [biased(q) for q in asked]
    sample = [[biased(turned) for turned in rotations(q)] for q in asked[:20]]
    found = debias(sample, rows)
    # Options average out exactly over rotations, so that only the bias of the letters remains.
    assert list(found.prior.values()) == pytest.approx(np.exp(BIAS) / np.exp(BIAS).sum())
    assert list(found.prior) == list("ABCD")
    assert (found.n_sample, found.n, found.n_unchanged) == (20, 380, 0)
    assert found.acc == pytest.approx(np.mean([row.correct for row in rows[20:]]))
    unbiased = [replace(row, choice=int((np.array(row.option_logprobs) - BIAS).argmax())) for row in rows]
    assert found.acc_debiased == pytest.approx(np.mean([row.correct for row in unbiased[20:]]))
    assert found.acc_debiased > found.acc + 0.2
    assert found.rstd is not None and found.rstd_debiased is not None
    assert found.rstd_debiased < 0.1 < found.rstd
    assert debias(sample[::-1], rows[::-1]) == replace(found, prior=pytest.approx(found.prior))


def test_questions_with_other_options_stay_as_they_are() -> None:
    rows = [biased(question(i, 0, ("yes", "no"))) for i in range(5)] + [biased(question(9, 3))]
    changed = without_prior(rows, [0.7, 0.1, 0.1, 0.1])
    assert changed[:5] == rows[:5]
    assert [replace(row, choice=0) for row in changed] == [replace(row, choice=0) for row in rows]
    found = debias([[biased(turned) for turned in rotations(question(7, 1))]], rows)
    assert (found.n, found.n_unchanged) == (6, 5)


def test_samples_that_cannot_be_used_are_refused() -> None:
    four = [biased(turned) for turned in rotations(question(0, 1))]
    two = [biased(turned) for turned in rotations(question(1, 1, ("yes", "no")))]
    rest = [biased(question(2, 0))]
    for sample, message in (
        ([], "no question can be permuted"),
        ([four, two], "numbers of options in the sample: 2, 4"),
        ([four[:2]], "one for each rotation"),
    ):
        with pytest.raises(RunError, match=message):
            debias(sample, rest)
    with pytest.raises(RunError, match="estimated from all of them"):
        debias([four], four[:1])


def test_eight_options_have_eight_letters() -> None:
    asked = [question(i, i, [f"option {k}" for k in range(8)]) for i in range(8)]
    bias = letter_bias([answered(q, q.gold) for q in asked])
    assert bias.recall == dict.fromkeys(LETTERS, 1.0)
    assert (bias.rstd, bias.chi_square, bias.p_value) == (0.0, None, None)

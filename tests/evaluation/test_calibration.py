"""Calibration against scikit-learn and statsmodels, by hand, and on probabilities that are right by construction."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from statistics_support import answered, calmly, question
from statsmodels.discrete.conditional_models import ConditionalLogit

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.metrics.calibration import (
    area_under_risk_coverage,
    brier,
    calibrate,
    calibration,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import RunError

SEEDS = st.integers(0, 2**32 - 1)


def drawn(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, 4), and golds (N,) drawn with the probabilities softmax(scores / sharpness)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5 * sharpness, (n, 4))
    probs = softmax(scores / sharpness, axis=1)
    gold = (rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return scores, gold


def rows_of(scores: np.ndarray, gold: np.ndarray, first: int = 0) -> list[Prediction]:
    return [
        answered(question(first + i, int(right)), int(row.argmax()), log_probs=row.tolist())
        for i, (row, right) in enumerate(zip(scores, gold, strict=True))
    ]


def test_ece_by_hand() -> None:
    # Two bins: {0.4 wrong, 0.6 right} and {0.8 right, 1.0 wrong}: 2/4 |0.5 - 0.5| + 2/4 |0.5 - 0.9| = 0.2.
    assert expected_calibration_error([0.8, 0.4, 1.0, 0.6], [1, 0, 0, 1], bins=2) == pytest.approx(0.2)
    # More bins than questions: each is its own. 0.4 + 0.4 + 0.2 + 1.0 over 4.
    assert expected_calibration_error([0.8, 0.4, 1.0, 0.6], [1, 0, 0, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [300, 1500])
def test_ece_equals_scikit_learn(n: int) -> None:
    scores, gold = drawn(n, seed=n, sharpness=1.7)
    probs = softmax(scores, axis=1)
    correct = probs.argmax(axis=1) == gold
    share, mean = calibration_curve(correct, probs.max(axis=1), n_bins=15, strategy="quantile")
    assert len(share) == 15
    found = expected_calibration_error(probs.max(axis=1), correct)
    assert found == pytest.approx(np.abs(share - mean).mean())  # bins of equally many


def test_equal_confidences_share_a_bin() -> None:
    # Cut by place, {right, right}, {wrong, wrong} would give 0.5.
    assert expected_calibration_error([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], bins=2) == 0


@pytest.mark.parametrize("seed", range(3))
def test_brier_and_nll_equal_scikit_learn(seed: int) -> None:
    scores, gold = drawn(200, seed)
    log_probs = log_softmax(scores, axis=1)
    expected = brier_score_loss(gold, np.exp(log_probs), labels=[0, 1, 2, 3], scale_by_half=False)
    assert brier(np.exp(log_probs), gold) == pytest.approx(expected, abs=1e-12)
    assert negative_log_likelihood(log_probs, gold) == pytest.approx(log_loss(gold, np.exp(log_probs)), abs=1e-12)


def test_brier_and_nll_by_hand() -> None:
    # (0.3² + 0.2² + 0.1²) and (0.5² + 0.7² + 0.2²) over 2; -(log 0.7 + log 0.3) / 2.
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    assert brier(probs, [0, 1]) == pytest.approx((0.14 + 0.78) / 2)
    assert negative_log_likelihood(np.log(probs), [0, 1]) == pytest.approx(0.780324, abs=1e-6)


def test_aurc_by_hand() -> None:
    # By confidence right, wrong, right, wrong: error rates 0, 1/2, 1/3, 1/2.
    assert area_under_risk_coverage([0.7, 0.9, 0.8, 0.6], [1, 1, 0, 0]) == pytest.approx(
        (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    )


def test_aurc_equals_the_mean_over_orders_of_equals() -> None:
    confidence, correct = np.array([0.9, 0.7, 0.7, 0.7, 0.5, 0.5]), np.array([1, 1, 0, 0, 1, 0])
    areas = []
    for order in itertools.permutations(range(6)):
        if (np.diff(confidence[list(order)]) <= 0).all():
            errors = 1 - correct[list(order)]
            areas.append(np.mean([errors[: i + 1].mean() for i in range(6)]))
    assert len(areas) == 12
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(np.mean(areas))


@calmly
@given(SEEDS)
def test_right_probabilities_are_calibrated(seed: int) -> None:
    found = calibration(*drawn(6000, seed))
    assert found.ece < 0.04
    sharpened = calibration(4 * drawn(6000, seed)[0], drawn(6000, seed)[1])
    assert sharpened.ece > 0.1
    assert sharpened.nll > found.nll
    assert sharpened.brier > found.brier


@calmly
@given(st.lists(st.tuples(st.lists(st.integers(-5, 5), min_size=3, max_size=3), st.integers(0, 2)), min_size=1))
def test_measures_stay_in_their_ranges_and_ignore_order(rows: list[tuple[list[int], int]]) -> None:
    scores, gold = np.array([row for row, _ in rows], dtype=float), np.array([right for _, right in rows])
    found = calibration(scores, gold)
    assert 0 <= found.ece <= 1
    assert 0 <= found.brier <= 2
    assert found.nll >= 0
    assert 0 <= found.aurc <= 1
    again = calibration(scores[::-1], gold[::-1])
    assert (again.ece, again.brier, again.nll, again.aurc) == pytest.approx(
        (found.ece, found.brier, found.nll, found.aurc)
    )


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_equals_conditional_logit(sharpness: float) -> None:
    # Choosing among K options with one coefficient on the score is the conditional logit; the coefficient is 1/T.
    scores, gold = drawn(400, seed=2, sharpness=sharpness)
    chosen = (np.arange(4) == gold[:, None]).astype(float).ravel()
    fit = ConditionalLogit(chosen, scores.reshape(-1, 1), groups=np.repeat(np.arange(400), 4)).fit(disp=0)
    assert fit_temperature(scores, gold) == pytest.approx(1 / float(fit.params[0]), rel=1e-4)
    assert fit_temperature(scores, gold) == pytest.approx(sharpness, rel=0.25)


def test_temperature_is_where_the_slope_is_zero() -> None:
    scores, gold = drawn(300, seed=5, sharpness=2.0)
    temperature = fit_temperature(scores, gold)
    expected = (softmax(scores / temperature, axis=1) * scores).sum(axis=1)
    assert expected.mean() == pytest.approx(scores[np.arange(300), gold].mean(), abs=1e-5)


def test_options_that_do_not_exist_weigh_nothing() -> None:
    scores = np.array([[1.0, 0.0, -np.inf], [0.0, 1.0, 2.0]])
    found = calibration(scores, [0, 2])
    short = calibration(scores[:1, :2], [0])
    other = calibration(scores[1:], [2])
    assert found.nll == pytest.approx((short.nll + other.nll) / 2)
    assert found.brier == pytest.approx((short.brier + other.brier) / 2)


def test_temperature_without_an_optimum_is_the_limit() -> None:
    scores = np.array([[1.0, 0.0, -np.inf], [0.0, 1.0, 2.0]])
    assert fit_temperature(scores, [0, 2]) == 0.01  # all right: the sharper, the better
    assert fit_temperature(scores, [1, 0]) == 100.0  # all wrong: the flatter, the better
    assert 0.01 < fit_temperature(scores, [1, 2]) < 100


def test_report() -> None:
    test, validation = drawn(2000, seed=0, sharpness=2.5), drawn(600, seed=1, sharpness=2.5)
    report = calibrate(rows_of(*test), rows_of(*validation, first=5000), OptionScore.sum)
    assert (report.n, report.bins, report.n_validation, report.warning) == (2000, 15, 600, "")
    assert report.raw == calibration(*test)
    assert report.temperature == pytest.approx(2.5, rel=0.1)
    assert report.scaled is not None
    assert report.scaled == calibration(test[0] / report.temperature, test[1])
    assert report.scaled.ece < report.raw.ece / 2
    assert report.scaled.nll < report.raw.nll


def test_report_without_validation() -> None:
    report = calibrate(rows_of(*drawn(300, seed=0)), [], OptionScore.sum)
    assert (report.temperature, report.scaled, report.n_validation, report.warning) == (None, None, 0, "")


@pytest.mark.parametrize(("n", "usual"), [(300, 0.089), (500, 0.069)])
def test_ece_of_a_calibrated_model_stands_beside_it(n: int, usual: float) -> None:
    """Its mean is that over calibrated models drawn anew; few of these pass the 95% point, and none is called bad."""
    drawings = [calibration(*drawn(n, seed=seed)) for seed in range(60)]
    errors = np.array([found.ece for found in drawings])
    assert errors.mean() == pytest.approx(drawings[0].ece_chance, abs=0.006) == pytest.approx(usual, abs=0.012)
    assert sum(found.ece > found.ece_chance_hi for found in drawings) <= 8
    assert min(found.ece_p_value for found in drawings) > 0.001
    sharpened = calibration(4 * drawn(n, seed=0)[0], drawn(n, seed=0)[1])
    assert sharpened.ece > 2 * sharpened.ece_chance_hi and sharpened.ece_p_value < 0.001


def test_duplicates_do_not_lower_the_chance_level_of_ece() -> None:
    scores, gold = drawn(300, seed=0)
    once = calibration(scores, gold)
    twice = calibration(np.repeat(scores, 2, axis=0), np.repeat(gold, 2), clusters=np.arange(600) // 2)
    assert twice.ece_chance == pytest.approx(once.ece_chance, rel=0.03)


def test_few_questions_are_warned_of() -> None:
    test = rows_of(*drawn(299, seed=0))
    report = calibrate(test, [], OptionScore.sum)
    assert report.warning == "299 questions are few for calibration (fewer than 300): compare ECE with its chance level"
    gold = np.arange(40) % 4
    sure = rows_of(np.eye(4)[gold], gold, first=5000)
    assert calibrate(rows_of(*drawn(300, seed=0)), sure, OptionScore.sum).warning == (
        "the temperature was fitted on 40 questions (fewer than 300); "
        "no temperature is best: the likelihood grows up to the limit of the search, 0.01"
    )


def test_scores_by_token_are_used() -> None:
    rows = rows_of(*drawn(300, seed=0))
    assert calibrate(rows, [], OptionScore.per_token) == calibrate(rows, [], OptionScore.sum)  # one token each


def test_temperature_is_never_fitted_on_test_questions() -> None:
    rows = rows_of(*drawn(50, seed=0))
    with pytest.raises(RunError, match="1 of the validation questions are in the test"):
        calibrate(rows, rows[:1], OptionScore.sum)
    with pytest.raises(RunError, match="no questions"):
        calibrate([], rows, OptionScore.sum)

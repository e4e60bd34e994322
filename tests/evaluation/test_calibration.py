"""Calibration against scikit-learn and statsmodels, by hand, and on probabilities that are right by construction."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from statistics_support import answered, measured, question
from statsmodels.discrete.conditional_models import ConditionalLogit

from cyberlm.evaluation.metrics.calibration import (
    area_under_risk_coverage,
    calibration,
    calibration_measures,
    expected_calibration_error,
    fit_temperature,
)
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import Prediction
from cyberlm.tasks.task import Example

Drawn = tuple[np.ndarray, np.ndarray]


def drawn(n: int, seed: int, sharpness: float = 1.0) -> Drawn:
    """Scores (N, 4), and golds (N,) drawn with the probabilities softmax(scores / sharpness)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5 * sharpness, (n, 4))
    probs = softmax(scores / sharpness, axis=1)
    gold = (rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return scores, gold


def rows_of(scores: np.ndarray, gold: np.ndarray, first: int = 0) -> tuple[list[Example], list[Prediction]]:
    asked = [question(first + i, int(right)) for i, right in enumerate(gold)]
    return asked, [answered(q, int(row.argmax()), row.tolist()) for q, row in zip(asked, scores, strict=True)]


def calibration_of(test: Drawn, validation: Drawn | None = None, *overrides: str) -> dict[str, Metric]:
    further = {} if validation is None else {"validation": rows_of(*validation, first=5000)[1]}
    return measured(calibration, *rows_of(*test), *overrides, **further)


def test_ece_by_hand_and_without_options_that_do_not_exist() -> None:
    # Two bins: {0.4 wrong, 0.6 right} and {0.8 right, 1.0 wrong}: 2/4 |0.5 - 0.5| + 2/4 |0.5 - 0.9| = 0.2.
    assert expected_calibration_error([0.8, 0.4, 1.0, 0.6], [1, 0, 0, 1], bins=2) == pytest.approx(0.2)
    # More bins than questions: each is its own. 0.4 + 0.4 + 0.2 + 1.0 over 4.
    assert expected_calibration_error([0.8, 0.4, 1.0, 0.6], [1, 0, 0, 1]) == pytest.approx(0.5)
    # Equals share a bin; cut by place, {right, right}, {wrong, wrong} would give 0.5.
    assert expected_calibration_error([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], bins=2) == 0
    # options that do not exist weigh nothing
    scores = np.array([[1.0, 0.0, -np.inf], [0.0, 1.0, 2.0]])
    short, other = calibration_measures(scores[:1, :2], [0]), calibration_measures(scores[1:], [2])
    for name in ("option_nll", "brier"):
        assert calibration_measures(scores, [0, 2])[name] == pytest.approx((short[name] + other[name]) / 2)


def test_measures_equal_scikit_learn() -> None:
    scores, gold = drawn(1500, seed=1500, sharpness=1.7)
    probs = softmax(scores, axis=1)
    found = calibration_measures(scores, gold)
    share, mean = calibration_curve(probs.argmax(axis=1) == gold, probs.max(axis=1), n_bins=15, strategy="quantile")
    assert found["ece"] == pytest.approx(np.abs(share - mean).mean())  # bins of equally many
    expected = brier_score_loss(gold, probs, labels=[0, 1, 2, 3], scale_by_half=False)
    assert found["brier"] == pytest.approx(expected, abs=1e-12)
    assert found["option_nll"] == pytest.approx(log_loss(gold, probs), abs=1e-12)
    assert calibration_measures(scores[::-1], gold[::-1]) == pytest.approx(found)


def test_aurc_by_hand_and_over_all_orders_of_equals() -> None:
    # By confidence right, wrong, right, wrong: error rates 0, 1/2, 1/3, 1/2.
    found = area_under_risk_coverage([0.7, 0.9, 0.8, 0.6], [1, 1, 0, 0])
    assert found == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    confidence, correct = np.array([0.9, 0.7, 0.7, 0.7, 0.5, 0.5]), np.array([1, 1, 0, 0, 1, 0])
    areas = []
    for order in itertools.permutations(range(6)):
        if (np.diff(confidence[list(order)]) <= 0).all():
            errors = 1 - correct[list(order)]
            areas.append(np.mean([errors[: i + 1].mean() for i in range(6)]))
    assert len(areas) == 12
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_equals_conditional_logit(sharpness: float) -> None:
    # Choosing among K options with one coefficient on the score is the conditional logit; the coefficient is 1/T.
    scores, gold = drawn(400, seed=2, sharpness=sharpness)
    chosen = (np.arange(4) == gold[:, None]).astype(float).ravel()
    fit = ConditionalLogit(chosen, scores.reshape(-1, 1), groups=np.repeat(np.arange(400), 4)).fit(disp=0)
    temperature = fit_temperature(scores, gold)
    assert temperature == pytest.approx(1 / float(fit.params[0]), rel=1e-4) == pytest.approx(sharpness, rel=0.25)


def test_temperature_without_an_optimum_is_the_limit() -> None:
    scores = np.array([[1.0, 0.0, -np.inf], [0.0, 1.0, 2.0]])
    assert fit_temperature(scores, [0, 2]) == 0.01  # all right: the sharper, the better
    assert fit_temperature(scores, [1, 0]) == 100.0  # all wrong: the flatter, the better
    assert 0.01 < fit_temperature(scores, [1, 2]) < 100


def test_metrics_raw_and_scaled() -> None:
    test, validation = drawn(600, seed=0, sharpness=2.5), drawn(300, seed=1, sharpness=2.5)
    found = calibration_of(test, validation)
    raw = calibration_measures(*test)
    assert {name: found[name].value for name in raw} == raw
    temperature = found["temperature"]
    assert (temperature.value, temperature.n) == (pytest.approx(2.5, rel=0.2), 300)
    scaled = calibration_measures(test[0] / temperature.value, test[1])
    assert {name: found[f"{name}_scaled"].value for name in scaled} == scaled
    assert scaled["ece"] < raw["ece"] / 2 and scaled["option_nll"] < raw["option_nll"]
    assert found["ece"].value > 2 * found["ece_chance"].interval[1] and found["ece_p"].value < 0.001
    told = f"Confidence is badly calibrated: on average it is {raw['ece']:.2f} away from the share of right answers"
    assert found["bad_calibration"].note.startswith(told)
    assert not any(found[name].note for name in ("ece", "ece_scaled"))
    good = calibration_of(drawn(300, seed=0), None, "prompt=text", "evaluation.option_score=per_token")
    assert not {"bad_calibration", "ece_scaled", "temperature"} & good.keys()
    assert good["ece"].value == calibration_measures(*drawn(300, seed=0))["ece"]  # one token each


def test_few_questions_are_warned_of() -> None:
    gold = np.arange(40) % 4
    found = calibration_of(drawn(299, seed=0), (np.eye(4)[gold], gold))
    assert found["ece"].note == (
        "299 questions are few for calibration (fewer than 300): compare ECE with its chance level"
    )
    assert found["ece_scaled"].note == (
        "The temperature was fitted on 40 questions (fewer than 300). "
        "No temperature is best: the likelihood grows up to the limit of the search, 0.01"
    )

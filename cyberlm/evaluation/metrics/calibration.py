"""Whether the probabilities that a model gives to the options are right, raw and with one temperature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import rankdata

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.outcomes import FloatArray, IntArray, golds, option_scores
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError

BINS = 15
FEWEST_QUESTIONS = 300
"""Fewer make a bin smaller than 20 questions: its gap is then mostly chance, which adds to ECE."""
DRAWS = 2000
"""Of the law of ECE for a calibrated model."""
DRAWN_AT_ONCE = 100
TEMPERATURES = (0.01, 100.0)
"""Limits of the search."""


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens; lower is better in all four.

    Attributes:
        ece: Expected calibration error over bins of equal mass, in [0, 1].
        brier: Mean squared error of the probabilities, summed over options, in [0, 2].
        nll: Mean negative log-probability of the right option among the options (nats).
        aurc: Area under the risk-coverage curve, in [0, 1]: mean error rate when only the most confident are answered.
        ece_chance, ece_chance_hi: Mean and 95% point of `ece` for a calibrated model of the same confidence on as many
            questions: it is above 0 by chance alone.
        ece_p_value: How often that model shows at least this `ece`.
    """

    ece: float
    brier: float
    nll: float
    aurc: float
    ece_chance: float | None = None
    ece_chance_hi: float | None = None
    ece_p_value: float | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of one model on the test questions.

    Attributes:
        n: Questions.
        bins: Of `ece`.
        raw: Of softmax over the options' scores.
        temperature: Fitted on the validation questions; None where there are none.
        n_validation: How many there are.
        scaled: With the scores divided by the temperature; None where there is none.
        warning: Why the figures deserve less trust; empty where they do not.
    """

    n: int
    bins: int
    raw: Calibration
    temperature: float | None
    n_validation: int
    scaled: Calibration | None
    warning: str


def calibrate(
    test: Sequence[Prediction],
    validation: Sequence[Prediction],
    how: OptionScore,
    bins: int = BINS,
    clusters: ArrayLike | None = None,
) -> CalibrationReport:
    """Calibration of the option probabilities on the test questions, raw and scaled.

    Args:
        test: Predictions of the test questions.
        validation: The same model's predictions of other questions, which alone choose the temperature; may be empty.
        how: What `choice` was made with.
        bins: Of the expected calibration error.
        clusters: (N,) int, number of the near-duplicate cluster of each test question; None if all are independent.

    Raises:
        RunError: If there are no test questions, a score is not finite, or a validation question is a test question.
    """
    shared = {p.hash for p in test} & {p.hash for p in validation}
    if shared:
        raise RunError(
            "The temperature must not be fitted on test questions.",
            [Problem(f"{len(shared)} of the validation questions are in the test", "none")],
        )
    scores, gold = option_scores(test, how), golds(test)
    temperature = fit_temperature(option_scores(validation, how), golds(validation)) if validation else None
    return CalibrationReport(
        n=len(test),
        bins=bins,
        raw=calibration(scores, gold, bins, clusters),
        temperature=temperature,
        n_validation=len(validation),
        scaled=None if temperature is None else calibration(scores / temperature, gold, bins, clusters),
        warning=_warning(len(test), len(validation), temperature),
    )


def _warning(n: int, n_validation: int, temperature: float | None) -> str:
    warnings = []
    if n < FEWEST_QUESTIONS:
        warnings.append(
            f"{n} questions are few for calibration (fewer than {FEWEST_QUESTIONS}): compare ECE with its chance level"
        )
    if temperature is not None:
        if n_validation < FEWEST_QUESTIONS:
            warnings.append(f"the temperature was fitted on {n_validation} questions (fewer than {FEWEST_QUESTIONS})")
        if temperature in TEMPERATURES:
            warnings.append(
                f"no temperature is best: the likelihood grows up to the limit of the search, {temperature:g}"
            )
    return "; ".join(warnings)


def calibration(scores: ArrayLike, gold: ArrayLike, bins: int = BINS, clusters: ArrayLike | None = None) -> Calibration:
    """All four measures of softmax(scores).

    Args:
        scores: (N, K) float, -inf for options that a question does not have.
        gold: (N,) int, index of the right option.
        bins: Of the expected calibration error.
        clusters: (N,) int, number of each question's near-duplicate cluster; None if all are independent.
    """
    log_probs = log_softmax(np.asarray(scores, dtype=np.float64), axis=1)  # (N, K)
    probs, right = np.exp(log_probs), np.asarray(gold)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == right
    ece = expected_calibration_error(confidence, correct, bins)
    by_chance = calibrated_errors(confidence, bins, clusters)
    return Calibration(
        ece=ece,
        brier=brier(probs, right),
        nll=negative_log_likelihood(log_probs, right),
        aurc=area_under_risk_coverage(confidence, correct),
        ece_chance=float(by_chance.mean()),
        ece_chance_hi=float(np.quantile(by_chance, 0.95)),
        ece_p_value=float((1 + (by_chance >= ece).sum()) / (1 + by_chance.size)),
    )


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Σ |B|/n · |acc(B) - conf(B)| over bins B of equally many questions, by confidence.

    Naeini et al. 2015 (AAAI), with the equal-mass bins of Nguyen and O'Connor 2015 (EMNLP, aclanthology.org/D15-1182).
    Questions of equal confidence share a bin, so that their order does not matter.

    Args:
        confidence: (N,) float, probability of the chosen option.
        correct: (N,) bool.
        bins: With fewer questions than bins each question is its own.
    """
    values, hits = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    # Per bin, |B| (acc - conf) is the sum of (hit - confidence) over its questions.
    gaps = np.bincount(_bin_of(values, bins), weights=hits - values)
    return float(np.abs(gaps).sum() / values.size)


def _bin_of(values: FloatArray, bins: int) -> IntArray:
    """The bin of each confidence (N,)."""
    # rankdata counts from 1 and gives equals their mean rank.
    return np.minimum((rankdata(values) - 0.5) * bins / values.size, bins - 1).astype(np.int64)


def calibrated_errors(confidence: ArrayLike, bins: int = BINS, clusters: ArrayLike | None = None) -> FloatArray:
    """What `expected_calibration_error` is by chance where each answer is right with its confidence as probability.

    Args:
        confidence: (N,) float, probability of the chosen option.
        bins: As there.
        clusters: (N,) int; questions of one cluster, near-duplicates, are right or wrong by one random number.

    Returns:
        (DRAWS,) float64; seeded, so that the same confidence gives the same.
    """
    values = np.asarray(confidence, dtype=np.float64)
    _, members = np.unique(np.arange(values.size) if clusters is None else np.asarray(clusters), return_inverse=True)
    order = np.argsort(_bin_of(values, bins), kind="stable")
    _, starts = np.unique(_bin_of(values, bins)[order], return_index=True)
    rng, errors = np.random.default_rng(0), []
    for _ in range(DRAWS // DRAWN_AT_ONCE):
        right = rng.random((DRAWN_AT_ONCE, members.max() + 1))[:, members] < values  # (R, N)
        gaps = np.add.reduceat((right - values)[:, order], starts, axis=1)  # (R, bins)
        errors.append(np.abs(gaps).sum(axis=1) / values.size)
    return np.concatenate(errors)


def brier(probs: ArrayLike, gold: ArrayLike) -> float:
    """Mean over questions of Σ_k (p_k - [k is right])² (Brier 1950, Monthly Weather Review 78:1).

    Args:
        probs: (N, K) float, rows sum to 1.
        gold: (N,) int.
    """
    values = np.asarray(probs, dtype=np.float64)
    truth = np.eye(values.shape[1])[np.asarray(gold)]  # (N, K)
    return float(((values - truth) ** 2).sum(axis=1).mean())


def negative_log_likelihood(log_probs: ArrayLike, gold: ArrayLike) -> float:
    """Mean over questions of -log p of the right option (nats).

    Args:
        log_probs: (N, K) float, normalised over the options.
        gold: (N,) int.
    """
    values, right = np.asarray(log_probs, dtype=np.float64), np.asarray(gold)
    return float(-values[np.arange(right.size), right].mean())


def area_under_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean over i of the error rate of the i most confident answers.

    Geifman and El-Yaniv 2017 (arXiv 1705.08500) draw the risk-coverage curve, Geifman, Uziel and El-Yaniv 2019
    (arXiv 1805.08206) its area. Answers of equal confidence count as in the mean over all their orders.

    Args:
        confidence: (N,) float.
        correct: (N,) bool.
    """
    errors = 1.0 - np.asarray(correct, dtype=np.float64)
    _, tie = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)  # 0: most confident
    sizes = np.bincount(tie)
    rates = np.repeat(np.bincount(tie, weights=errors) / sizes, sizes)  # (N,), most confident first
    return float((np.cumsum(rates) / np.arange(1, errors.size + 1)).mean())


def fit_temperature(scores: ArrayLike, gold: ArrayLike) -> float:
    """The T that minimises the negative log-likelihood of softmax(scores / T) (Guo et al. 2017, arXiv 1706.04599).

    The likelihood is concave in 1/T; it is searched over log T within `TEMPERATURES`. It has no optimum where every
    question is answered right (or the scores point away from the right options): T is then the limit it runs to.
    T does not change which option is chosen.

    Args:
        scores: (N, K) float of the validation questions, -inf for options that a question does not have.
        gold: (N,) int.
    """
    values = np.asarray(scores, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(log_softmax(values / math.exp(log_temperature), axis=1), gold)

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    for limit in TEMPERATURES:
        if loss(math.log(limit)) <= found.fun:  # the search ends near a limit, never on it
            return limit
    return math.exp(float(found.x))

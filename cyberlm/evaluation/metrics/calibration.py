"""Calibration of the probabilities that a model gives to the options, raw and with one temperature."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import rankdata

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, chance_metric
from cyberlm.evaluation.predictions import Predictions, golds, has_candidates
from cyberlm.evaluation.scores import scores_of
from cyberlm.evaluation.statistics import Clusters, FloatArray, IntArray

Scores = ArrayLike
"""(N, K) float, -inf for options that a question does not have."""
Golds = ArrayLike
"""(N,) int, index of the right option."""
Confidence = ArrayLike
"""(N,) float, probability of the chosen option."""

BINS = 15
MIN_QUESTIONS = 300
"""Fewer make a bin smaller than 20 questions: its gap is then mostly chance, which adds to ECE."""
DRAWS = 2000
"""Of the law of ECE for a calibrated model."""
DRAWN_AT_ONCE = 100
TEMPERATURES = (0.01, 100.0)
"""Limits of the search."""
LABELS = {"option_nll": "right option's NLL, nats"}
BAD_ECE, BAD_P = 0.1, 0.001
"""Calibration is called bad where ECE is above the one, and a calibrated model shows as much more rarely than the
other."""


def calibration(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """ECE beside its level by chance, Brier score, NLL and AURC; raw and, with validation predictions, scaled.

    Nothing of free answers.
    """
    test, validation, n = predictions.test, predictions.validation, len(predictions.test)
    if not has_candidates(test):
        return
    scores, gold = scores_of(test, context.option_score).numpy(), golds(test)
    few = f"{n} questions are few for calibration (fewer than {MIN_QUESTIONS}): compare ECE with its chance level"
    measures = calibration_measures(scores, gold)
    ece = measures["ece"]
    by_chance = calibrated_errors(confidence_of(scores), clusters=context.clusters)
    p_value = float((1 + (by_chance >= ece).sum()) / (1 + by_chance.size))
    note, label = few if n < MIN_QUESTIONS else "", "calibration error (ECE)"
    yield from _metrics(measures, "", n, note, label)
    yield chance_metric("ece_chance", by_chance, n, label="  if calibrated (5-95%)")
    yield Metric("ece_p", p_value, n=n, place="detail")
    if validation:
        temperature = fit_temperature(scores_of(validation, context.option_score), golds(validation))
        yield Metric("temperature", temperature, n=len(validation), place="detail")
        scaled, note = calibration_measures(scores / temperature, gold), _warning(temperature, len(validation))
        yield from _metrics(scaled, "_scaled", n, note, label="  scaled on validation")
    if ece > BAD_ECE and p_value < BAD_P:
        sentence = (
            f"Confidence is badly calibrated: on average it is {ece:.2f} away from the share of right answers, "
            f"more than a calibrated model shows by chance on {n} questions"
        )
        yield Metric("bad_calibration", ece, n=n, note=sentence, place="note")


def _metrics(measures: dict[str, float], suffix: str, n: int, note: str, label: str) -> Iterator[Metric]:
    """ECE with a note and a label; the others in detail."""
    for name, value in measures.items():
        if name == "ece":
            yield Metric(f"ece{suffix}", value, n=n, note=note, label=label, format_spec=".3f", place="evidence")
        else:
            yield Metric(f"{name}{suffix}", value, n=n, label=LABELS.get(f"{name}{suffix}", ""), place="detail")


def _warning(temperature: float, n_validation: int) -> str:
    warnings = []
    if n_validation < MIN_QUESTIONS:
        warnings.append(f"The temperature was fitted on {n_validation} questions (fewer than {MIN_QUESTIONS})")
    if temperature in TEMPERATURES:
        warnings.append(f"No temperature is best: the likelihood grows up to the limit of the search, {temperature:g}")
    return ". ".join(warnings)


def calibration_measures(scores: Scores, gold: Golds) -> dict[str, float]:
    """Measures of softmax(scores), lower is better: `ece`, `brier`, `option_nll` and `aurc`.

    `brier` is the mean over questions of Σ_k (p_k - [k is right])², in [0, 2] (Brier 1950, Monthly Weather Review
    78:1); `option_nll` the mean of -log p of the right option among the options (nats).
    """
    log_probs, right = log_softmax(np.asarray(scores, dtype=np.float64), axis=1), np.asarray(gold)  # (N, K), (N,)
    probs = np.exp(log_probs)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == right
    truth = np.eye(probs.shape[1])[right]  # (N, K)
    return {
        "ece": expected_calibration_error(confidence, correct),
        "brier": float(((probs - truth) ** 2).sum(axis=1).mean()),
        "option_nll": float(option_nll(scores, right).mean()),
        "aurc": area_under_risk_coverage(confidence, correct),
    }


def confidence_of(scores: Scores) -> FloatArray:
    """Probability (N,) of the likeliest option under softmax(scores)."""
    return np.exp(log_softmax(np.asarray(scores, dtype=np.float64), axis=1)).max(axis=1)


def option_nll(scores: Scores, gold: Golds) -> FloatArray:
    """Negative log-probability (N,) of each right option among the options (nats)."""
    log_probs, right = log_softmax(np.asarray(scores, dtype=np.float64), axis=1), np.asarray(gold)
    return -log_probs[np.arange(right.size), right]


def equal_mass_bins(values: FloatArray, bins: int) -> IntArray:
    """Bin of each value (N,), from the smallest on, of equally many values each; equals share a bin."""
    # rankdata counts from 1 and gives equals their mean rank.
    return np.minimum((rankdata(values) - 0.5) * bins / values.size, bins - 1).astype(np.int64)


def expected_calibration_error(confidence: Confidence, correct: ArrayLike, bins: int = BINS) -> float:
    """Σ |B|/n · |acc(B) - conf(B)| over bins B of equally many questions, by confidence; in [0, 1].

    Naeini et al. 2015 (AAAI), with the equal-mass bins of Nguyen and O'Connor 2015 (EMNLP, aclanthology.org/D15-1182).
    Questions of equal confidence share a bin, so that their order does not matter;
    with fewer questions than bins each question is its own.
    """
    values, hits = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    # Per bin, |B| (acc - conf) is the sum of (hit - confidence) over its questions.
    gaps = np.bincount(equal_mass_bins(values, bins), weights=hits - values)
    return float(np.abs(gaps).sum() / values.size)


def calibrated_errors(confidence: Confidence, clusters: Clusters = None) -> FloatArray:
    """Draws (DRAWS,), seeded, of `expected_calibration_error` where each answer is right with its confidence as chance.

    Questions of one cluster are right or wrong by one random number.
    """
    values = np.asarray(confidence, dtype=np.float64)
    _, members = np.unique(np.arange(values.size) if clusters is None else np.asarray(clusters), return_inverse=True)
    order = np.argsort(equal_mass_bins(values, BINS), kind="stable")
    _, starts = np.unique(equal_mass_bins(values, BINS)[order], return_index=True)
    rng, errors = np.random.default_rng(0), []
    for _ in range(DRAWS // DRAWN_AT_ONCE):
        right = rng.random((DRAWN_AT_ONCE, members.max() + 1))[:, members] < values  # (R, N)
        gaps = np.add.reduceat((right - values)[:, order], starts, axis=1)  # (R, bins)
        errors.append(np.abs(gaps).sum(axis=1) / values.size)
    return np.concatenate(errors)


def area_under_risk_coverage(confidence: Confidence, correct: ArrayLike) -> float:
    """Mean over i of the error rate of the i most confident answers, in [0, 1].

    Geifman and El-Yaniv 2017 (arXiv 1705.08500) draw the risk-coverage curve, Geifman, Uziel and El-Yaniv 2019
    (arXiv 1805.08206) its area. Answers of equal confidence count as in the mean over all their orders.
    """
    errors = 1.0 - np.asarray(correct, dtype=np.float64)
    _, tie = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)  # 0: most confident
    sizes = np.bincount(tie)
    rates = np.repeat(np.bincount(tie, weights=errors) / sizes, sizes)  # (N,), most confident first
    return float((np.cumsum(rates) / np.arange(1, errors.size + 1)).mean())


def fit_temperature(scores: Scores, gold: Golds) -> float:
    """Temperature T that minimises the negative log-likelihood of softmax(scores / T).

    Guo et al. 2017 (arXiv 1706.04599). The likelihood is concave in 1/T; it is searched over log T within
    `TEMPERATURES`. It has no optimum where every question is answered right (or the scores point away from the right
    options): T is then the limit it runs to. T does not change which option is chosen.
    """
    values = np.asarray(scores, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return float(option_nll(values / math.exp(log_temperature), gold).mean())

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    for limit in TEMPERATURES:
        if loss(math.log(limit)) <= found.fun:  # the search ends near a limit, never on it
            return limit
    return math.exp(float(found.x))

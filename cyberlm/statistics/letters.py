"""Whether a model prefers some letters to others, and what is left of accuracy without the preference.

Measures and method (PriDe) of Zheng et al. 2024, "Large Language Models Are Not Robust Multiple Choice Selectors"
(ICLR; arXiv 2309.03882). They are of the letter protocol, where an option's log-probability is its letter's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import chisquare

from cyberlm.errors import Problem, RunError
from cyberlm.records import LETTERS, Prediction
from cyberlm.statistics.outcomes import FloatArray, IntArray, choices, golds
from cyberlm.statistics.permutations import check_rotations


@dataclass(frozen=True)
class LetterBias:
    """How answers fall on the letters.

    Attributes:
        recall: Of the questions with each gold letter, the share answered right; letters that are never gold are left
            out. A completion that names no option is wrong.
        rstd: Standard deviation of these recalls (of a population, as the paper's code has it), in [0, 0.5]; 0 without
            bias. None where fewer than two letters are ever gold.
        gold: How often each letter is right.
        predicted: How often each letter was chosen.
        chi_square: Of the predicted against the gold counts; None where a letter that is never gold was chosen, or
            fewer than two letters are ever gold.
        p_value: Of `chi_square`, one degree of freedom fewer than there are gold letters. Answers that are right make
            the counts alike, so that an accurate model's bias is found later than a guessing one's.
    """

    recall: dict[str, float]
    rstd: float | None
    gold: dict[str, int]
    predicted: dict[str, int]
    chi_square: float | None
    p_value: float | None


@dataclass(frozen=True)
class Debiasing:
    """Accuracy without the preference for letters, by PriDe, on the questions that the prior was not estimated from.

    Attributes:
        prior: Probability of each letter before the model has read the options; sums to 1.
        n_sample: Questions that the prior was estimated from.
        n: Questions scored: all but the sample.
        n_unchanged: Of these, those with another number of options than the sample has: the prior says nothing of them.
        acc: Accuracy on the n questions as they were answered.
        acc_debiased: Accuracy on the same with the prior taken out.
        rstd, rstd_debiased: Of the same two.
    """

    prior: dict[str, float]
    n_sample: int
    n: int
    n_unchanged: int
    acc: float
    acc_debiased: float
    rstd: float | None
    rstd_debiased: float | None


def letter_bias(predictions: Sequence[Prediction], generated: bool = False) -> LetterBias:
    """Recall of each gold letter, its spread RStd, and predicted against gold letters.

    Args:
        predictions: One for each question.
        generated: Whether to judge the generated answers instead of the choice by likelihood.

    Raises:
        RunError: If there are no predictions, or completions are asked for and some predictions hold none.
    """
    chosen, gold = choices(predictions, generated), golds(predictions)
    width = max(prediction.n_options for prediction in predictions)
    asked = np.bincount(gold, minlength=width)  # (K,)
    given = np.bincount(chosen[chosen >= 0], minlength=width)  # (K,)
    hits = np.bincount(gold[chosen == gold], minlength=width)  # (K,)
    recall = {LETTERS[k]: float(hits[k] / asked[k]) for k in np.flatnonzero(asked)}
    statistic, p_value = _chi_square(given, asked)
    return LetterBias(
        recall=recall,
        rstd=float(np.std(list(recall.values()))) if len(recall) > 1 else None,
        gold=dict(zip(LETTERS, asked.tolist(), strict=False)),
        predicted=dict(zip(LETTERS, given.tolist(), strict=False)),
        chi_square=statistic,
        p_value=p_value,
    )


def _chi_square(given: IntArray, asked: IntArray) -> tuple[float | None, float | None]:
    """Pearson's goodness of fit of the predicted letters to the gold ones, and its p-value.

    Args:
        given: (K,) how often each letter was chosen.
        asked: (K,) how often each is right; brought to the same total, since some completions name no option.
    """
    ever = asked > 0
    if ever.sum() < 2 or given[~ever].any() or not given.any():
        return None, None
    result = chisquare(given[ever], asked[ever] * (given.sum() / asked.sum()))
    return float(result.statistic), float(result.pvalue)


def letter_prior(log_probs: ArrayLike) -> FloatArray:
    """PriDe's prior: how probable each letter is to the model whatever stands behind it.

    Over the cyclic permutations of a question every option stands once behind every letter, so that what options have
    to say averages out: softmax of the mean over permutations of log p(letter); then the mean over questions.

    Args:
        log_probs: (N, K, K) float, log-probability of [question, permutation, letter]; normalised or not.

    Returns:
        (K,) float64, sums to 1.
    """
    means = np.asarray(log_probs, dtype=np.float64).mean(axis=1)  # (N, K)
    return softmax(means, axis=1).mean(axis=0)


def debiased_choices(log_probs: ArrayLike, prior: ArrayLike) -> IntArray:
    """Options chosen with the prior taken out: argmax of log p - log prior; the first of equals.

    Args:
        log_probs: (N, K) float, log-probability of each letter.
        prior: (K,) float.

    Returns:
        (N,) int64.
    """
    # A prior that has underflowed to 0 must not become an infinite advantage.
    log_prior = np.log(np.maximum(np.asarray(prior, dtype=np.float64), np.finfo(np.float64).tiny))
    return (np.asarray(log_probs, dtype=np.float64) - log_prior).argmax(axis=1)


def debias(sample: Sequence[Sequence[Prediction]], predictions: Sequence[Prediction]) -> Debiasing:
    """Estimates the prior on a sample and takes it out of all other answers.

    Args:
        sample: For each question of `permutations.prior_sample`, its K predictions in the order of
            `permutations.rotations`; all with the same K.
        predictions: Of all questions, unrotated. Those of the sample are left out: held out, its questions cannot
            improve their own score.

    Raises:
        RunError: If the sample is empty, holds questions of different K, or leaves no question to score.
    """
    if not sample:
        raise RunError("The prior of the letters cannot be estimated.", [Problem("no question can be permuted")])
    check_rotations(sample)
    sizes = sorted({len(group) for group in sample})
    if len(sizes) > 1:
        raise RunError(
            "The prior of the letters cannot be estimated.",
            [Problem(f"numbers of options in the sample: {', '.join(map(str, sizes))}", allowed="one number")],
        )
    prior = letter_prior([[p.option_logprobs for p in group] for group in sample])
    used = {group[0].hash for group in sample}
    rest = [p for p in predictions if p.hash not in used]
    if not rest:
        raise RunError("There are no questions to score.", [Problem("the prior was estimated from all of them")])
    changed = without_prior(rest, prior)
    before, after = letter_bias(rest), letter_bias(changed)
    return Debiasing(
        prior=dict(zip(LETTERS, prior.tolist(), strict=False)),
        n_sample=len(sample),
        n=len(rest),
        n_unchanged=sum(p.n_options != sizes[0] for p in rest),
        acc=sum(p.correct for p in rest) / len(rest),
        acc_debiased=sum(p.correct for p in changed) / len(rest),
        rstd=before.rstd,
        rstd_debiased=after.rstd,
    )


def without_prior(predictions: Sequence[Prediction], prior: ArrayLike) -> list[Prediction]:
    """The same predictions with the debiased choice, ready for every other statistic.

    Args:
        predictions: One for each question.
        prior: (K,); predictions of questions with another number of options stay as they are.
    """
    count = len(np.asarray(prior))
    return [
        replace(p, choice=int(debiased_choices([p.option_logprobs], prior)[0])) if p.n_options == count else p
        for p in predictions
    ]

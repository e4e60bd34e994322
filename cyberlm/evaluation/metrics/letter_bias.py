"""Whether a model prefers some letters to others, and what is left of accuracy without the preference.

Measures and method (PriDe) of Zheng et al. 2024, "Large Language Models Are Not Robust Multiple Choice Selectors"
(ICLR; arXiv 2309.03882). They are of the letter protocol, where an option's log-probability is its letter's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import chi2

from cyberlm.evaluation.intervals import effective_questions
from cyberlm.evaluation.metrics.rotations import check_rotations
from cyberlm.evaluation.outcomes import FloatArray, IntArray, choices, golds
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import LETTERS

DRAWS = 10_000
"""Of the law of RStd without bias."""


@dataclass(frozen=True)
class LetterBias:
    """How answers fall on the letters.

    Attributes:
        recall: Of the questions with each gold letter, the share answered right; letters that are never gold are left
            out. A completion that names no option is wrong.
        rstd: Standard deviation of these recalls (of a population, as the paper's code has it), in [0, 0.5]. None where
            fewer than two letters are ever gold.
        gold: How often each letter is right.
        predicted: How often each letter was chosen.
        chi_square: Of the chosen letters against those that an unbiased model of the same accuracy would choose, see
            `preference_test`; None where nothing was chosen, or all answers are right.
        p_value: Of `chi_square`.
        rstd_chance, rstd_chance_hi: Mean and 95% point of `rstd` for an unbiased model of the same accuracy on as many
            questions of each letter: with few, chance alone makes the recalls differ.
    """

    recall: dict[str, float]
    rstd: float | None
    gold: dict[str, int]
    predicted: dict[str, int]
    chi_square: float | None
    p_value: float | None
    rstd_chance: float | None = None
    rstd_chance_hi: float | None = None


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


def letter_bias(
    predictions: Sequence[Prediction], generated: bool = False, clusters: ArrayLike | None = None
) -> LetterBias:
    """Recall of each gold letter, its spread RStd, and chosen letters against those of an unbiased model.

    Args:
        predictions: One for each question.
        generated: Whether to judge the generated answers instead of the choice by likelihood.
        clusters: (N,) int, number of the near-duplicate cluster of each question; None if all are independent.

    Raises:
        RunError: If there are no predictions, or completions are asked for and some predictions hold none.
    """
    chosen, gold = choices(predictions, generated), golds(predictions)
    options = np.array([prediction.n_options for prediction in predictions])
    numbers = np.arange(gold.size) if clusters is None else np.asarray(clusters)
    width = int(options.max())
    asked = np.bincount(gold, minlength=width)  # (K,)
    hits = np.bincount(gold[chosen == gold], minlength=width)  # (K,)
    recall = {LETTERS[k]: float(hits[k] / asked[k]) for k in np.flatnonzero(asked)}
    given = chosen >= 0
    statistic, p_value = preference_test(chosen[given], gold[given], options[given], numbers[given])
    several = len(recall) > 1
    share = effective_questions(chosen == gold, numbers) / gold.size
    mean, high = _rstd_by_chance(asked[asked > 0] * share, float((chosen == gold).mean())) if several else (None, None)
    return LetterBias(
        recall=recall,
        rstd=float(np.std(list(recall.values()))) if several else None,
        gold=dict(zip(LETTERS, asked.tolist(), strict=False)),
        predicted=dict(zip(LETTERS, np.bincount(chosen[given], minlength=width).tolist(), strict=False)),
        chi_square=statistic,
        p_value=p_value,
        rstd_chance=mean,
        rstd_chance_hi=high,
    )


def preference_test(
    chosen: IntArray, gold: IntArray, n_options: IntArray, clusters: ArrayLike
) -> tuple[float | None, float | None]:
    """Whether some letters are chosen more often than by a model without preference: statistic and p-value.

    Stratified by gold letter: a model without preference, right in a share a of the questions, chooses the gold letter
    with probability a and each of the K - 1 others with (1 - a)/(K - 1). D is how often each letter was chosen minus
    how often that model would, a being the accuracy itself (for each number of options); the statistic is D' V⁻¹ D with
    the variance V that D has under that model, of χ² law with as many degrees of freedom as V has dimensions (K - 1).
    A variance estimated from the answers (Wald) would vanish for a model that always says A. Near-duplicates widen V
    by their design effect. Right answers follow the key whatever the preference: predicted against gold counts would
    call them evidence of none.

    Args:
        chosen, gold, n_options: (N,) letters as indices, and options of each question.
        clusters: (N,) int, number of each question's near-duplicate cluster.

    Returns:
        None twice where no answer is wrong, none was given, or none could be otherwise (two options, always wrong).
    """
    if not chosen.size or (chosen == gold).all():
        return None, None
    width = int(n_options.max())
    variance = np.zeros((width, width))
    residuals = np.zeros((chosen.size, width))
    for count in np.unique(n_options):
        among = n_options == count
        accuracy = (chosen[among] == gold[among]).mean()
        shares = np.bincount(gold[among], minlength=width)[:count] / among.sum()  # (K,)
        followed = shares - (1 - shares) / (count - 1)  # (K,): what one more right answer adds to each letter's count
        for letter in np.flatnonzero(shares):
            stratum = among & (gold == letter)
            is_gold = np.arange(count) == letter
            chances = np.where(is_gold, accuracy, (1 - accuracy) / (count - 1))  # (K,)
            added = np.eye(count) - np.outer(is_gold, followed)  # (K, K): by chosen letter, what it adds to D
            about = added - chances @ added
            variance[:count, :count] += stratum.sum() * (about.T * chances) @ about
            residuals[stratum, :count] = about[chosen[stratum]]
    if not residuals.any():
        return None, None
    excess = residuals.sum(axis=0)
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((members.max() + 1, width))
    np.add.at(sums, members, residuals)
    variance *= max(1.0, (sums**2).sum() / (residuals**2).sum())
    statistic = float(excess @ np.linalg.pinv(variance) @ excess)
    return statistic, float(chi2.sf(statistic, np.linalg.matrix_rank(variance)))


def _rstd_by_chance(asked: ArrayLike, accuracy: float) -> tuple[float, float]:
    """Mean and 95% point of RStd where every letter's recall is the accuracy, drawn by binomial laws.

    Args:
        asked: (K,) questions of each gold letter.
        accuracy: Of the model.
    """
    counts = np.maximum(np.rint(asked), 1).astype(np.int64)
    recalls = np.random.default_rng(0).binomial(counts, accuracy, (DRAWS, counts.size)) / counts
    spread = recalls.std(axis=1)  # (DRAWS,)
    return float(spread.mean()), float(np.quantile(spread, 0.95))


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

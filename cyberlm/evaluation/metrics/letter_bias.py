"""Preference of a model for some letters, and accuracy without the preference.

Measures and method (PriDe) of Zheng et al. 2024, "Large Language Models Are Not Robust Multiple Choice Selectors"
(ICLR; arXiv 2309.03882). They are of the letter protocol, where an option's log-probability is its letter's.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import chi2

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, chance_metric, share_metric
from cyberlm.evaluation.metrics.rotations import prior_sample
from cyberlm.evaluation.predictions import Predictions, choices, golds
from cyberlm.evaluation.statistics import BoolArray, Clusters, FloatArray, IntArray, cluster_sums, effective_questions
from cyberlm.tasks.task import LETTERS, option_name

DRAWS = 10_000
"""Of the law of RStd without bias."""


def letter_bias(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Recall of each gold letter, its spread RStd beside its level by chance, and a test for a preference."""
    chosen, gold, n = choices(predictions.test), golds(predictions.test), len(predictions.test)
    options = np.array([row.n_options for row in predictions.test])
    hits, letters = chosen == gold, np.unique(gold).tolist()
    weakest = min(letters, key=lambda letter: hits[gold == letter].mean())  # the first of equals
    note, label = f"Recall is lowest where {option_name(weakest)} is right", "letters: lowest recall"
    yield share_metric("lowest_recall", hits[gold == weakest], note=note, label=label, place="evidence")
    rstd = letter_rstd(hits, gold)
    yield Metric("letter_rstd", rstd, n=n, label="letters: RStd", format_spec=".3f", place="evidence")
    if rstd is not None:
        independent = effective_questions(hits, context.clusters) / n
        asked = np.bincount(gold)
        by_chance = rstd_by_chance(asked[asked > 0] * independent, float(hits.mean()))
        yield chance_metric("letter_rstd_chance", by_chance, n, label="  without preference (5-95%)")
    statistic, p_value = preference_test(chosen, gold, options, context.clusters)
    note = "No answer could show a preference for letters" if p_value is None else ""
    label = "letters: preference, p"
    yield Metric("letter_preference_p", p_value, n=n, note=note, label=label, format_spec=".2g", place="evidence")
    yield Metric("letter_preference_chi2", statistic, n=n, place="detail")
    for letter in letters:
        yield share_metric(f"recall_{option_name(letter)}", hits[gold == letter], place="detail")
    for letter in range(int(options.max())):
        yield share_metric(f"chosen_{option_name(letter)}", chosen == letter, place="detail")


def debiased(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy without the letters' prior, by PriDe, on the questions that the prior was not estimated from.

    Questions with another number of options than those of the sample stay as they were answered.
    """
    wanted = context.config.evaluation
    hashes = {example.hash for example in prior_sample(context.questions, wanted.prior_share, context.config.seed)}
    sample = [group for group in predictions.rotated if group[0].hash in hashes]
    if not sample or not context.asks_letters:
        return
    prior = letter_prior([[row.option_logprobs for row in group] for group in sample])
    rest = [row for row in predictions.test if row.hash not in hashes]
    label = "without the letters' prior"
    if not rest:
        note = "The letters' prior was estimated from all questions: none is left to score"
        yield Metric("accuracy_debiased", None, note=note, label=label, format_spec=".1%", place="evidence")
        return
    before, gold = choices(rest), golds(rest)
    after = before.copy()
    for i, row in enumerate(rest):
        if row.n_options == prior.size:
            after[i] = debiased_choices([row.option_logprobs], prior)[0]
    yield share_metric("accuracy_debiased", after == gold, label=label, place="evidence")
    yield share_metric("accuracy_before_debiasing", before == gold, place="detail")
    for name, chosen in (("letter_rstd_before_debiasing", before), ("letter_rstd_debiased", after)):
        yield Metric(name, letter_rstd(chosen == gold, gold), n=gold.size, place="detail")
    for letter, share in zip(LETTERS, prior.tolist(), strict=False):
        yield Metric(f"prior_{letter}", share, n=len(sample), place="detail")


def letter_rstd(hits: BoolArray, gold: IntArray) -> float | None:
    """Standard deviation of gold letters' recalls (a population's, as in the paper's code); None of a single letter."""
    recalls = [hits[gold == letter].mean() for letter in np.unique(gold)]
    return float(np.std(recalls)) if len(recalls) > 1 else None


def rstd_by_chance(asked: ArrayLike, accuracy: float) -> FloatArray:
    """Draws (DRAWS,) of RStd where the recall of K letters, asked (K,) times, is the accuracy, by binomial laws."""
    counts = np.maximum(np.rint(asked), 1).astype(np.int64)
    recalls = np.random.default_rng(0).binomial(counts, accuracy, (DRAWS, counts.size)) / counts
    return recalls.std(axis=1)


def preference_test(
    chosen: IntArray, gold: IntArray, n_options: IntArray, clusters: Clusters
) -> tuple[float | None, float | None]:
    """χ² test of whether some letters are chosen more often than without a preference: statistic and p-value.

    Stratified by gold letter: a model without preference, right in a share a of the questions, chooses the gold letter
    with probability a and each of the K - 1 others with (1 - a)/(K - 1). D is how often each letter was chosen minus
    how often that model would, a being the accuracy itself (for each number of options); the statistic is D' V⁻¹ D with
    the variance V that D has under that model, of χ² law with as many degrees of freedom as V has dimensions (K - 1).
    A variance estimated from the answers (Wald) would vanish for a model that always says A. Near-duplicates widen V
    by their design effect. Right answers follow the key whatever the preference: predicted against gold counts would
    call them evidence of none.

    Args:
        chosen, gold, n_options: (N,) letters as indices, and options of each question.

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
    sums = cluster_sums(residuals, clusters)  # (G, K)
    variance *= max(1.0, (sums**2).sum() / (residuals**2).sum())
    statistic = float(excess @ np.linalg.pinv(variance) @ excess)
    return statistic, float(chi2.sf(statistic, np.linalg.matrix_rank(variance)))


def letter_prior(log_probs: ArrayLike) -> FloatArray:
    """PriDe's prior (K,): probability of each letter to the model whatever its option.

    Over the cyclic permutations of a question every option has every letter once, so that the options' own
    log-probabilities average out: softmax of the mean over permutations of log p(letter); then the mean over questions.

    Args:
        log_probs: (N, K, K) float, log-probability of [question, permutation, letter]; normalised or not.
    """
    means = np.asarray(log_probs, dtype=np.float64).mean(axis=1)  # (N, K)
    return softmax(means, axis=1).mean(axis=0)


def debiased_choices(log_probs: ArrayLike, prior: ArrayLike) -> IntArray:
    """Options (N,) chosen with the prior (K,) taken out of letters' log-probabilities (N, K); the first of equals."""
    # A prior that has underflowed to 0 must not become an infinite advantage.
    log_prior = np.log(np.maximum(np.asarray(prior, dtype=np.float64), np.finfo(np.float64).tiny))
    return (np.asarray(log_probs, dtype=np.float64) - log_prior).argmax(axis=1)

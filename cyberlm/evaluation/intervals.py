"""Accuracy with a 95% interval that knows of near-duplicates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.shares import wilson
from cyberlm.runtime.errors import Problem, RunError


@dataclass(frozen=True)
class AccuracyInterval:
    """Share of questions answered right, with its 95% interval.

    Attributes:
        acc: Share answered right.
        n: Questions asked.
        n_eff: How many independent questions carry as much information; `n` where there are no near-duplicates.
        ci_lo, ci_hi: Wilson interval of `acc` on `n_eff` questions.
    """

    acc: float
    n: int
    n_eff: float
    ci_lo: float
    ci_hi: float


def accuracy_interval(correct: ArrayLike, clusters: ArrayLike | None = None) -> AccuracyInterval:
    """Accuracy with its 95% interval: Wilson on the effective number of questions.

    Args:
        correct: (N,) bool, whether each question was answered right.
        clusters: (N,) int, number of the near-duplicate cluster of each question; None if all are independent.

    Raises:
        RunError: If there are no questions.
    """
    values = np.asarray(correct, dtype=bool)
    if not values.size:
        raise RunError("There are no questions to score.", [Problem("a share of 0 questions is undefined")])
    share = float(values.mean())
    n_eff = float(values.size) if clusters is None else effective_questions(values, clusters)
    return AccuracyInterval(share, values.size, n_eff, *wilson(share, n_eff))


def clustered_variance(correct: ArrayLike, clusters: ArrayLike) -> float:
    """Variance of accuracy where questions of one cluster may be answered alike.

    v = (1/n²) Σ_c (Σ_{i in c} (x_i - p))²: the cluster-robust variance of a mean (Liang and Zeger 1986, Biometrika
    73:13, doi 10.1093/biomet/73.1.13; for evaluations Miller 2024, arXiv 2411.00640). Without a correction
    for few clusters, so that clusters of one question each give p(1-p)/n exactly.

    Args:
        correct: (N,) bool.
        clusters: (N,) int.
    """
    values = np.asarray(correct, dtype=np.float64)
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(members, weights=values - values.mean())  # (clusters,)
    return float((sums**2).sum() / values.size**2)


def effective_questions(correct: ArrayLike, clusters: ArrayLike) -> float:
    """How many independent questions would give accuracy the same variance: p(1-p)/v, in (0, n].

    - At most n. The estimate passes n only where near-duplicates happen to be answered unlike one another; that is
      noise of v, and a duplicate never tells more than a fresh question.
    - Where all answers are right, or all wrong, p(1-p)/v is 0/0. Then every cluster is answered of one piece, and
      each counts once: the number of clusters.
    - One cluster alone has v = 0 whatever its answers, for nothing varies between clusters: it counts as one question.

    Args:
        correct: (N,) bool.
        clusters: (N,) int.
    """
    values = np.asarray(correct, dtype=bool)
    count = np.unique(np.asarray(clusters)).size
    share = float(values.mean())
    if count in (1, values.size) or share in (0.0, 1.0):
        return float(count)
    variance = clustered_variance(values, clusters)
    binomial = share * (1 - share)
    return float(values.size) if variance * values.size <= binomial else binomial / variance

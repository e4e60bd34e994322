"""Power of a study: the margin that seeds and questions support, and how many of them a margin needs."""

import math
from bisect import bisect_left
from dataclasses import dataclass

from scipy.special import nctdtrinc
from scipy.stats import t as student

from cyberlm.evaluation.seeds import seed_variances
from cyberlm.evaluation.statistics import Clusters, Estimate, FloatArray, design_effect

LEVELS_AND_POWERS = {"non-inferior": (0.025, 0.90), "equivalent": (0.05, 0.80)}
"""By claim: level of each one-sided test, and chance that the claim is made where the methods are equally good."""
MAX_QUESTIONS = 1_000_000
"""Beyond these no study is planned."""


@dataclass(frozen=True)
class Variability:
    """Variation of two methods' outcomes, assumed or measured, from which power follows.

    Attributes:
        discordance: Share of the questions that a run of each answers unlike: one right, one wrong. Of a score, the
            mean squared difference.
        seed_discordance: The same of two runs of one method with different seeds.
        seed_sd: Standard deviation of a method's mean over seeds, on the same questions.
        effect: Design effect of near-duplicate questions, at least 1.
    """

    discordance: float
    seed_discordance: float = 0.0
    seed_sd: float = 0.0
    effect: float = 1.0


def measured_variability(first: FloatArray, second: FloatArray, clusters: Clusters = None) -> Variability:
    """Variability of two methods' outcomes (S, Q); with one run each, seeds are left out."""
    means = first.mean(axis=0), second.mean(axis=0)
    between = float(((first**2).mean(axis=0) + (second**2).mean(axis=0) - 2 * means[0] * means[1]).mean())
    within = squares = 0.0
    methods = [rows for rows in (first, second) if len(rows) > 1]
    for rows in methods:
        of_seeds, interaction = seed_variances(rows, clusters)
        squares += max(0.0, of_seeds - interaction) * len(rows) / len(methods)
        within += 2 * float(rows.var(axis=0, ddof=1).mean()) / len(methods)
    return Variability(between, within, math.sqrt(squares), design_effect(means[1] - means[0], clusters))


def planned_error(questions: int, seeds: int, variability: Variability) -> tuple[float, float]:
    """Standard error, and its degrees of freedom, that the difference of two methods is going to have.

    V_q = effect (discordance - seed_discordance (1 - 1/S)) / Q and, with several seeds, 2 seed_sd²/S added, as in
    `seeds.estimate`. With one seed the error is of questions alone. The degrees of freedom are those that the analysis
    is going to find: V² and V_s² at what their estimates are on average, for V_s² (S + 1)/(S - 1) times the true one.
    """
    noise = variability.effect * variability.seed_discordance / questions
    share = variability.effect * variability.discordance
    of_questions = max(share / questions - noise * (1 - 1 / seeds), noise / seeds, questions**-2.0)
    df = max(1.0, min(questions - 1.0, 2 * questions * variability.discordance))  # kurtosis 1/discordance
    if seeds == 1:
        return math.sqrt(of_questions), df
    of_seeds = variability.seed_sd**2 / seeds  # of each method
    spread = 2 * (of_seeds + noise / (2 * seeds)) ** 2 / (seeds - 1)
    variance = of_questions + 2 * of_seeds
    found = (variance**2 + 2 * spread) / (of_questions**2 / df + spread * (seeds + 1) / (seeds - 1))
    return math.sqrt(variance), found


def powered_margin(difference: Estimate, claim: str) -> float:
    """Smallest margin for which a claim is made with its power where the methods are equally good.

    One-sided t-tests, by the noncentral t (Phillips 1990, doi 10.1007/BF01063556); of the two of an equivalence test
    each is passed as often as the other, so that each needs (1 + power) / 2.
    """
    level, power = LEVELS_AND_POWERS[claim]
    each = power if claim == "non-inferior" else (1 + power) / 2
    df = difference.df
    return difference.error * float(nctdtrinc(df, 1 - each, student.ppf(1 - level, df)))


def supported_margin(questions: int, seeds: int, variability: Variability, claim: str = "non-inferior") -> float:
    """Smallest margin for which so many questions and seeds a method make a claim with its power."""
    return powered_margin(Estimate(0.0, *planned_error(questions, seeds, variability)), claim)


def needed_questions(margin: float, seeds: int, variability: Variability) -> int | None:
    """Fewest questions that support a margin of non-inferiority; None where the seeds vary too much for any number."""
    numbers = range(10, MAX_QUESTIONS + 1)
    place = bisect_left(numbers, True, key=lambda n: supported_margin(n, seeds, variability) <= margin)
    return numbers[place] if place < len(numbers) else None

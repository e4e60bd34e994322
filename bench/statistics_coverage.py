"""Coverage of intervals and size of tests (cyberlm.evaluation), by simulation.

Each simulation draws many data sets whose truth is known, and counts how often an interval covers it, or how often a
test rejects it. Its rate is held against the rates that are right, with three standard errors of the simulation itself
to spare; the exit status is 1 where one is outside. Seeded by the simulation's name: each can be run alone.

python bench/statistics_coverage.py                      # all, about seven minutes on one slow core
python bench/statistics_coverage.py --only accuracy --share 0.1
"""

import argparse
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import measure
import numpy as np
from scipy.stats import norm

from cyberlm.evaluation.metrics.baselines import Baseline, skill_limits
from cyberlm.evaluation.metrics.letter_bias import preference_test
from cyberlm.evaluation.metrics.metric import share_metric
from cyberlm.evaluation.power import LEVELS_AND_POWERS, measured_variability, supported_margin
from cyberlm.evaluation.seeds import bootstrap_means, estimate, method_mean
from cyberlm.evaluation.statistics import detectable_difference, difference_interval, mcnemar, mean_estimate
from cyberlm.evaluation.study_analysis import EQUIVALENT, NON_INFERIOR, SUPERIOR, analyse, tost


@dataclass(frozen=True)
class Rate:
    """How often something happened in a simulation.

    Attributes:
        case: What was drawn.
        hits: How often the interval covered the truth, or the test rejected.
        repeats: Data sets drawn.
        nominal: What the interval or the test claims.
        lowest, highest: Rates that are right: a test may reject less often than it claims, an interval of few
            questions may cover more.
    """

    case: str
    hits: int
    repeats: int
    nominal: float
    lowest: float
    highest: float

    @property
    def value(self) -> float:
        return self.hits / self.repeats

    @property
    def error(self) -> float:
        """Standard error of the simulation, where the nominal rate is the true one."""
        return math.sqrt(self.nominal * (1 - self.nominal) / self.repeats)

    @property
    def right(self) -> bool:
        return self.lowest - 3 * self.error <= self.value <= self.highest + 3 * self.error


Simulation = Callable[[np.random.Generator, float], list[Rate]]
SIMULATIONS: dict[str, Simulation] = {}
"""By name; each takes a generator and the share of its usual repeats that is to be drawn."""


def simulation(name: str) -> Callable[[Simulation], Simulation]:
    """Registers a simulation under the name that `--only` takes."""

    def register(function: Simulation) -> Simulation:
        SIMULATIONS[name] = function
        return function

    return register


def run(name: str, share: float = 1.0) -> list[Rate]:
    """The rates of one simulation; the same name and share always give the same."""
    return SIMULATIONS[name](np.random.default_rng(zlib.crc32(name.encode())), share)


def repeated(repeats: int, share: float) -> int:
    return max(100, round(repeats * share))


@simulation("accuracy interval")
def accuracy(rng: np.random.Generator, share: float) -> list[Rate]:
    """Wilson on the effective number of questions: alone, and all near-duplicates of one other."""
    repeats, rates = repeated(4000, share), []
    for n, size, truth in ((150, 1, 0.3), (500, 1, 0.9), (150, 2, 0.3), (500, 5, 0.8)):
        clusters = np.arange(n) // size
        hits = 0
        for _ in range(repeats):
            skill = rng.random(n // size) < truth  # a cluster is answered of one piece
            low, high = share_metric("accuracy", skill[clusters], clusters).interval or (0.0, 0.0)
            hits += low <= truth <= high
        rates.append(Rate(f"n={n}, clusters of {size}, accuracy {truth}", hits, repeats, 0.95, 0.93, 0.97))
    return rates


def drawn_changes(
    rng: np.random.Generator, n: int, size: int, alike: float, lost: float, gained: float
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of n questions, (n,) of -1, 0, 1, and their clusters of `size`.

    Args:
        alike: Share of the questions that change as the first of their cluster does.
        lost, gained: Chances of -1 and 1.
    """
    clusters = np.arange(n) // size
    first, own = (rng.choice([-1, 1, 0], n, p=[lost, gained, 1 - lost - gained]) for _ in range(2))
    return np.where(rng.random(n) < alike, first[clusters], own), clusters


PAIRS = (
    # questions, cluster size, share alike, chance of a question lost, gained
    *((150, 1, 0, 0.003, 0.003), (150, 1, 0, 0.0, 0.02), (150, 1, 0, 0.05, 0.15), (500, 1, 0, 0.0, 0.01)),
    *((36, 1, 0, 0.05, 0.1), (150, 2, 1, 0.003, 0.003), (150, 2, 1, 0.0, 0.02), (150, 2, 1, 0.05, 0.15)),
    *((150, 2, 0.7, 0.05, 0.15), (500, 5, 1, 0.05, 0.1), (500, 5, 0.7, 0.002, 0.01), (60, 2, 1, 0.1, 0.1)),
)


def _case(n: int, size: int, alike: float, lost: float, gained: float) -> str:
    near = f", clusters of {size} {alike:.0%} alike" if size > 1 else ""
    return f"n={n}, {100 * lost:g}% lost, {100 * gained:g}% gained{near}"


@simulation("difference of accuracy, interval")
def paired_difference(rng: np.random.Generator, share: float) -> list[Rate]:
    """Tango's interval widened by the design effect."""
    repeats, rates = repeated(2000, share), []
    for setting in PAIRS:
        truth, hits = setting[4] - setting[3], 0
        for _ in range(repeats):
            low, high = difference_interval(*drawn_changes(rng, *setting))
            hits += low <= truth <= high
        rates.append(Rate(_case(*setting), hits, repeats, 0.95, 0.94, 1.0))
    return rates


@simulation("difference of accuracy, size of the test")
def paired_size(rng: np.random.Generator, share: float) -> list[Rate]:
    """McNemar's test where the models are equally good, clusters changing sides as one; mid-p decides."""
    repeats, rates = repeated(4000, share), []
    for n, size, alike, changed in (
        *((150, 1, 0, 0.05), (150, 1, 0, 0.2), (500, 1, 0, 0.2), (150, 2, 1, 0.2), (500, 2, 1, 0.3)),
        *((500, 2, 0.7, 0.3), (500, 5, 1, 0.2), (500, 5, 0.5, 0.2)),
    ):
        setting = n, size, alike, changed / 2, changed / 2
        rejected = np.zeros(2, dtype=int)
        for _ in range(repeats):
            rejected += np.array(mcnemar(*drawn_changes(rng, *setting))) < 0.05
        for name, hits, most in zip(("exact", "mid-p"), rejected.tolist(), (0.05, 0.055), strict=True):
            rates.append(Rate(f"{name}, {_case(*setting)}", hits, repeats, 0.05, 0.0, most))
    return rates


@simulation("difference of accuracy, power")
def detectable(rng: np.random.Generator, share: float) -> list[Rate]:
    """How often a difference of the detectable size is found, where as many questions change as it supposes."""
    repeats, rates, n = repeated(4000, share), [], 1000
    for changed in (8, 12, 20, 50, 200):
        truth = detectable_difference(0, changed, n)
        lost = max(0.0, (changed / n - truth) / 2)
        hits = sum(mcnemar(drawn_changes(rng, n, 1, 0, lost, lost + truth)[0])[1] < 0.05 for _ in range(repeats))
        rates.append(Rate(f"{changed} of {n} changed, {100 * truth:.1f} points", hits, repeats, 0.8, 0.77, 0.92))
    return rates


@simulation("difference of means")
def means(rng: np.random.Generator, share: float) -> list[Rate]:
    """The interval of NLL (skewed) and of ROUGE (mostly no difference at all); the test where there is none."""
    repeats, rates = repeated(3000, share), []
    for name, n, size, zeros in (
        *(("NLL", 150, 1, 0.0), ("NLL", 150, 2, 0.0), ("NLL", 500, 5, 0.0)),
        *(("ROUGE", 150, 1, 0.7), ("ROUGE", 150, 1, 0.95), ("ROUGE", 500, 5, 0.9)),
    ):
        covered = rejected = 0
        clusters = np.arange(n) // size
        for _ in range(repeats):
            values = rng.gamma(1.5, 1.0, n) - 1.0 if name == "NLL" else rng.beta(2, 2, n) * rng.choice([-0.5, 1.0], n)
            values = (values * (rng.random(n) >= zeros))[clusters * size]  # a cluster is answered of one piece
            truth = 0.5 if name == "NLL" else 0.125 * (1 - zeros)
            found = mean_estimate(values, clusters)
            covered += found is None or found.p_not(truth) >= 0.05
            flipped = values * rng.choice([-1, 1], n)[clusters]
            tested = mean_estimate(flipped, clusters)
            rejected += tested is not None and tested.p_not(0.0) < 0.05
        case = f"{name}, n={n}, {zeros:.0%} without a difference, clusters of {size}"
        rates.append(Rate(f"covered: {case}", covered, repeats, 0.95, 0.93, 0.99))
        rates.append(Rate(f"rejected without a difference: {case}", rejected, repeats, 0.05, 0.0, 0.055))
    return rates


def drawn_answers(
    rng: np.random.Generator, n: int, size: int, accuracies: Sequence[float], alike: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of several answerers, (answerers, n), a cluster's questions answered of one piece; the clusters.

    Args:
        alike: Share of the clusters on which all take the same random number: the less accurate one is right there
            only where the more accurate one is.
    """
    clusters = np.arange(n) // size
    own, shared = rng.random((len(accuracies), n // size)), rng.random(n // size)
    numbers = np.where(rng.random(n // size) < alike, shared, own)
    return (numbers < np.array(accuracies)[:, None])[:, clusters], clusters


@simulation("skill, interval")
def skill_above_baselines(rng: np.random.Generator, share: float) -> list[Rate]:
    """Both accuracies are estimated; of several baselines the highest on the sample stands for the truly highest."""
    repeats, rates = repeated(1000, share), []
    for n, size, model, others, alike in (
        *(
            (72, 1, 0.5, (0.3,), 0.0),
            (300, 1, 0.5, (0.4,), 0.0),
            (300, 1, 0.42, (0.4,), 0.5),
            (500, 1, 0.9, (0.3,), 0.3),
        ),
        *((300, 1, 0.97, (0.4,), 0.0), (300, 2, 0.5, (0.4,), 0.0), (600, 4, 0.6, (0.4,), 0.3)),
        *((300, 1, 0.5, (0.4, 0.4, 0.4), 0.0), (300, 1, 0.5, (0.4, 0.3, 0.25), 0.3), (300, 2, 0.42, (0.4, 0.38), 0.0)),
    ):
        truth, hits = 1 - (1 - model) / (1 - max(others)), 0
        for _ in range(repeats):
            (right, *credits), clusters = drawn_answers(rng, n, size, (model, *others), alike)
            measured = [Baseline("drawn", tuple(row.astype(float).tolist()), "") for row in credits]
            limits = skill_limits(right.tolist(), measured, clusters)
            hits += limits is not None and limits[0] <= truth <= limits[1]
        near = f", clusters of {size}" if size > 1 else ""
        case = f"n={n}, accuracy {model}, baselines {', '.join(map(str, others))}, {alike:.0%} alike{near}"
        rates.append(Rate(case, hits, repeats, 0.95, 0.94, 0.97 if len(others) == 1 else 1.0))
    return rates


@simulation("letter preference, size of the test")
def letter_preference(rng: np.random.Generator, share: float) -> list[Rate]:
    """A model without preference, guessing to accurate; with even and uneven keys, alone and in clusters."""
    repeats, rates = repeated(2000, share), []
    for n, size, accuracy, key in (
        *((72, 1, right, (0.25, 0.25, 0.25, 0.25)) for right in (0.25, 0.6, 0.8, 0.95)),
        *((500, 1, right, (0.25, 0.25, 0.25, 0.25)) for right in (0.6, 0.8, 0.95)),
        *((300, 1, right, (0.4, 0.3, 0.2, 0.1)) for right in (0.25, 0.6, 0.95)),
        (400, 2, 0.6, (0.25, 0.25, 0.25, 0.25)),
    ):
        hits = 0
        for _ in range(repeats):
            gold = np.repeat(rng.choice(4, n // size, p=key), size)
            wrong = (gold + np.repeat(rng.integers(1, 4, n // size), size)) % 4
            chosen = np.where(np.repeat(rng.random(n // size) < accuracy, size), gold, wrong)
            _, p_value = preference_test(chosen, gold, np.full(n, 4), np.arange(n) // size)
            hits += p_value is not None and p_value < 0.05
        near = f", clusters of {size}" if size > 1 else ""
        uneven = "" if key[0] == key[3] else ", uneven key"
        rates.append(Rate(f"n={n}, accuracy {accuracy}{uneven}{near}", hits, repeats, 0.05, 0.01, 0.06))
    return rates


@simulation("calibration, size of the test")
def calibrated_model(rng: np.random.Generator, share: float) -> list[Rate]:
    """A calibrated model's ECE against the 95% point of its chance level."""
    from cyberlm.evaluation.metrics.calibration import (  # imports torch
        calibrated_errors,
        calibration_measures,
        confidence_of,
    )

    repeats, rates = repeated(200, share), []
    for n, size in ((72, 1), (300, 1), (500, 1), (600, 2)):
        hits = 0
        for _ in range(repeats):
            scores = np.repeat(rng.normal(0, 1.5, (n // size, 4)), size, axis=0)
            chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            drawn = np.repeat(rng.random(n // size), size)[:, None]
            gold = (chances.cumsum(axis=1) > drawn).argmax(axis=1)
            by_chance = calibrated_errors(confidence_of(scores), clusters=np.arange(n) // size)
            hits += calibration_measures(scores, gold)["ece"] > np.quantile(by_chance, 0.95)
        near = f", clusters of {size}" if size > 1 else ""
        rates.append(Rate(f"n={n}{near}", hits, repeats, 0.05, 0.02, 0.08))
    return rates


@dataclass(frozen=True)
class Layout:
    """Simulated seeds and questions: an answer is right where ability plus noise, all of it normal, is high enough.

    Attributes:
        accuracies: True ones of the methods.
        seeds: Of each method; 1 is a model without seeds.
        size: Questions of a cluster, which have 80% of their variance in common.
        apart: SD of what a question is to one method and not to the others; that of ability is 1.
        interaction: SD of what a question is to one seed: with 0.2 two seeds answer about 6% of the questions unlike.
        between: SD of seeds: 0.02 is about 0.5 points of accuracy.
    """

    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    questions: int = 500
    size: int = 1
    apart: float = 0.0
    interaction: float = 0.2
    between: float = 0.02

    def __str__(self) -> str:
        methods = " ".join(f"{accuracy:g}x{seeds}" for accuracy, seeds in zip(self.accuracies, self.seeds, strict=True))
        near = f", clusters of {self.size}" if self.size > 1 else ""
        return f"{methods}, n={self.questions}{near}, SDs {self.apart:g} {self.interaction:g} {self.between:g}"

    @property
    def clusters(self) -> np.ndarray:
        return np.arange(self.questions) // self.size

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Outcomes (S, Q) of each method."""
        ability, drawn = self._of_questions(rng, 1), []
        for accuracy, seeds in zip(self.accuracies, self.seeds, strict=True):
            shift = self.between * (seeds > 1)
            own = self.apart * self._of_questions(rng, 1) + self.interaction * self._of_questions(rng, seeds)
            least = norm.isf(accuracy) * math.sqrt(1 + self.apart**2 + self.interaction**2 + shift**2)
            drawn.append((ability + own + shift * rng.normal(size=(seeds, 1)) > least).astype(np.float64))
        return drawn

    def _of_questions(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        own = rng.normal(size=(rows, self.questions))
        if self.size == 1:
            return own
        shared = rng.normal(size=(rows, -(-self.questions // self.size)))[:, self.clusters]
        return math.sqrt(0.8) * shared + math.sqrt(0.2) * own


LAYOUTS = (
    # two methods, equally good or not, from seeds that differ by chance alone to seeds that decide
    *(Layout((0.8, 0.8), (seeds, seeds), between=sd) for seeds in (3, 5) for sd in (0.0, 0.02, 0.08)),
    *(Layout((0.8, 0.8), (seeds, seeds), size=2, apart=0.2, between=sd) for seeds in (3, 5) for sd in (0.0, 0.08)),
    *(Layout((0.6, 0.8), (seeds, seeds), size=2, apart=0.2, between=sd) for seeds in (3, 5) for sd in (0.02, 0.08)),
    *(Layout((0.81, 0.8), (5, 3), 2036, size=size, apart=0.1) for size in (1, 4)),
    # a model without seeds, and a method
    *(Layout((0.78, 0.8), (1, seeds), size=size) for seeds in (3, 5) for size in (1, 2)),
    *(Layout((0.7, 0.8), (1, seeds), size=size, apart=0.3, between=0.08) for seeds in (3, 5) for size in (1, 2)),
    Layout((0.12, 0.28), (1, 3), 300, apart=0.3),
)


@simulation("seeds and questions, interval of a difference")
def seeds_difference(rng: np.random.Generator, share: float) -> list[Rate]:
    """The reported interval, by t."""
    repeats, rates = repeated(2000, share), []
    for layout in LAYOUTS:
        truth, hits = layout.accuracies[1] - layout.accuracies[0], 0
        for _ in range(repeats):
            low, high = estimate(layout.draw(rng), (-1, 1), layout.clusters).interval()
            hits += low <= truth <= high
        rates.append(Rate(str(layout), hits, repeats, 0.95, 0.93, 0.97))
    return rates


@simulation("seeds and questions, interval of accuracy")
def seeds_accuracy(rng: np.random.Generator, share: float) -> list[Rate]:
    repeats, rates = repeated(2000, share), []
    for layout in (
        *(Layout((0.8,), (3,), size=size, between=sd) for size, sd in ((1, 0.0), (2, 0.05))),
        *(Layout((0.95,), (5,), size=size, between=sd) for size, sd in ((1, 0.02), (2, 0.1))),
        *(Layout((0.3,), (seeds,), 200, size=2, between=0.05) for seeds in (1, 3, 5)),
    ):
        hits = 0
        for _ in range(repeats):
            found = method_mean(layout.draw(rng)[0], layout.clusters)
            hits += found.ci_lo <= layout.accuracies[0] <= found.ci_hi
        rates.append(Rate(str(layout), hits, repeats, 0.95, 0.93, 0.97))
    return rates


@simulation("seeds and questions, crossed bootstrap beside t")
def bootstrap_beside_t(rng: np.random.Generator, share: float) -> list[Rate]:
    """Both intervals of the same differences: docs/results.md shows why t is the one that is reported."""
    repeats, rates = repeated(1000, share), []
    for layout in (Layout((0.8, 0.8), (seeds, seeds), between=sd) for seeds in (3, 5) for sd in (0.0, 0.02, 0.08)):
        by_t = by_bootstrap = 0
        for number in range(repeats):
            first, second = layout.draw(rng)
            low, high = estimate((first, second), (-1, 1)).interval()
            by_t += low <= 0 <= high
            means = bootstrap_means({"first": first, "second": second}, resamples=1000, seed=number)
            low, high = np.quantile(means["second"] - means["first"], (0.025, 0.975))
            by_bootstrap += low <= 0 <= high
        rates.append(Rate(f"t, {layout}", by_t, repeats, 0.95, 0.93, 0.97))
        rates.append(Rate(f"bootstrap, {layout}", by_bootstrap, repeats, 0.95, 0.85, 1.0))
    return rates


MARGIN = 0.02


@simulation("seeds and questions, size of the tests at the margin")
def tests_at_the_margin(rng: np.random.Generator, share: float) -> list[Rate]:
    """A method that is as far from the reference as is to be ruled out: non-inferiority and equivalence."""
    repeats, rates = repeated(2000, share), []
    for layout in (
        *(Layout((0.8, 0.8), (seeds, seeds), 2036, between=sd) for seeds in (3, 5) for sd in (0.0, 0.02)),
        *(Layout((0.8, 0.8), (seeds, seeds), 1000, size=2, apart=0.15) for seeds in (3, 5)),
    ):
        worse = replace(layout, accuracies=(0.8, 0.8 - MARGIN))
        rejected = np.zeros(2, dtype=int)
        for _ in range(repeats):
            found = estimate(worse.draw(rng), (-1, 1), worse.clusters)
            rejected += np.array([found.p_above(-MARGIN) <= 0.025, tost(found, MARGIN) <= 0.05])
        for name, hits, level in zip(("non-inferior", "equivalent"), rejected.tolist(), (0.025, 0.05), strict=True):
            rates.append(Rate(f"{name}, {worse}", hits, repeats, level, 0.0, level))
    return rates


@simulation("seeds and questions, wrong claims of a study")
def wrong_claims(rng: np.random.Generator, share: float) -> list[Rate]:
    """Any wrong claim about two methods against the reference, each as far from it as makes some claim wrong."""
    repeats, rates, names = repeated(400, share), [], ("base", "sft", "lora", "qlora")
    for layout in (
        Layout((0.6, 0.8), (1, 3, 3, 3), 1000, apart=0.1),
        Layout((0.6, 0.8), (1, 5, 5, 5), 1000, size=2, apart=0.15, between=0.03),
    ):
        for shifts in ((-MARGIN, -MARGIN), (MARGIN, MARGIN), (-MARGIN, MARGIN), (0.0, 0.0)):
            truth = dict(zip(names[2:], shifts, strict=True))
            study = replace(layout, accuracies=(*layout.accuracies, *(0.8 + shift for shift in shifts)))
            hits = 0
            for _ in range(repeats):
                outcomes = dict(zip(names, study.draw(rng), strict=True))
                claims = analyse(outcomes, "base", "sft", study.clusters, MARGIN, resamples=1).claims
                hits += any(claim.holds and _wrong(claim.name, truth.get(claim.method, 0.0)) for claim in claims)
            rates.append(Rate(str(study), hits, repeats, 0.05, 0.0, 0.05))
    return rates


def _wrong(claim: str, truth: float) -> bool:
    """Whether a claim is wrong about a method that is `truth` above the reference."""
    return {NON_INFERIOR: truth <= -MARGIN, EQUIVALENT: abs(truth) >= MARGIN, SUPERIOR: truth <= 0}.get(claim, False)


@simulation("seeds and questions, power")
def seeds_power(rng: np.random.Generator, share: float) -> list[Rate]:
    """How often methods that are equally good are found so within the margin that is said to be supported."""
    repeats, rates = repeated(1000, share), []
    for layout in (
        *(Layout((0.8, 0.8), (1, 1), n, apart=0.2) for n in (500, 2036)),
        *(Layout((0.8, 0.8), (seeds, seeds), 1000, apart=0.2, between=sd) for seeds in (3, 5) for sd in (0.0, 0.04)),
        Layout((0.8, 0.8), (5, 5), 2000, size=2, apart=0.2, between=0.02),
    ):
        pilot = replace(layout, seeds=(1, 1) if layout.seeds == (1, 1) else (400, 400), questions=20_000)
        varied = measured_variability(*pilot.draw(rng), pilot.clusters)
        for claim, (level, power) in LEVELS_AND_POWERS.items():
            margin, hits = supported_margin(layout.questions, layout.seeds[0], varied, claim), 0
            for _ in range(repeats):
                found = estimate(layout.draw(rng), (-1, 1), layout.clusters)
                hits += (found.p_above(-margin) if claim == NON_INFERIOR else tost(found, margin)) <= level
            case = f"{claim} within {100 * margin:.1f} points, {layout}"
            rates.append(Rate(case, hits, repeats, power, power - 0.05, power + 0.06))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", default=list(SIMULATIONS), help="names of simulations")
    parser.add_argument("--share", type=float, default=1.0, help="of the repeats (default %(default)s)")
    options = parser.parse_args()
    chosen = [name for name in SIMULATIONS if any(part in name for part in options.only)]
    wrong = sum(not rate.right for name in chosen for rate in _printed(name, options.share))
    sys.exit(f"{wrong} rates are not what they should be" if wrong else 0)


def _printed(name: str, share: float) -> Sequence[Rate]:
    start = time.perf_counter()
    rates = run(name, share)
    rows: list[list[object]] = [["", "found", "error", "nominal", "right", "repeats", ""]]
    rows += [
        [
            *(rate.case, f"{rate.value:.4f}", f"{rate.error:.4f}", f"{rate.nominal:g}"),
            *(f"{rate.lowest:g} to {rate.highest:g}", rate.repeats, "ok" if rate.right else "WRONG"),
        ]
        for rate in rates
    ]
    print(measure.table(f"{name} ({time.perf_counter() - start:.0f} s)", rows), end="\n\n", flush=True)
    return rates


if __name__ == "__main__":
    main()

"""Coverage of the intervals and size of the tests of cyberlm.statistics, by simulation.

Each simulation draws many data sets whose truth is known, and counts how often an interval covers it, or how often a
test rejects it. Its rate is held against the rates that are right, with three standard errors of the simulation itself
to spare; the exit status is 1 where one is outside. Seeded by the simulation's name: each can be run alone.

python bench/statistics_coverage.py                      # all, under five minutes on one slow core
python bench/statistics_coverage.py --only accuracy --share 0.1
"""

import argparse
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import measure
import numpy as np

from cyberlm.statistics import accuracy_interval


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
            found = accuracy_interval(skill[clusters], clusters)
            hits += found.ci_lo <= truth <= found.ci_hi
        rates.append(Rate(f"n={n}, clusters of {size}, accuracy {truth}", hits, repeats, 0.95, 0.93, 0.97))
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

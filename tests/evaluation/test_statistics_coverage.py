"""A short form of bench/statistics_coverage.py: intervals cover, and tests reject, as often as they claim."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    from statistics_coverage import SIMULATIONS, run
finally:
    sys.path.remove(str(BENCH))
    sys.modules.pop("measure", None)  # tests/test_bench.py imports its own


SLOW = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("seeds and") else name for name in SIMULATIONS]


@pytest.mark.parametrize("name", SLOW)
def test_rates_are_what_is_claimed(name: str) -> None:
    wrong = [f"{rate.case}: {rate.value:.3f}" for rate in run(name, share=0.1) if not rate.right]
    assert not wrong, wrong

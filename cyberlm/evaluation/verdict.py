"""The tuned model against its base, in numbers and in words."""

from collections.abc import Sequence

from cyberlm.evaluation.comparison import NAMED, NAMED_BY_BOTH, PairComparison
from cyberlm.evaluation.predictions import GENERATION, primary_metric
from cyberlm.evaluation.records import Comparison

SIGNIFICANCE = 0.05
"""A difference with a smaller p-value is called significant."""


def compare(pairs: Sequence[PairComparison], base: str = "base", tuned: str = "tuned") -> Comparison | None:
    """What is said of a tuned model and its base first.

    Args:
        pairs: Of the evidence.
        base, tuned: Names of the two models.

    Returns:
        Their comparison by `primary_metric`; None where they were not compared.
    """
    by = {pair.outcome: pair for pair in pairs if (pair.first, pair.second) == (base, tuned)}
    if not by:
        return None
    pair = by[primary_metric(GENERATION in by)]
    return Comparison(
        difference=pair.difference,
        only_base_right=pair.only_first_right,
        only_tuned_right=pair.only_second_right,
        p_value=pair.p_value,
        verdict=_verdict(pair),
        metric=pair.outcome,
        ci_lo=pair.ci_lo,
        ci_hi=pair.ci_hi,
        p_mid=pair.p_mid,
        moved=_moved(pair, by[NAMED], by.get(NAMED_BY_BOTH)) if pair.outcome == GENERATION else "",
    )


def _verdict(pair: PairComparison) -> str:
    if pair.p >= SIGNIFICANCE:
        finding = "no significant difference"
    else:
        finding = "significantly better" if pair.difference > 0 else "significantly worse"
    return f"{finding} ({p_text(pair.p)}, exact {p_text(pair.p_value)}): {_changes(pair)}"


def _moved(generation: PairComparison, named: PairComparison, both: PairComparison | None) -> str:
    """Format apart from knowledge: their points add up to the difference by generation."""
    knowledge = 0.0 if both is None else both.difference * both.n / generation.n
    unnamed = [f"{1 - (right or 0) / named.n:.1%}" for right in (named.first_right, named.second_right)]
    format_part = (
        f"Format {100 * (generation.difference - knowledge):+.1f} points: completions that name no option, cut off or "
        f"not, go from {unnamed[0]} to {unnamed[1]} ({p_text(named.p)})"
    )
    if both is None:
        return f"{format_part}; no question has both models name an option"
    return (
        f"{format_part}; knowledge {100 * knowledge:+.1f} points: where both name one ({both.n} of {generation.n} "
        f"questions) {_changes(both)} ({p_text(both.p)})"
    )


def _changes(pair: PairComparison) -> str:
    gained, lost = pair.only_second_right, pair.only_first_right
    return f"{gained} question{'' if gained == 1 else 's'} gained, {lost} lost"


def p_text(p_value: float) -> str:
    """`p = 0.0312`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3g}"

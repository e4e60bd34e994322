"""The tuned model against its base, in numbers and in words."""

from collections.abc import Sequence

from cyberlm.records import Comparison, Prediction
from cyberlm.statistics import compare_models

SIGNIFICANCE = 0.05
"""A difference with a smaller p-value is called significant."""


def compare(base: Sequence[Prediction], tuned: Sequence[Prediction]) -> Comparison:
    """Whether the tuned model answers other questions right than the base model, by likelihood.

    Raises:
        RunError: If there are no questions, or the two are not of the same.
    """
    (pair,) = compare_models({"base": base, "tuned": tuned})
    return Comparison(
        difference=pair.difference,
        only_base_right=pair.only_first_right,
        only_tuned_right=pair.only_second_right,
        p_value=pair.p_value,
        verdict=_verdict(pair.only_first_right, pair.only_second_right, pair.p_value),
    )


def _verdict(lost: int, gained: int, p_value: float) -> str:
    if p_value >= SIGNIFICANCE:
        finding = "no significant difference"
    else:
        finding = "significantly better" if gained > lost else "significantly worse"
    p = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3g}"
    return f"{finding} ({p}): {gained} question{'' if gained == 1 else 's'} gained, {lost} lost"

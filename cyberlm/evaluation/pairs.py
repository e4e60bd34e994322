"""Comparisons of every two models of an evaluation: by what is right, and by the means of what each question has."""

from collections.abc import Callable, Mapping, Sequence

from numpy.typing import ArrayLike

from cyberlm.evaluation.comparison import MeanDifference, PairComparison, compare_means, compare_models
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.calibration import option_nll
from cyberlm.evaluation.metrics.rouge import ROUGE, rouge_of, short_references
from cyberlm.evaluation.outcomes import golds
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.records import ModelSpec
from cyberlm.evaluation.scores import scores_of

Figure = Callable[[Sequence[Prediction]], ArrayLike]
"""From N predictions to a figure of each, (N,) float."""


def compare_all(
    models: Mapping[str, Predictions], specs: Mapping[str, ModelSpec], context: EvalSet
) -> tuple[tuple[PairComparison, ...], tuple[MeanDifference, ...]]:
    """Every two models on the test questions; of one model alone, nothing.

    Args:
        models, specs: By the model's name.
    """
    if len(models) < 2:
        return (), ()
    tuned_from = {name: spec.tuned_from for name, spec in specs.items() if spec.kind != "base"}
    test = {name: given.test for name, given in models.items()}
    completed = all(row.generated is not None for rows in test.values() for row in rows)
    generated = completed and context.options_shown
    pairs = compare_models(test, context.cluster_of, tuned_from, generated=generated)
    figures = _figures(next(iter(test.values())), context, completed)
    return pairs, compare_means(test, figures, context.cluster_of, tuned_from)


def _figures(rows: Sequence[Prediction], context: EvalSet, completed: bool) -> dict[str, Figure]:
    """By the names of metrics: NLL in nats, and ROUGE where all models have generated answers."""

    def rouge_figure(name: str) -> Figure:
        return lambda rows: [rouge_of(row.generated or "", row.reference)[name] for row in rows]

    figures: dict[str, Figure] = {
        "gold_nll": lambda rows: [row.gold_nll for row in rows],
        "option_nll": lambda rows: option_nll(scores_of(rows, context.option_score), golds(rows)),
    }
    if completed:
        figures |= {name: rouge_figure(name) for name in ROUGE}
        if short_references([row.reference for row in rows]) == len(rows):
            del figures["rouge2"]  # undefined
    return figures

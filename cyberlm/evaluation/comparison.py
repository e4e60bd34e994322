"""Comparison of models, two by two, on the same questions: by correctness, and by means of figures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.calibration import option_nll
from cyberlm.evaluation.metrics.rouge import rouge_of, short_references
from cyberlm.evaluation.predictions import (
    LIKELIHOOD,
    NAMED,
    NAMED_BY_BOTH,
    NO_CHOICE,
    OUTCOMES,
    ROUGE,
    Prediction,
    Predictions,
    choices,
    golds,
    has_candidates,
    right,
)
from cyberlm.evaluation.records import MeanDifference, ModelSpec, PairComparison
from cyberlm.evaluation.scores import scores_of
from cyberlm.evaluation.statistics import (
    Clusters,
    IntArray,
    design_effect,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar,
    mean_estimate,
)
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import make_task

AGAINST_BASE = "each tuned model against its base"
AGAINST_OTHERS = "tuned models against bases of others"
AMONG_TUNED = "tuned models among each other"
AMONG_BASES = "base models among each other"
"""Families of comparisons that ask the same: p-values are corrected over each."""

Compared = TypeVar("Compared", PairComparison, MeanDifference)
Predicted = Sequence[Prediction]
Figure = Callable[[Predicted], ArrayLike]
"""From N predictions to a figure of each, (N,) float."""


def compare_all(
    models: Mapping[str, Predictions], specs: Mapping[str, ModelSpec], context: EvalSet
) -> tuple[tuple[PairComparison, ...], tuple[MeanDifference, ...]]:
    """Every two models on the test questions; of one model alone, nothing."""
    if len(models) < 2:  # figures of many questions take time
        return (), ()
    tuned_from = {name: spec.tuned_from for name, spec in specs.items() if spec.kind != "base"}
    test = {name: given.test for name, given in models.items()}
    completed = all(row.generated is not None for rows in test.values() for row in rows)
    generated = completed and context.options_shown
    pairs = compare_models(test, context.clusters, tuned_from, generated=generated)
    figures = question_figures(next(iter(test.values())), context, completed)
    return pairs, compare_means(test, figures, context.clusters, tuned_from)


def question_figures(rows: Predicted, context: EvalSet, completed: bool) -> dict[str, Figure]:
    """By the names of metrics: NLL in nats; the task's figures and ROUGE where all models have generated answers."""

    def of_texts(figure: Callable[[str, str], float]) -> Figure:
        return lambda rows: [figure(row.generated or "", row.reference) for row in rows]

    def rouge_figure(name: str) -> Callable[[str, str], float]:
        return lambda answer, reference: rouge_of(answer, reference)[name]

    figures: dict[str, Figure] = {"gold_nll": lambda rows: [row.gold_nll for row in rows]}
    if has_candidates(rows):
        figures["option_nll"] = lambda rows: option_nll(scores_of(rows, context.option_score), golds(rows))
    if completed:
        own = {**getattr(make_task(context.config), "figures", {}), **{name: rouge_figure(name) for name in ROUGE}}
        if short_references([row.reference for row in rows]) == len(rows):
            del own["rouge2"]  # undefined
        figures |= {name: of_texts(figure) for name, figure in own.items()}
    return figures


def compare_models(
    models: Mapping[str, Sequence[Prediction]],
    clusters: Clusters = None,
    tuned_from: Mapping[str, str | None] | None = None,
    generated: bool = False,
) -> tuple[PairComparison, ...]:
    """Compares every two of several models by likelihood, and by generation where `generated`.

    Args:
        models: Predictions by the model's name: the same questions, in any order.
        clusters: In the order of the first model's predictions.
        tuned_from: From each tuned model to its base among `models`, None where that is not one of them; other models
            are bases. p-values are corrected over pairs that ask the same.

    Returns:
        For each of `OUTCOMES`, one comparison for each pair in the order of `models`, a tuned model behind a base.
        `named_by_both` is left out where there is no such question.

    Raises:
        RunError: If the models did not answer the same questions, or completions are missing.
    """
    aligned, numbers = _aligned(models, clusters)
    found = []
    rows = next(iter(models.values()))
    chosen = has_candidates(rows) or any(row.option_log_odds for row in rows)
    by_likelihood = {LIKELIHOOD} if chosen else set()
    for outcome in [name for name in OUTCOMES if name in by_likelihood or (generated and name != LIKELIHOOD)]:
        for first, second, family in _pairs(models, tuned_from or {}):
            pair = _compared((first, second), (aligned[first], aligned[second]), outcome, family, numbers)
            if pair is not None:
                found.append(pair)
    return _corrected(found)


def compare_means(
    models: Mapping[str, Sequence[Prediction]],
    figures: Mapping[str, Callable[[Sequence[Prediction]], ArrayLike]],
    clusters: Clusters = None,
    tuned_from: Mapping[str, str | None] | None = None,
) -> tuple[MeanDifference, ...]:
    """Compares the means of figures of N questions, (N,) each by name; else as `compare_models`."""
    aligned, numbers = _aligned(models, clusters)
    found = []
    for outcome, figure in figures.items():
        values = {name: np.asarray(figure(rows), dtype=np.float64) for name, rows in aligned.items()}
        for first, second, family in _pairs(models, tuned_from or {}):
            changes = values[second] - values[first]  # (N,)
            estimate = mean_estimate(changes, numbers)
            low, high = estimate.interval() if estimate else (None, None)
            p_value = estimate.p_not(0.0) if estimate else None
            pair = first, second, outcome, changes.size, float(changes.mean())
            found.append(MeanDifference(*pair, low, high, p_value, p_holm=p_value, family=family))
    return _corrected(found)


def _compared(
    names: tuple[str, str], rows: tuple[Predicted, Predicted], outcome: str, family: str, clusters: IntArray
) -> PairComparison | None:
    """One comparison, not yet corrected; None where no question is asked."""
    ids = np.array([row.id for row in rows[0]])
    sides = [right(side, generated=outcome != LIKELIHOOD) for side in rows]  # (N,) each
    if outcome in (NAMED, NAMED_BY_BOTH):
        named = [choices(side, generated=True) != NO_CHOICE for side in rows]
        if outcome == NAMED:
            sides = named
        else:
            asked = named[0] & named[1]
            ids, clusters, sides = ids[asked], clusters[asked], [side[asked] for side in sides]
    if not ids.size:
        return None
    changes = sides[1].astype(np.int64) - sides[0]  # (N,): -1 lost, 1 gained
    lost, gained = (tuple(sorted(ids[changes == sign].tolist())) for sign in (-1, 1))
    low, high = difference_interval(changes, clusters)
    exact, mid = mcnemar(changes, clusters)
    effect = design_effect(changes, clusters)
    return PairComparison(
        first=names[0],
        second=names[1],
        n=changes.size,
        difference=float(changes.mean()),
        ci_lo=low,
        ci_hi=high,
        only_first_right=len(lost),
        only_second_right=len(gained),
        p_value=exact,
        p_holm=mid,
        detectable=detectable_difference(len(lost), len(gained), changes.size, effect),
        lost=lost,
        gained=gained,
        outcome=outcome,
        p_mid=mid,
        family=family,
        first_right=int(sides[0].sum()),
        second_right=int(sides[1].sum()),
    )


def _pairs(models: Mapping[str, object], tuned_from: Mapping[str, str | None]) -> list[tuple[str, str, str]]:
    """Every two models and the family of their comparison; a base comes before a tuned model."""
    found = []
    for first, second in combinations(models, 2):
        if (first in tuned_from) == (second in tuned_from):
            found.append((first, second, AMONG_TUNED if first in tuned_from else AMONG_BASES))
            continue
        base, tuned = (second, first) if first in tuned_from else (first, second)
        found.append((base, tuned, AGAINST_BASE if tuned_from[tuned] == base else AGAINST_OTHERS))
    return found


def _corrected(compared: Sequence[Compared]) -> tuple[Compared, ...]:
    """Comparisons with Holm's correction over those of one outcome and family."""
    families: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for place, pair in enumerate(compared):
        if pair.p is not None:
            families[pair.outcome, pair.family][place] = pair.p
    corrected = list(compared)
    for p_values in families.values():
        for place, p_holm in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
            corrected[place] = replace(compared[place], p_holm=p_holm)
    return tuple(corrected)


def _aligned(models: Mapping[str, Predicted], clusters: Clusters) -> tuple[dict[str, Predicted], IntArray]:
    """Every model's predictions in one order of the questions, and the cluster of each.

    Equal questions (one hash, several ids) are paired in the order of their ids.
    """

    def place(row: Prediction) -> tuple[str, str]:
        return row.hash, row.id

    ordered = {name: sorted(rows, key=place) for name, rows in models.items()}
    (reference, first), *others = ordered.items()
    hashes = [row.hash for row in first]
    for name, rows in others:
        ours, theirs = Counter(hashes), Counter(row.hash for row in rows)
        if ours != theirs:
            odd = (ours - theirs) + (theirs - ours)
            raise RunError(
                f"{reference} and {name} cannot be compared.",
                [Problem(f"{odd.total()} questions, {next(iter(odd))} for one, were answered by one of them alone")],
                "Score both on the same questions: python evaluate.py 'runs=[outputs/A,outputs/B]'",
            )
    numbers = range(len(first)) if clusters is None else np.asarray(clusters).tolist()
    placed = sorted(zip(map(place, models[reference]), numbers, strict=True))
    return dict(ordered), np.array([number for _, number in placed])

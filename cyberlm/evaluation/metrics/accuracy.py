"""Accuracy: share of questions answered right, by likelihood and by generation."""

from collections.abc import Iterator

import numpy as np

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Predictions, golds, has_candidates, right
from cyberlm.evaluation.scores import choose
from cyberlm.evaluation.statistics import BoolArray, effective_questions


def accuracy(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy by likelihood and by generation, and the questions on which either is less reliable.

    Raises:
        RunError: If there are no predictions, or only some of them hold a generated answer.
    """
    rows, n, clusters = predictions.test, len(predictions.test), context.clusters
    if rows and not has_candidates(rows):
        yield from _by_generation(predictions, context)
        return
    correct = right(rows)
    yield share_metric("accuracy", correct, clusters, label="accuracy, likelihood")
    yield from _by_source(correct, context)
    yield from _by_generation(predictions, context)
    effective = effective_questions(correct, clusters)
    yield Metric("n_eff", effective, n=n, label="independent questions", format_spec=".0f", place="evidence")
    ties = sum(row.tied for row in rows)
    if ties:
        note = (
            f"two or more options are equally likely in {ties} of {n} questions; which of them counts is drawn by a "
            "hash of the prompt"
        )
        yield Metric("ties", ties, n=n, note=note, format_spec=".0f", place="note")


def _by_source(correct: BoolArray, context: EvalSet) -> Iterator[Metric]:
    """Accuracy on the test questions of each source of a mixture."""
    sources = np.array([question.source for question in context.questions])
    for name in dict.fromkeys(filter(None, sources.tolist())):
        own = sources == name
        yield share_metric(f"accuracy_{name}", correct[own], context.clusters[own], label=f"accuracy on {name}")


def _by_generation(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    rows, label = predictions.test, "accuracy, generation"
    generated = any(row.generated is not None for row in rows)
    if not generated or not context.options_shown:
        not_shown = "the options were not shown, so a free answer cannot be matched to one of them"
        note = f"no accuracy by generation: {not_shown if generated else 'no answers were generated'}"
        yield Metric("accuracy_generation", None, note=note, label=label)
        return
    correct = right(rows, generated=True)
    yield share_metric("accuracy_generation", correct, context.clusters, label=label)
    if not has_candidates(rows):
        yield from _by_source(correct, context)
    known = all(row.finish_reason is not None for row in rows)  # older rows do not say
    cut = [row.parsed is None and row.finish_reason == "length" for row in rows]
    unnamed = [row.parsed is None and not was_cut for row, was_cut in zip(rows, cut, strict=True)]
    yield share_metric("no_option_named", unnamed, label="no option named")
    if known:
        yield share_metric("cut_off", cut, label="cut off, none named", place="headline" if any(cut) else "detail")
    if has_candidates(rows):
        same = [row.parsed == row.choice for row in rows]
        yield share_metric("agreement", same, label="likelihood = generation", place="evidence")


def by_option_score(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy by likelihood under each `evaluation.option_score`; letters, of one token each, have but one."""
    if context.asks_letters:
        return
    for how in OptionScore:
        chosen, _ = choose(predictions.test, how)
        label = f"accuracy, options by {how.name}"
        correct = chosen.numpy() == golds(predictions.test)
        yield share_metric(f"accuracy_by_{how.name}", correct, context.clusters, label=label, place="evidence")

"""Metrics of sets of right options: exact match, Jaccard index and micro-F1, beside baselines that read no question.

Answers are read in up to three ways: by likelihood, where an option is in the set if `yes` is likelier than `no`; from
a completion that is a set (strict); and from the last line of a completion (`last_line`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.baselines import Baseline, above_baselines
from cyberlm.evaluation.metrics.classification import LABELS
from cyberlm.evaluation.metrics.extraction import Labels, micro_f1
from cyberlm.evaluation.metrics.metric import Metric, mean_metric, share_metric
from cyberlm.evaluation.predictions import Predictions
from cyberlm.tasks.extraction import labels_of
from cyberlm.tasks.multiple_answer import jaccard, last_line, letters_of, strict


def sets(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Exact match, Jaccard index and micro-F1 of each way (`accuracy` has the strict exact match)."""
    right = [labels_of(question.answer) for question in context.questions]
    for suffix, given in _answers(predictions).items():
        if suffix != "_generation":
            exact = [a == b for a, b in zip(given, right, strict=True)]
            yield share_metric(f"accuracy{suffix}", exact, context.clusters, label=f"accuracy, {LABELS[suffix]}")
        yield from _overlap(suffix, LABELS[suffix], given, right, context)
    judged = [
        [
            (odds > 0) == (letter in truth)
            for letter, odds in zip(letters_of(question), row.option_log_odds, strict=True)
        ]
        for question, row, truth in zip(context.questions, predictions.test, right, strict=True)
        if row.option_log_odds
    ]
    if len(judged) == len(right):
        shares = [sum(each) / len(each) for each in judged]
        yield mean_metric("option_accuracy", shares, context.clusters, "options judged right, yes or no", "evidence")


def _answers(predictions: Predictions) -> dict[str, Labels]:
    """Sets that a model answers, by the suffix of the metric's names."""
    rows = predictions.test
    found: dict[str, Labels] = {}
    if all(row.option_log_odds for row in rows):
        found[""] = [labels_of(row.yes_letters) for row in rows]
    if all(row.generated is not None for row in rows):
        found["_generation"] = [strict(row.generated or "") for row in rows]
        found["_last_line"] = [last_line(row.generated or "") for row in rows]
    return found


def _overlap(suffix: str, label: str, given: Labels, right: Labels, context: EvalSet) -> Iterator[Metric]:
    each = [jaccard(answer, truth) for answer, truth in zip(given, right, strict=True)]
    yield mean_metric(f"jaccard{suffix}", each, context.clusters, label=f"Jaccard, {label}")
    value, limits = micro_f1(given, right, context.clusters)
    yield Metric(f"micro_f1{suffix}", value, limits, len(right), label=f"micro-F1, {label}", format_spec=".3f")


def floors(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Exact match, Jaccard index and micro-F1 of all options, and of the most frequent set; skill above the better.

    The most frequent set is that of the seen questions; without any, of the test questions.
    """
    right = [labels_of(question.answer) for question in context.questions]
    answers = _answers(predictions)
    if not answers:
        return
    most, count = Counter(question.answer for question in context.seen or context.questions).most_common(1)[0]
    of = f"{len(context.seen)} training" if context.seen else f"{len(right)} test"
    found = {
        "all_options": ([frozenset(letters_of(question)) for question in context.questions], "always all options"),
        "frequent_set": ([labels_of(most)] * len(right), f"always {most}, which is right in {count} of {of} questions"),
    }
    exact = {name: [a == b for a, b in zip(given, right, strict=True)] for name, (given, _) in found.items()}
    answered = answers.get("_generation", answers.get("", []))
    correct = [a == b for a, b in zip(answered, right, strict=True)]
    baselines = [Baseline(name, tuple(map(float, exact[name])), note) for name, (_, note) in found.items()]
    yield from above_baselines(baselines, correct, context.clusters)
    for name, (given, _) in found.items():
        for metric in _overlap(f"_{name}", name.replace("_", " "), given, right, context):
            yield replace(metric, name=f"baseline_{metric.name}", place="evidence")

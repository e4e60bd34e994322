"""Metrics of classes: macro-F1, recall of each class, confusion; baselines that need no language model.

Answers are read in up to three ways: by likelihood where labels are listed and few, from a completion that is a label
(strict), and from the last line of a completion (`last_line`). Macro-F1 is the mean of F1 over the classes that are
right somewhere in the test set; a class that never is, and is answered, counts against the precision of none.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.baselines import Baseline, above_baselines
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Predictions, has_candidates, right
from cyberlm.evaluation.statistics import Clusters, FloatArray, IntArray
from cyberlm.tasks.classification import Classification
from cyberlm.tasks.task import Example, make_task

DRAWS = 1000
"""Bootstrap draws of whole clusters."""
MAX_CONFUSIONS = 50
"""Of pairs of classes, those with the most questions."""
LABELS = {"": "likelihood", "_generation": "generation", "_last_line": "generation, last line"}
"""Ways to read an answer, by the suffix of a metric's name."""
NO_ANSWER = "no label"


def classes(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Macro-F1 of each way to read an answer; recall and confusion by likelihood, or else by generation."""
    gold, n = [question.answer for question in context.questions], len(context.questions)
    answers = _answers(predictions, context)
    for suffix, given in answers.items():
        label = f"macro-F1, {LABELS[suffix]}"
        yield Metric(f"macro_f1{suffix}", *macro_f1(gold, given, context.clusters), n=n, label=label, format_spec=".3f")
        if suffix == "_last_line":
            correct = [a == b for a, b in zip(given, gold, strict=True)]
            yield share_metric("accuracy_last_line", correct, context.clusters, label=f"accuracy, {LABELS[suffix]}")
    if not answers:
        return
    main = next(iter(answers.values()))
    pairs = list(zip(main, gold, strict=True))
    recalls = {name: [answer == name for answer, truth in pairs if truth == name] for name in set(gold)}
    lowest = min(sorted(recalls), key=lambda name: np.mean(recalls[name]))
    note = f"Recall is lowest for {lowest}: {sum(recalls[lowest])} of {len(recalls[lowest])}, of {len(recalls)} classes"
    yield share_metric("lowest_recall", recalls[lowest], note=note, label="lowest recall", place="evidence")
    for name in sorted(recalls):
        yield share_metric(f"recall_{name}", recalls[name], place="detail")
    confused = Counter((truth, answer) for answer, truth in pairs if answer != truth)
    for (truth, answer), count in confused.most_common(MAX_CONFUSIONS):
        hits = np.arange(len(recalls[truth])) < count
        yield share_metric(f"confusion_{truth}_as_{answer}", hits, place="detail")


def _answers(predictions: Predictions, context: EvalSet) -> dict[str, list[str]]:
    """Labels that a model answers, by each way of reading that there is."""
    found: dict[str, list[str]] = {}
    pairs = list(zip(context.questions, predictions.test, strict=True))

    def named(question: Example, answer: int | str | None) -> str:
        return question.options[answer] if isinstance(answer, int) else answer or NO_ANSWER

    if has_candidates(predictions.test):
        found[""] = [named(question, row.choice) for question, row in pairs]
    if all(row.generated is not None for row in predictions.test):
        found["_generation"] = [named(question, row.parsed) for question, row in pairs]
        task = make_task(context.config)
        if isinstance(task, Classification):
            last = [named(question, task.parse_last_line(row.generated or "", question)) for question, row in pairs]
            found["_last_line"] = last
    return found


def macro_f1(gold: Sequence[str], given: Sequence[str], clusters: Clusters = None) -> tuple[float, tuple[float, float]]:
    """Mean F1 over the classes of `gold`, with the 95% interval of a bootstrap of whole clusters.

    A class that a draw leaves out does not count in its mean.
    """
    names = sorted(set(gold))
    number = {name: k for k, name in enumerate(names)}
    truth = np.array([number[name] for name in gold], dtype=np.int64)
    answer = np.array([number.get(name, len(names)) for name in given], dtype=np.int64)
    group = np.arange(len(gold)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    rng, count = np.random.default_rng(0), int(group.max()) + 1
    draws = [_f1(truth, answer, rng.multinomial(count, np.full(count, 1 / count))[group]) for _ in range(DRAWS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    value = _f1(truth, answer, np.ones(len(gold)))
    return value, (min(float(low), value), max(float(high), value))


def _f1(truth: IntArray, answer: IntArray, weights: FloatArray | IntArray) -> float:
    size = int(truth.max()) + 2  # the last for answers that are no class
    hit = truth == answer
    true_counts, answer_counts, hits = (
        np.bincount(numbers, some, minlength=size)[:-1]
        for numbers, some in ((truth, weights), (answer, weights), (truth[hit], weights[hit]))
    )
    there = true_counts > 0
    return float((2 * hits[there] / (true_counts + answer_counts)[there]).mean())


def floors(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy of the most frequent class and of TF-IDF with a linear SVM, skill above the better, and its macro-F1."""
    found = class_baselines(context)
    closed = has_candidates(predictions.test)
    if not closed and any(row.generated is None for row in predictions.test):
        return
    correct = right(predictions.test, generated=not closed).tolist()
    yield from above_baselines([baseline for baseline, _ in found], correct, context.clusters)
    gold = [question.answer for question in context.questions]
    for baseline, given in found:
        value, limits = macro_f1(gold, given, context.clusters)
        name, note = f"baseline_{baseline.name}_macro_f1", baseline.note
        yield Metric(name, value, limits, len(gold), note, format_spec=".3f", place="detail")


@functools.lru_cache(maxsize=1)
def class_baselines(context: EvalSet) -> tuple[tuple[Baseline, list[str]], ...]:
    """Baselines with their answers, fitted on the seen questions; without any, the most frequent class of the test."""
    gold, seen = [question.answer for question in context.questions], context.seen
    name, most = Counter(question.answer for question in seen or context.questions).most_common(1)[0]
    what = f"always {name}, which is right in {most} of {len(seen or gold)} {'training' if seen else 'test'} questions"
    answers = [("majority_class", [name] * len(gold), what)]
    if len({question.answer for question in seen}) > 1:
        train, test = ([question.question for question in part] for part in (seen, context.questions))
        given = tfidf_svm(train, test, [question.answer for question in seen])
        answers.append(("tfidf_svm", given, f"TF-IDF and a linear SVM, fitted on {len(seen)} questions"))
    return tuple(
        (Baseline(name, tuple(float(a == b) for a, b in zip(given, gold, strict=True)), note), given)
        for name, given, note in answers
    )


def tfidf_svm(train: Sequence[str], test: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Labels by TF-IDF of words and word pairs (logarithmic counts) and a linear SVM (C = 1), both of scikit-learn."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    model = LinearSVC(C=1.0, random_state=0).fit(vectors.fit_transform(train), list(labels))
    return [str(label) for label in model.predict(vectors.transform(test))]

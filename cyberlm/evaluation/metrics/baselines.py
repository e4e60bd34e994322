"""Baselines that read no question, skill above the best of them, and findings: signs of a wrong model or answer key."""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, hstack
from scipy.stats import binom, norm
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.statistics import Clusters, skill_interval
from cyberlm.tasks.task import LETTERS, Example, option_name

HASHED_FEATURES = 2**18  # columns for the words and word pairs of an option
SURE = 0.001  # a finding is what chance would bring about more rarely than this
CONSTANT_SHARE = 0.8  # least share of answers with one letter that is called constant
LONGEST_SHARE = 0.6  # least share of answers with the longest option that is called a habit


@dataclass(frozen=True)
class Baseline:
    """Answers of one shortcut to the test questions.

    Attributes:
        credits: For each test question, in order: 1 where the shortcut is right, 0 where it is wrong, 1/m where it
            names m options with the right one among them.
    """

    name: str
    credits: tuple[float, ...]
    note: str

    @property
    def accuracy(self) -> float:
        return math.fsum(self.credits) / len(self.credits)


def baselines(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy of each baseline, skill above the best one, and accuracy on the questions that this one gets wrong.

    Skill is (accuracy - best) / (1 - best), None where the best is always right (Murphy 1988, Mon. Weather Rev.
    116:2417).
    """
    found, unmeasured = list(shortcut_baselines(context)), {}
    if not context.seen:
        unmeasured["options_only"] = "not measured: there are no training questions to learn it from"
    if predictions.without_question:
        credits = tuple(float(row.correct) for row in predictions.without_question)
        found.append(Baseline("no_question", credits, "the model itself, shown the options without the question"))
    else:
        unmeasured["no_question"] = "not measured"
    yield from above_baselines(found, [row.correct for row in predictions.test], context.clusters)
    for name, note in unmeasured.items():
        yield Metric(f"baseline_{name}", None, note=note, format_spec=".1%", place="detail")


def above_baselines(found: Sequence[Baseline], correct: Sequence[bool], clusters: Clusters) -> Iterator[Metric]:
    """Accuracy of the best baseline, skill above it, accuracy where it is wrong; accuracy of the others in detail.

    Args:
        correct: (N,), whether the model is right.
    """
    best = max(found, key=lambda baseline: baseline.accuracy)  # the first of equals
    choice = (
        f"The best baseline, {best.name}, is the highest of {len(found)} on the same questions; the interval of skill "
        "allows for the choice"
    )
    yield share_metric("best_baseline", best.credits, note=choice, label="best baseline", place="evidence")
    limits = skill_limits(correct, found, clusters)
    skill = None if limits is None else (sum(correct) / len(correct) - best.accuracy) / (1 - best.accuracy)
    yield Metric("skill", skill, limits, len(correct), "", "skill above it", ".2f", "evidence")
    hard = [is_right for is_right, credit in zip(correct, best.credits, strict=True) if credit == 0]
    label = "accuracy where it is wrong"
    if hard:
        yield share_metric("accuracy_hard", hard, label=label, place="evidence")
    else:
        note = "The best baseline gets no question wrong"
        yield Metric("accuracy_hard", None, n=0, note=note, label=label, place="evidence")
    for baseline in found:
        yield share_metric(f"baseline_{baseline.name}", baseline.credits, note=baseline.note, place="detail")


@functools.lru_cache(maxsize=1)
def shortcut_baselines(context: EvalSet) -> tuple[Baseline, ...]:
    """Baselines of the test questions that need no model.

    They learn from the seen questions. Without any, the majority letter is that of the test questions, and there is no
    model of the options.
    """
    test, train = context.questions, context.seen
    found = majority_letter(test, train), longest_option(test)
    closed = any(len(question.options) > 1 for question in train)  # of free answers there is nothing to choose from
    return (*found, options_only(test, train)) if closed else found


def majority_letter(test: Sequence[Example], train: Sequence[Example] = ()) -> Baseline:
    """Baseline that always names the letter that is right most often in training; the first of equals."""
    counts = Counter(question.gold for question in train or test)
    most = max(counts.values())
    first, *equals = (option_name(gold) for gold in sorted(counts) if counts[gold] == most)
    note = f"always {first}, which is right in {most} of {counts.total()} {'training' if train else 'test'} questions"
    if equals:
        note += f" (as is {', '.join(equals)})"
    return Baseline("majority_letter", tuple(float(question.letter == first) for question in test), note)


def longest_option(test: Sequence[Example]) -> Baseline:
    """Baseline that always names the option of the most characters; options of equal length share the credit."""
    credits = tuple(_is_longest(question, question.gold) for question in test)
    return Baseline("longest_option", credits, "always the option of the most characters")


def options_only(test: Sequence[Example], train: Sequence[Example]) -> Baseline:
    """Baseline that names the option most like the right ones of training, judged without the question.

    Logistic regression of whether an option is right on its words and word pairs (hashed, each row of norm 1), its
    place among its question's options by length, and the log of its length over their mean.
    """
    model = LogisticRegression(C=1.0, solver="liblinear", max_iter=1000)
    is_gold = [int(k == question.gold) for question in train for k in range(len(question.options))]
    model.fit(_option_features(train), is_gold)
    ends = np.cumsum([len(question.options) for question in test])
    logits = np.split(model.decision_function(_option_features(test)), ends[:-1])  # one array for each question
    credits = tuple(_share_of_best(row.tolist(), question.gold) for row, question in zip(logits, test, strict=True))
    return Baseline("options_only", credits, f"a logistic model of the options alone, fitted on {len(train)} questions")


def _share_of_best(values: Sequence[float], index: int) -> float:
    """Credit of 1/m where `values[index]` is one of m equal largest values, else 0."""
    best = max(values)
    return 1 / values.count(best) if values[index] == best else 0.0


def _is_longest(question: Example, index: int) -> float:
    return _share_of_best([len(option) for option in question.options], index)


def _option_features(questions: Sequence[Example]) -> csr_array:
    """Features of each option of each question: one row of HASHED_FEATURES + len(LETTERS) + 1 columns."""
    words = HashingVectorizer(
        n_features=HASHED_FEATURES, ngram_range=(1, 2), token_pattern=r"\w+", binary=True, alternate_sign=False
    )
    hashed = words.transform([option for question in questions for option in question.options])
    by_length = []
    for question in questions:
        lengths = np.array([max(len(option), 1) for option in question.options])
        longer = np.minimum((lengths > lengths[:, None]).sum(axis=1), len(LETTERS) - 1)  # (K,)
        by_length.append(np.column_stack([np.eye(len(LETTERS))[longer], np.log(lengths / lengths.mean())]))
    return csr_array(hstack([hashed, csr_array(np.concatenate(by_length))]))


def skill_limits(
    correct: Sequence[bool], found: Sequence[Baseline], clusters: Clusters = None
) -> tuple[float, float] | None:
    """95% interval of the skill above the highest of several baselines, whichever that truly is.

    Skill above the truly highest is the lowest of all skills: no lower than the lowest of their lower limits (at 97.5%
    each), among which is that of the highest baseline; no higher than any of their upper limits, which therefore share
    the 2.5% of that side. None where a baseline is always right.
    """
    if any(baseline.accuracy == 1 for baseline in found):
        return None
    z_high = float(norm.ppf(1 - 0.025 / len(found)))
    limits = [skill_interval(correct, baseline.credits, clusters, z_high=z_high) for baseline in found]
    return min(low for low, _ in limits), min(high for _, high in limits)


def findings(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Signs in the choices by likelihood that the model or the answer key is wrong; nothing where there are none."""
    rows = predictions.test
    yield from filter(None, (_shifted_key(rows), _constant_letter(rows), _longest_habit(rows, context.questions)))


def _finding(name: str, figure: float, n: int, sentence: str) -> Metric:
    return Metric(name, figure, n=n, note=sentence, format_spec=".1%", place="note")


def _shifted_key(rows: Sequence[Prediction]) -> Metric | None:
    """Accuracy far below chance, and high against the key moved one letter on or back."""
    n, chance, correct = len(rows), _chance(rows), sum(row.correct for row in rows)
    if binom.cdf(correct, n, chance) >= SURE:
        return None
    chosen = Counter(row.choice for row in rows)
    wrong_evenly = sum((not row.correct) / max(row.n_options - 1, 2) for row in rows) / n  # of two: chance
    for step, moved in ((1, "on (A to B)"), (-1, "back (B to A)")):
        key = [(row.gold + step) % row.n_options for row in rows]
        shifted = sum(row.choice == letter for row, letter in zip(rows, key, strict=True))
        by_habit = sum(chosen[letter] for letter in key) / n**2  # the same letters, whatever the question
        if _above(shifted, n, max(chance, wrong_evenly, by_habit)):
            sentence = (
                f"The answer key looks shifted by one letter: accuracy is {correct / n:.1%}, far below the "
                f"{chance:.1%} of chance, but {shifted / n:.1%} against the key moved one letter {moved}"
            )
            return _finding("shifted_key", shifted / n, n, sentence)
    return None


def _constant_letter(rows: Sequence[Prediction]) -> Metric | None:
    """Nearly always the same letter, and more often than it is right."""
    n = len(rows)
    choice, count = Counter(row.choice for row in rows).most_common(1)[0]
    gold = sum(row.gold == choice for row in rows) / n
    if count / n < CONSTANT_SHARE or not _above(count, n, max(gold, _chance(rows))):
        return None
    letter = option_name(choice)
    sentence = f"The model answers {letter} to {count / n:.1%} of the questions, where {letter} is right in {gold:.1%}"
    return _finding("constant_letter", count / n, n, sentence)


def _longest_habit(rows: Sequence[Prediction], questions: Sequence[Example]) -> Metric | None:
    """Mostly the longest option, and more often than it is right; options of equal length share the credit."""
    n, pairs = len(rows), list(zip(questions, rows, strict=True))
    agreed = math.fsum(_is_longest(question, row.choice) for question, row in pairs)
    right = math.fsum(_is_longest(question, row.gold) for question, row in pairs) / n
    if agreed / n < LONGEST_SHARE or not _above(math.floor(agreed), n, max(right, _chance(rows))):
        return None
    sentence = (
        f"The model chooses the longest option in {agreed / n:.1%} of the questions, where the longest is right in "
        f"{right:.1%}"
    )
    return _finding("longest_option_habit", agreed / n, n, sentence)


def _chance(rows: Sequence[Prediction]) -> float:
    """Expected accuracy of guessing."""
    return sum(1 / row.n_options for row in rows) / len(rows)


def _above(count: int, n: int, share: float) -> bool:
    """Check that `count` of `n` is too many to come about by chance where the expected share is `share`."""
    return bool(binom.sf(count - 1, n, share) < SURE)

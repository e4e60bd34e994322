"""Contamination: test questions among the training questions, and the accuracy that rests on them.

Test and training questions are compared by the checks of `CHECKS`, from the strictest to the loosest. A hit of the
last two is a suspicion and no proof: look at the pair before you believe it.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np

from cyberlm.data.near_duplicates import alike_between, words_of
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.outcomes import right
from cyberlm.evaluation.predictions import Predictions
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import Example

CHECKS = {
    "identical": "the same question, options and gold option",
    "question": "the same question text",
    "normalised": "the same question text but for case, punctuation, white space and Unicode form",
    "jaccard": "question words of which at least 0.8 are shared",
    "ngram": "13 consecutive words of question and options shared",
}
JACCARD = 0.8
"""Least share of two questions' words that is called alike: `data.near_duplicate_jaccard` unless that was changed."""
NGRAM = 13
"""Words (Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C)."""
COMMON_NGRAM = 10
"""An n-gram of more training texts than this is a common phrase and no leak (the same appendix)."""
MAX_NAMED = 10
"""Training questions named for one test question and check."""

Words = tuple[str, ...]
Matches = dict[int, list[int]]
"""By row of the test questions, in order: the rows of the training questions that are the same by some check."""
Key = TypeVar("Key", bound=Hashable)


def contamination(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Test questions that each check found among the seen ones, and accuracy apart on these and on the others.

    Flagged questions may be easier or harder than the others even for a model that never saw them: compare the
    difference with the base model's.
    """
    if not context.seen:
        return
    found, n = _found(context), len(context.questions)
    flagged = np.zeros(n, dtype=bool)
    flagged[list(set(chain.from_iterable(found.values())))] = True
    total, exact = int(flagged.sum()), len(found["question"])
    note = f"{exact} exact and {total - exact} near copies of training questions among {n} test questions"
    yield Metric("leaks", total, n=n, note=f"Leak audit: {note}", format_spec=".0f", place="note")
    for check, matches in found.items():
        pairs = _pairs(matches, context.questions, context.seen)
        named = ", ".join(f"{test_id} is {train_id}" for test_id, train_id in pairs)
        yield Metric(f"leaks_{check}", len(matches), n=n, note=named, format_spec=".0f", place="detail")
    correct = right(predictions.test)
    for name, asked in (("accuracy_flagged", flagged), ("accuracy_clean", ~flagged)):
        if flagged.any() and asked.any():
            label = f"accuracy, {'not ' if asked is not flagged else ''}flagged by a leak check"
            yield share_metric(name, correct[asked], label=label, place="evidence")


@functools.lru_cache(maxsize=1)
def _found(context: EvalSet) -> dict[str, Matches]:
    return find_contamination(context.questions, context.seen)


def find_contamination(test: Sequence[Example], train: Sequence[Example]) -> dict[str, Matches]:
    """Compares every test question with every question that a model has seen, by each of `CHECKS`."""
    texts = ([words_of(" ".join((q.question, *q.options))) for q in part] for part in (test, train))
    words = ([words_of(question.question) for question in part] for part in (test, train))
    return {**_same_text(test, train), "jaccard": _alike(*words), "ngram": _share_ngram(*texts)}


def refuse_leaked(test: Sequence[Example], train: Sequence[Example], run: str) -> None:
    """Refuses to score questions that a run was trained on, in the same options or others, reordered or reworded.

    Questions that are only nearly the same (`jaccard`, `ngram`) are not refused: the metrics count them.

    Raises:
        RunError: If the text of a test question is that of a training question, case and punctuation apart.
    """
    twins: dict[str, tuple[str, str]] = {}
    for check, matches in _same_text(test, train).items():
        for test_id, train_id in _pairs(matches, test, train):
            twins.setdefault(test_id, (train_id, CHECKS[check]))
    if twins:
        raise RunError(
            f"{len(twins)} of {len(test)} questions were trained on or validated on in {run}: "
            "scoring them would measure memory.",
            [Problem(f"{test_id} is {train_id} of the run: {how}") for test_id, (train_id, how) in twins.items()],
            f"The run's own test questions: python evaluate.py run={run}\n"
            "A file held out from the start: python train.py data=cybermetric data.size=2000 data.test_size=500",
        )


def _pairs(matches: Matches, test: Sequence[Example], train: Sequence[Example]) -> list[tuple[str, str]]:
    """Ids of the test and the training question of each match, at most `MAX_NAMED` for one test question."""
    return [(test[i].id, train[j].id) for i, rows in matches.items() for j in rows[:MAX_NAMED]]


def _same_text(test: Sequence[Example], train: Sequence[Example]) -> dict[str, Matches]:
    """Matches of the checks that leave no doubt."""
    keys: dict[str, Callable[[Example], Hashable]] = {
        "identical": lambda question: question.hash,
        "question": lambda question: question.question,
        "normalised": lambda question: words_of(question.question),
    }
    found = {}
    for check, key in keys.items():
        rows = _rows_of(map(key, train))
        found[check] = {i: rows[value] for i, value in enumerate(map(key, test)) if value in rows}
    return found


def _alike(test: Sequence[Words], train: Sequence[Words]) -> Matches:
    """Matches of word sets with a Jaccard index of at least `JACCARD`."""
    found: Matches = {}
    for i, j in alike_between(list(map(frozenset, test)), list(map(frozenset, train)), JACCARD):
        found.setdefault(i, []).append(j)
    return found


def _share_ngram(test: Sequence[Words], train: Sequence[Words]) -> Matches:
    """Matches of texts that share an n-gram that is not common; a shorter text has none."""
    train_rows = _rows_of(train)  # equal texts count once
    wanted = {ngram for words in test for ngram in _ngrams(words)}
    holders: defaultdict[Words, list[Words]] = defaultdict(list)
    for words in train_rows:
        for ngram in _ngrams(words) & wanted:
            holders[ngram].append(words)
    leaked = {ngram: texts for ngram, texts in holders.items() if len(texts) <= COMMON_NGRAM}
    found = {}
    for i, words in enumerate(test):
        texts = {text for ngram in _ngrams(words) & leaked.keys() for text in leaked[ngram]}
        if texts:
            found[i] = sorted(row for text in texts for row in train_rows[text])
    return found


def _ngrams(words: Words) -> set[Words]:
    return {words[start : start + NGRAM] for start in range(len(words) - NGRAM + 1)}


def _rows_of(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Rows that hold each key, by key in order of first appearance."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows

"""Contamination: test questions among the training questions, and the accuracy that rests on them.

Test and training questions are compared by the checks of `CHECKS`, from the strictest to the loosest. A hit of the
last two is a suspicion and no proof: look at the pair before you believe it.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from cyberlm.data.near_duplicates import number_words, similar_pairs_between, words_of
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Predictions, has_candidates, right
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.garbage_collection import gc_disabled
from cyberlm.tasks.task import LETTERS, Example

CHECKS = {
    "identical": "the same question, options and gold option",
    "question": "the same question text",
    "normalised": "the same question text but for case, punctuation, white space and Unicode form",
    "jaccard": "question words of which at least 0.8 are shared",
    "ngram": "13 consecutive words of question and options shared",
}
JACCARD = 0.8
"""Least Jaccard index of two questions' words: the default of `data.near_duplicate_jaccard`."""
NGRAM = 13
"""Words (Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C)."""
COMMON_NGRAM = 10
"""An n-gram of more training texts than this is a common phrase and no contamination (the same appendix)."""
MAX_NAMED = 10
"""Training questions named for one test question and check."""

Words = tuple[str, ...]
Matches = dict[int, list[int]]
"""By row of the test questions, in order: the rows of the training questions that are the same by some check."""


def contamination(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Test questions that each check found among the seen ones, and accuracy on these and on the others.

    Flagged questions may be easier or harder than the others even for a model that never saw them: compare the
    difference with the base model's.
    """
    if not context.seen:
        return
    found, n = _matches(context), len(context.questions)
    flagged = np.zeros(n, dtype=bool)
    flagged[list(set(chain.from_iterable(found.values())))] = True
    total, exact = int(flagged.sum()), len(found["question"])
    note = f"{exact} exact and {total - exact} near copies of training questions among {n} test questions"
    yield Metric("leaks", total, n=n, note=f"Leak audit: {note}", format_spec=".0f", place="note")
    for check, matches in found.items():
        pairs = _pairs(matches, context.questions, context.seen)
        named = ", ".join(f"{test_id} is {train_id}" for test_id, train_id in pairs)
        yield Metric(f"leaks_{check}", len(matches), n=n, note=named, format_spec=".0f", place="detail")
    chosen = has_candidates(predictions.test)
    if not chosen and any(row.generated is None for row in predictions.test):
        return
    correct = right(predictions.test, generated=not chosen)
    for name, asked in (("accuracy_flagged", flagged), ("accuracy_clean", ~flagged)):
        if flagged.any() and asked.any():
            label = f"accuracy, {'not ' if asked is not flagged else ''}flagged by a leak check"
            yield share_metric(name, correct[asked], label=label, place="evidence")


@functools.lru_cache(maxsize=1)
def _matches(context: EvalSet) -> dict[str, Matches]:
    return find_contamination(context.questions, context.seen)


@gc_disabled()
def find_contamination(test: Sequence[Example], train: Sequence[Example]) -> dict[str, Matches]:
    """Compares every test question with every question that a model has seen, by each of `CHECKS`."""
    sets = number_words(words_of(question.question) for question in chain(test, train))
    similar: Matches = {}
    for i, j in similar_pairs_between(sets, len(test), JACCARD):
        similar.setdefault(i, []).append(j)
    return {**_same_text(test, train), "jaccard": similar, "ngram": _share_ngram(test, train)}


def refuse_contaminated(test: Sequence[Example], train: Sequence[Example], run: str) -> None:
    """Refuses to score questions that a run was trained on, in the same options or others, reordered or reworded.

    Questions that are only nearly the same (`jaccard`, `ngram`) are not refused: the metrics count them.

    Raises:
        RunError: If the text of a test question is that of a training question but for case and punctuation.
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
    keys: dict[str, Callable[[Example], str]] = {
        "identical": lambda question: question.hash,
        "question": lambda question: question.question,
        "normalised": lambda question: " ".join(words_of(question.question)),
    }
    found = {}
    for check, key in keys.items():
        rows: dict[str, list[int]] = {}
        for row, question in enumerate(train):
            rows.setdefault(key(question), []).append(row)
        found[check] = {i: rows[key(question)] for i, question in enumerate(test) if key(question) in rows}
    return found


def _share_ngram(test: Sequence[Example], train: Sequence[Example]) -> Matches:
    """Matches of texts that share an n-gram that is not common; a shorter text has none."""
    wanted = {ngram for question in test for ngram in _ngrams(_all_words(question))}
    holders: defaultdict[Words, dict[Words, list[int]]] = defaultdict(dict)
    for row, question in enumerate(train):
        words = _all_words(question)
        for ngram in _ngrams(words) & wanted:
            texts = holders[ngram]
            if words in texts or len(texts) <= COMMON_NGRAM:  # one more than that says enough
                texts.setdefault(words, []).append(row)  # equal texts count once
    rare = {ngram: texts for ngram, texts in holders.items() if len(texts) <= COMMON_NGRAM}
    shared = {ngram: list(chain.from_iterable(texts.values())) for ngram, texts in rare.items()}
    found = {}
    for i, question in enumerate(test):
        rows = {row for ngram in _ngrams(_all_words(question)) & shared.keys() for row in shared[ngram]}
        if rows:
            found[i] = sorted(rows)
    return found


def _all_words(question: Example) -> Words:
    """Words of a question and its options; more options than letters are classes, the same for all questions."""
    options = question.options if len(question.options) <= len(LETTERS) else ()
    return words_of(" ".join((question.question, *options)))


def _ngrams(words: Words) -> set[Words]:
    return {words[start : start + NGRAM] for start in range(len(words) - NGRAM + 1)}

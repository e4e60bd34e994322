"""Which test questions stand among the training questions, and how much of the accuracy rests on them.

Test and training questions are compared by the checks of `CHECKS`, from the strictest to the loosest. A hit of the
last two is a suspicion and no proof: look at the pair before you believe it.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from cyberlm.data.near_duplicates import alike_between, words_of
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import Question

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
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Leak:
    """A test question and a training question that are the same by some check: their ids."""

    test: str
    train: str


@dataclass(frozen=True)
class LeakAudit:
    """What stands on both sides.

    Attributes:
        n_test, n_train: Questions compared.
        tested: Hashes of the test questions, in order.
        leaks: By check, in the order of `CHECKS`: the pairs it found, in the order of the test questions; for one test
            question at most `MAX_NAMED` training questions are named.
        n_exact: Test questions whose text, character for character, is that of a training question.
        n_near: Test questions that another check found, but not that one.
        flagged: Hashes of the test questions that any check found, in order.
    """

    n_test: int
    n_train: int
    tested: tuple[str, ...]
    leaks: dict[str, tuple[Leak, ...]]
    n_exact: int
    n_near: int
    flagged: tuple[str, ...]


@dataclass(frozen=True)
class CleanAccuracy:
    """Accuracy by likelihood apart on clean and on flagged (dirty) test questions; None where there are none.

    Flagged questions may be easier or harder than the others even for a model that never saw them: compare the
    difference with the base model's.
    """

    accuracy_clean: float | None
    correct_clean: int
    n_clean: int
    accuracy_dirty: float | None
    correct_dirty: int
    n_dirty: int


def audit_leaks(test: Sequence[Question], train: Sequence[Question]) -> LeakAudit:
    """Compares every test question with every training question.

    Args:
        test: What is scored.
        train: What a model has seen: give the validation questions, too, for they chose the checkpoint.
    """
    test_words, train_words = ([words_of(question.question) for question in part] for part in (test, train))
    found = {
        **_same_text(test, train, test_words, train_words),
        "jaccard": _alike(test_words, train_words),
        "ngram": _share_ngram(
            [_all_words(question) for question in test], [_all_words(question) for question in train]
        ),
    }
    flagged = sorted(set(chain.from_iterable(found.values())))
    return LeakAudit(
        n_test=len(test),
        n_train=len(train),
        tested=tuple(question.hash for question in test),
        leaks={check: _named(rows, test, train) for check, rows in found.items()},
        n_exact=len(found["question"]),
        n_near=len(flagged) - len(found["question"]),
        flagged=tuple(dict.fromkeys(test[i].hash for i in flagged)),
    )


def accuracy_clean_and_dirty(audit: LeakAudit, predictions: Sequence[Prediction]) -> CleanAccuracy:
    """Accuracy apart on the test questions that the audit flagged and on those that it did not.

    Args:
        audit: Of the questions that were scored.
        predictions: One for each of them, in any order.

    Raises:
        RunError: If the predictions are not of the questions that were audited.
    """
    tested, answered = Counter(audit.tested), Counter(prediction.hash for prediction in predictions)
    if tested != answered:
        raise RunError(
            "The predictions are not of the questions that were audited for leaks.",
            [
                Problem(
                    f"{(tested - answered).total()} of {audit.n_test} audited questions have no prediction, "
                    f"{(answered - tested).total()} of {len(predictions)} predictions are of other questions",
                    allowed="one prediction for each audited question",
                )
            ],
            hint="Audit and score the same questions.",
        )
    flagged = set(audit.flagged)
    dirty = [prediction.correct for prediction in predictions if prediction.hash in flagged]
    clean = [prediction.correct for prediction in predictions if prediction.hash not in flagged]
    return CleanAccuracy(
        accuracy_clean=sum(clean) / len(clean) if clean else None,
        correct_clean=sum(clean),
        n_clean=len(clean),
        accuracy_dirty=sum(dirty) / len(dirty) if dirty else None,
        correct_dirty=sum(dirty),
        n_dirty=len(dirty),
    )


def refuse_leaked(test: Sequence[Question], train: Sequence[Question], run: str) -> None:
    """Refuses to score questions that a run was trained on, in the same options or others, reordered or reworded.

    What is only nearly the same (`jaccard`, `ngram`) is not refused: the audit counts it.

    Args:
        test: The questions to be scored.
        train: Those that the run has seen.
        run: Its folder.

    Raises:
        RunError: If the text of a test question is that of a training question, case and punctuation apart.
    """
    words = ([words_of(question.question) for question in part] for part in (test, train))
    twins: dict[str, tuple[str, str]] = {}
    for check, rows in _same_text(test, train, *words).items():
        for leak in _named(rows, test, train):
            twins.setdefault(leak.test, (leak.train, CHECKS[check]))
    if twins:
        raise RunError(
            f"{len(twins)} of {len(test)} questions were trained on or validated on in {run}: "
            "scoring them would measure memory.",
            [Problem(f"{test_id} is {train_id} of the run: {how}") for test_id, (train_id, how) in twins.items()],
            f"The run's own test questions: python evaluate.py run={run}\n"
            "A file held out from the start: python train.py data=cybermetric data.size=2000 data.test_size=500",
        )


def _same_text(
    test: Sequence[Question], train: Sequence[Question], test_words: Sequence[Words], train_words: Sequence[Words]
) -> dict[str, dict[int, list[int]]]:
    """The checks that leave no doubt: by check, by row of `test`, the rows of `train`."""
    return {
        "identical": _same([question.hash for question in test], [question.hash for question in train]),
        "question": _same([question.question for question in test], [question.question for question in train]),
        "normalised": _same(test_words, train_words),
    }


def _same(test: Sequence[Hashable], train: Sequence[Hashable]) -> dict[int, list[int]]:
    """By row of `test`: the rows of `train` with an equal key."""
    rows = _rows_of(train)
    return {i: rows[key] for i, key in enumerate(test) if key in rows}


def _alike(test: Sequence[Words], train: Sequence[Words]) -> dict[int, list[int]]:
    """By row of `test`: the rows of `train` whose word set has a Jaccard index of at least `JACCARD`."""
    test_rows, train_rows = _rows_of(map(frozenset, test)), _rows_of(map(frozenset, train))
    test_sets, train_sets = list(test_rows), list(train_rows)
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in alike_between(test_sets, train_sets, JACCARD):
        alike[a].extend(train_rows[train_sets[b]])
    return {i: sorted(rows) for a, rows in alike.items() for i in test_rows[test_sets[a]]}


def _share_ngram(test: Sequence[Words], train: Sequence[Words]) -> dict[int, list[int]]:
    """By row of `test`: the rows of `train` that share an n-gram that is not common; a shorter text has none."""
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


def _all_words(question: Question) -> Words:
    """Words of the question and its options, in order."""
    return words_of(" ".join((question.question, *question.options)))


def _ngrams(words: Words) -> set[Words]:
    return {words[start : start + NGRAM] for start in range(len(words) - NGRAM + 1)}


def _rows_of(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """By key, in order of first appearance: the rows that hold it."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows


def _named(found: Mapping[int, Sequence[int]], test: Sequence[Question], train: Sequence[Question]) -> tuple[Leak, ...]:
    return tuple(Leak(test[i].id, train[j].id) for i in sorted(found) for j in found[i][:MAX_NAMED])

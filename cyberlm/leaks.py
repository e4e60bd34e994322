"""Which test questions stand among the training questions, and how much of the accuracy rests on them.

Test and training questions are compared by the checks of `CHECKS`, from the strictest to the loosest. A hit of the
last two is a suspicion and no proof: look at the pair before you believe it.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from cyberlm.errors import Problem, RunError
from cyberlm.records import Prediction, Question
from cyberlm.similarity import alike_between, words_of

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
    found = {
        "identical": _same_key(test, train, [q.hash for q in test], [q.hash for q in train]),
        "question": _same_key(test, train, [q.question for q in test], [q.question for q in train]),
        "normalised": _same_key(
            test, train, [words_of(q.question) for q in test], [words_of(q.question) for q in train]
        ),
        "jaccard": _alike_questions(test, train),
        "ngram": _shared_ngrams(test, train),
    }
    flagged = sorted(set(chain.from_iterable(found.values())))
    return LeakAudit(
        n_test=len(test),
        n_train=len(train),
        tested=tuple(question.hash for question in test),
        leaks={check: _named(rows, test, train) for check, rows in found.items()},
        n_exact=len(found["question"]),
        n_near=len(set(flagged) - found["question"].keys()),
        flagged=tuple(dict.fromkeys(test[i].hash for i in flagged)),
    )

"""Contamination: each planted leak is found by the checks that should find it and by no other, in any order."""

from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_support import answered, cybermetric, measured, needs_files

from cyberlm.config.schema import DataConfig
from cyberlm.data import near_duplicates
from cyberlm.data.near_duplicates import CROWD, number_words, similar_pairs, similar_pairs_between
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.metrics.contamination import (
    CHECKS,
    COMMON_NGRAM,
    MAX_NAMED,
    contamination,
    find_contamination,
    refuse_contaminated,
)
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.task import Example

TEXT = "Which attack floods a server with more requests than allowed?"  # 10 words
OPTIONS = ("Denial of service", "Phishing by mail", "Shoulder surfing", "A rainbow table")
OTHERS = ("Key escrow", "Port knocking", "Salting", "Zone transfer")
ORIGINAL = Example("train:1", TEXT, OPTIONS, 0)
TRAIN = (
    Example("train:0", "What does a certificate authority sign?", ("Certificates", "Mail", "Logs", "Keys"), 0),
    ORIGINAL,
    Example("train:2", "How long is an IPv6 address?", ("128 bits", "64 bits", "32 bits", "48 bits"), 0),
)


def audit(test: Sequence[Example], choices: Sequence[int], train: Sequence[Example]) -> dict[str, Metric]:
    rows = [answered(question, choice) for question, choice in zip(test, choices, strict=True)]
    return measured(contamination, test, rows, seen=train)


def found_by(test: Sequence[Example], train: Sequence[Example]) -> set[str]:
    return {check for check, matches in find_contamination(test, train).items() if matches}


def numbered(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{k}" for k in range(count))


ALL, SAME_TEXT = {"identical", "question", "normalised", "jaccard", "ngram"}, {"question", "normalised", "jaccard"}
NORMALISED = {"normalised", "jaccard"}
CASES = [
    (TEXT, OPTIONS, 0, ALL),
    (TEXT, OPTIONS, 1, ALL - {"identical"}),  # another key, as when the authors correct one
    (TEXT, OPTIONS[::-1], 3, SAME_TEXT),
    (TEXT, OTHERS, 0, SAME_TEXT),
    (TEXT.upper(), OTHERS, 0, NORMALISED),
    ("Which attack \u201cfloods\u201d a server \u2014 with more requests than allowed", OTHERS, 0, NORMALISED),
    (TEXT.replace("fl", "\ufb02").replace(" ", " \u00a0\t"), OTHERS, 0, NORMALISED),  # a ligature
    (TEXT.lower(), OPTIONS, 0, NORMALISED | {"ngram"}),
    (TEXT.replace("server", "host"), OTHERS, 0, {"jaccard"}),  # 9 of 11 words
    ("A server with more requests than allowed: which attack floods?", OTHERS, 0, {"jaccard"}),
    (TEXT.replace("server with", "host by"), OTHERS, 0, set()),  # 8 of 12 words
    ("???", OTHERS, 0, set()),
]


@pytest.mark.parametrize(("text", "options", "gold", "checks"), CASES)
def test_a_planted_leak_is_found_by_the_checks_that_should(text, options, gold, checks) -> None:
    test = [Example("test:0", text, options, gold), Example("test:1", "What is a nonce?", ("A number", "A user"), 0)]
    assert find_contamination(test, TRAIN) == {check: {0: [1]} if check in checks else {} for check in CHECKS}
    found = audit(test, (0, 0), TRAIN)
    exact = int("question" in checks)
    assert found["leaks"].note == (
        f"Leak audit: {exact} exact and {bool(checks) - exact} near copies of training questions among 2 test questions"
    )
    named = {check: found[f"leaks_{check}"].note for check in CHECKS}
    assert named == {check: "test:0 is train:1" if check in checks else "" for check in CHECKS}


@pytest.mark.parametrize("shared", [12, 13, 18])
def test_thirteen_words_running_are_a_leak_and_twelve_are_not(shared: int) -> None:
    checks = {"ngram"} if shared >= 13 else set()
    planted = Example("test:0", f"Complete this: {numbered('w', shared)}", ("x", "y"), 0)
    train = Example("train:0", "What is this?", (f"It is {numbered('w', shared)}, no more", "z"), 0)
    assert found_by([planted], [train]) == checks
    into_options = Example("test:0", numbered("w", shared - 6), (numbered("v", 6), "x"), 0)
    train = Example("train:0", f"Now, {into_options.question}", (numbered("v", 6), "y"), 1)
    assert found_by([into_options], [train]) & {"ngram"} == checks


def test_a_common_phrase_is_no_leak_but_copies_of_one_text_are_not_common() -> None:
    planted = [Example("test:0", numbered("w", 13), ("x", "y"), 0)]
    texts = [f"{numbered('w', 13)} {numbered(f'v{k}', 9)}" for k in range(COMMON_NGRAM + 1)]
    train = [Example(f"train:{k}", text, ("x", "y"), 0) for k, text in enumerate(texts)]
    assert find_contamination(planted, train[:-1])["ngram"] == {0: list(range(COMMON_NGRAM))}
    assert found_by(planted, train) == set()
    assert found_by(planted, train[:1] * (COMMON_NGRAM + 1)) == {"ngram"}


def test_more_options_than_letters_are_classes_and_no_shared_text() -> None:
    classes = tuple(numbered("c", 40).split())
    test = [Example("test:0", "It dumps LSASS", classes, 3), Example("test:1", "It logs keys", classes, 1)]
    train = Example("train:0", "Mimikatz reads credentials out of LSASS", classes, 3)
    assert found_by(test, [train]) == found_by(test, [replace(train, options=classes[:30])]) == set()
    long = replace(train, question=f"{numbered('w', 13)} {numbered('v', 9)}")
    assert found_by([*test, replace(long, question=numbered("w", 13))], [long]) == {"ngram"}


def test_several_matches_are_named_and_the_accuracy_of_clean_questions() -> None:
    tests = [replace(ORIGINAL, id=f"test:{k}") for k in range(2)]
    train = [replace(ORIGINAL, id=f"train:{k}") for k in range(MAX_NAMED + 5)]
    found = audit(tests, (0, 0), train)
    assert (found["leaks"].value, found["leaks_ngram"].value) == (2, 2)
    assert {found[f"leaks_{check}"].note.count("train") for check in CHECKS} == {2 * MAX_NAMED}
    for nothing in (((), TRAIN), (TRAIN, ()), ((), ())):
        assert find_contamination(*nothing) == {check: {} for check in CHECKS}
    assert audit(TRAIN, (0, 0, 0), ()) == {}
    # accuracy of clean and of flagged questions
    clean = [Example(f"test:{k}", numbered(f"w{k}", 9), ("x", "y"), 0) for k in range(3)]
    flagged = [replace(question, id=f"test:{k}") for k, question in enumerate(TRAIN[:2], start=3)]
    found = audit([*clean, *flagged], (0, 1, 0, 0, 1), TRAIN)
    shares = {name: (found[name].value, found[name].n) for name in ("accuracy_clean", "accuracy_flagged")}
    assert shares == {"accuracy_clean": (2 / 3, 3), "accuracy_flagged": (1 / 2, 2)}
    assert not shares.keys() & audit(clean, (0, 1, 0), TRAIN).keys()
    assert "accuracy_clean" not in audit(flagged, (0, 1), TRAIN)


def test_the_screen_of_a_refusal() -> None:
    test = (
        replace(ORIGINAL, id="test:0"),
        Example("test:1", "What does a certificate authority sign", ("x", "y"), 0),
        Example("test:2", "How long is an IPv6 address?", ("64 bits", "128 bits"), 1),
        Example("test:3", TEXT.replace("server", "host"), OTHERS, 0),  # only nearly the same: counted, not refused
    )
    with pytest.raises(RunError) as caught:
        refuse_contaminated(test, TRAIN, "outputs/mine")
    assert caught.value.screen() == (
        "3 of 4 questions were trained on or validated on in outputs/mine: scoring them would measure memory.\n"
        "  - test:0 is train:1 of the run: the same question, options and gold option\n"
        "  - test:2 is train:2 of the run: the same question text\n"
        "  - test:1 is train:0 of the run: "
        "the same question text but for case, punctuation, white space and Unicode form\n"
        "\n"
        "The run's own test questions: python evaluate.py run=outputs/mine\n"
        "A file held out from the start: python train.py data=cybermetric data.size=2000 data.test_size=500"
    )
    refuse_contaminated(test[3:], TRAIN, "outputs/mine")


WORD_SETS = st.lists(st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1), max_size=12)
THRESHOLDS = st.one_of(st.sampled_from([0.5, 2 / 3, 0.75, 0.8, 1.0]), st.floats(0.5, 1.0))


def is_alike(left: frozenset[str], right: frozenset[str], threshold: float) -> bool:
    return len(left & right) / len(left | right) >= threshold


@settings(deadline=None)
@given(WORD_SETS, WORD_SETS, THRESHOLDS, st.sampled_from([1, 3, CROWD]))
def test_no_pair_of_word_sets_is_missed_or_guessed(left, right, threshold: float, crowd: int) -> None:
    within = [(i, j) for i, a in enumerate(left) for j, b in enumerate(left[:i]) if is_alike(a, b, threshold)]
    between = [(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if is_alike(a, b, threshold)]
    with mock.patch.object(near_duplicates, "CROWD", crowd):
        assert similar_pairs(number_words(left), threshold) == within
        assert similar_pairs_between(number_words([*left, *right]), len(left), threshold) == between


@needs_files
def test_500_and_2000_share_130_questions_and_a_split_of_both_shares_none() -> None:
    small, large = cybermetric(500), cybermetric(2000)
    found = find_contamination(small.questions, large.questions)
    counts = {"identical": 96, "question": 130, "normalised": 130, "jaccard": 134, "ngram": 128}
    assert {check: len(matches) for check, matches in found.items()} == counts
    split = split_questions(DataConfig(name="mcq"), [large, replace(small, held_out=True)])
    found = find_contamination(split.test, split.train + split.validation)
    # Of one test question: an option that is the text of another question.
    assert {check: len(matches) for check, matches in found.items() if matches} == {"ngram": 1}

"""Contamination: each planted leak is found by the checks that should find it and by no other, in any order."""

import random
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_support import answered, cybermetric, measured, needs_files

from cyberlm.config.schema import DataConfig
from cyberlm.data import near_duplicates
from cyberlm.data.near_duplicates import CROWD, number_words, similar_pairs, similar_pairs_between, words_of
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.metrics.contamination import (
    CHECKS,
    COMMON_NGRAM,
    JACCARD,
    MAX_NAMED,
    NGRAM,
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


def pairs_of(test: Sequence[Example], train: Sequence[Example]) -> dict[str, set[tuple[str, str]]]:
    found = find_contamination(test, train)
    return {
        check: {(test[i].id, train[j].id) for i, rows in matches.items() for j in rows}
        for check, matches in found.items()
    }


def numbered(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{k}" for k in range(count))


# --- one planted leak of each kind ---


ALL, SAME_TEXT = {"identical", "question", "normalised", "jaccard", "ngram"}, {"question", "normalised", "jaccard"}
NORMALISED = {"normalised", "jaccard"}
CASES = [
    (TEXT, OPTIONS, 0, ALL),
    (TEXT, OPTIONS, 1, ALL - {"identical"}),  # another key, as when the authors correct one
    (TEXT, OPTIONS[::-1], 3, SAME_TEXT),
    (TEXT, OTHERS, 0, SAME_TEXT),
    (TEXT.upper(), OTHERS, 0, NORMALISED),
    ("Which attack \u201cfloods\u201d a server \u2014 with more requests than allowed", OTHERS, 0, NORMALISED),
    (TEXT.replace(" ", " \u00a0\t"), OTHERS, 0, NORMALISED),
    (TEXT.replace("fl", "\ufb02"), OTHERS, 0, NORMALISED),  # a ligature
    (TEXT.lower(), OPTIONS, 0, NORMALISED | {"ngram"}),
    (TEXT.replace("server", "host"), OTHERS, 0, {"jaccard"}),  # 9 of 11 words
    ("A server with more requests than allowed: which attack floods?", OTHERS, 0, {"jaccard"}),
    ("Which flood, and which attack a server?", OPTIONS, 0, set()),
    (TEXT.replace("server with", "host by"), OTHERS, 0, set()),  # 8 of 12 words
    ("Which key is public?", OTHERS, 0, set()),
    ("???", OTHERS, 0, set()),
]


@pytest.mark.parametrize(("text", "options", "gold", "checks"), CASES)
def test_a_planted_leak_is_found_by_the_checks_that_should(
    text: str, options: tuple[str, ...], gold: int, checks: set[str]
) -> None:
    test = [Example("test:0", text, options, gold), Example("test:1", "What is a nonce?", ("A number", "A user"), 0)]
    assert find_contamination(test, TRAIN) == {check: {0: [1]} if check in checks else {} for check in CHECKS}
    found = audit(test, (0, 0), TRAIN)
    exact = int("question" in checks)
    assert found["leaks"].note == (
        f"Leak audit: {exact} exact and {bool(checks) - exact} near copies of training questions among 2 test questions"
    )
    named = {check: found[f"leaks_{check}"].note for check in CHECKS}
    assert named == {check: "test:0 is train:1" if check in checks else "" for check in CHECKS}


@pytest.mark.parametrize(("shared", "checks"), [(NGRAM - 1, set()), (NGRAM, {"ngram"}), (NGRAM + 5, {"ngram"})])
def test_thirteen_words_running_are_a_leak_and_twelve_are_not(shared: int, checks: set[str]) -> None:
    planted = Example("test:0", f"Complete this: {numbered('w', shared)}", ("x", "y"), 0)
    train = Example("train:0", "What is this?", (f"It is {numbered('w', shared)}, no more", "z"), 0)
    assert found_by([planted], [train]) == checks
    into_options = [Example("test:0", numbered("w", shared - 6), (numbered("v", 6), "x"), 0)]
    train = Example("train:0", f"Now, {into_options[0].question}", (numbered("v", 6), "y"), 1)
    assert ("ngram" in found_by(into_options, [train])) is ("ngram" in checks)


def test_a_common_phrase_is_no_leak_but_copies_of_one_text_are_not_common() -> None:
    planted = [Example("test:0", numbered("w", 13), ("x", "y"), 0)]
    texts = [f"{numbered('w', 13)} {numbered(f'v{k}', 9)}" for k in range(COMMON_NGRAM + 1)]
    train = [Example(f"train:{k}", text, ("x", "y"), 0) for k, text in enumerate(texts)]
    assert find_contamination(planted, train[:-1])["ngram"] == {0: list(range(COMMON_NGRAM))}
    assert found_by(planted, train) == set()
    assert found_by(planted, train[:1] * (COMMON_NGRAM + 1)) == {"ngram"}


def test_more_options_than_letters_are_classes_and_no_shared_text() -> None:
    classes = tuple(numbered("c", 40).split())
    test = [
        Example("test:0", "It dumps the memory of LSASS", classes, 3),
        Example("test:1", "It logs keys", classes, 1),
    ]
    train = Example("train:0", "Mimikatz reads credentials out of LSASS", classes, 3)
    assert found_by(test, [train]) == set()
    assert found_by(test, [replace(train, options=classes[:30])]) == set()
    long = replace(train, question=f"{numbered('w', 13)} {numbered('v', 9)}")
    assert found_by([*test, replace(long, question=numbered("w", 13))], [long]) == {"ngram"}


def test_several_matches_are_all_named_up_to_a_limit() -> None:
    tests = [replace(ORIGINAL, id=f"test:{k}") for k in range(2)]
    train = [replace(ORIGINAL, id=f"train:{k}") for k in range(MAX_NAMED + 5)]
    found = audit(tests, (0, 0), train)
    assert (found["leaks"].value, found["leaks_ngram"].value) == (2, 2)
    assert {found[f"leaks_{check}"].note.count("train") for check in CHECKS} == {2 * MAX_NAMED}
    for nothing in (((), TRAIN), (TRAIN, ()), ((), ())):
        assert find_contamination(*nothing) == {check: {} for check in CHECKS}
    assert audit(TRAIN, (0, 0, 0), ()) == {}


# --- properties ---

SOME_WORDS = st.lists(st.sampled_from(["a", "b", "C", "d,", "e"]), min_size=1, max_size=7).map(" ".join)
QUESTIONS = st.lists(
    st.builds(
        lambda text, options, gold: Example("", text, tuple(options), gold),
        st.one_of(SOME_WORDS, st.text(max_size=8)),
        st.lists(SOME_WORDS, min_size=2, max_size=3),
        st.integers(0, 1),
    ),
    max_size=8,
)


def with_ids(questions: Sequence[Example], name: str) -> list[Example]:
    return [replace(question, id=f"{name}:{k}") for k, question in enumerate(questions)]


def by_comparing_all(test: Sequence[Example], train: Sequence[Example]) -> dict[str, set[tuple[str, str]]]:
    """The definitions, pair by pair."""

    def grams(question: Example) -> set[tuple[str, ...]]:
        words = words_of(f"{question.question} {' '.join(question.options)}")
        return {words[k : k + 13] for k in range(len(words) - 12)}

    def jaccard(a: Example, b: Example) -> float:
        left, right = set(words_of(a.question)), set(words_of(b.question))
        return len(left & right) / len(left | right)

    same = {
        "identical": lambda a, b: (a.question, a.options, a.gold) == (b.question, b.options, b.gold),
        "question": lambda a, b: a.question == b.question,
        "normalised": lambda a, b: words_of(a.question) == words_of(b.question),
        "jaccard": lambda a, b: jaccard(a, b) >= JACCARD,
        "ngram": lambda a, b: bool(grams(a) & grams(b)),
    }
    return {check: {(a.id, b.id) for a in test for b in train if is_same(a, b)} for check, is_same in same.items()}


@settings(deadline=None, max_examples=50, derandomize=True)
@given(QUESTIONS, QUESTIONS, st.randoms(use_true_random=False))
def test_it_is_what_comparing_every_pair_finds_in_any_order(
    test: list[Example], train: list[Example], rng: random.Random
) -> None:
    test, train = with_ids(test, "test"), with_ids(train, "train")
    expected = by_comparing_all(test, train)
    assert pairs_of(test, train) == expected
    assert expected["identical"] <= expected["question"] <= expected["normalised"] <= expected["jaccard"]
    assert pairs_of(rng.sample(test, len(test)), rng.sample(train, len(train))) == expected
    itself = find_contamination(test, test)["identical"]
    assert all(row in itself[row] for row in range(len(test)))


# --- accuracy ---


def test_accuracy_of_clean_and_flagged_questions() -> None:
    clean = [Example(f"test:{k}", numbered(f"w{k}", 9), ("x", "y"), 0) for k in range(3)]
    flagged = [replace(question, id=f"test:{k}") for k, question in enumerate(TRAIN[:2], start=3)]
    found = audit([*clean, *flagged], (0, 1, 0, 0, 1), TRAIN)
    assert (found["accuracy_clean"].value, found["accuracy_clean"].n) == (2 / 3, 3)
    assert (found["accuracy_flagged"].value, found["accuracy_flagged"].n) == (1 / 2, 2)
    assert not {"accuracy_clean", "accuracy_flagged"} & audit(clean, (0, 1, 0), TRAIN).keys()
    only = audit(flagged, (0, 1), TRAIN)
    assert only["accuracy_flagged"].value == 1 / 2 and "accuracy_clean" not in only


# --- refusal ---


def test_the_screen_of_a_refusal() -> None:
    test = (
        replace(ORIGINAL, id="test:0"),
        Example("test:1", "What does a certificate authority sign", ("x", "y"), 0),
        Example("test:2", "How long is an IPv6 address?", ("64 bits", "128 bits"), 1),
        Example("test:3", "What is a nonce?", ("A number", "A user"), 0),
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
    near = Example("test:0", TEXT.replace("server", "host"), OTHERS, 0)
    assert found_by([near], TRAIN) == {"jaccard"}
    refuse_contaminated([near], TRAIN, "outputs/mine")  # only nearly the same: counted, not refused


# --- the search for pairs of word sets ---

WORD_SETS = st.lists(st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1), max_size=12)
THRESHOLDS = st.one_of(st.sampled_from([0.5, 2 / 3, 0.75, 0.8, 1.0]), st.floats(0.5, 1.0))


def is_alike(left: frozenset[str], right: frozenset[str], threshold: float) -> bool:
    return len(left & right) / len(left | right) >= threshold


@settings(deadline=None)
@given(WORD_SETS, WORD_SETS, THRESHOLDS, st.sampled_from([1, 3, CROWD]))
def test_no_pair_of_word_sets_is_missed_or_guessed(
    left: list[frozenset[str]], right: list[frozenset[str]], threshold: float, crowd: int
) -> None:
    within = [(i, j) for i, a in enumerate(left) for j, b in enumerate(left[:i]) if is_alike(a, b, threshold)]
    between = [(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if is_alike(a, b, threshold)]
    with mock.patch.object(near_duplicates, "CROWD", crowd):
        assert similar_pairs(number_words(left), threshold) == within
        assert similar_pairs_between(number_words([*left, *right]), len(left), threshold) == between


# --- the real files ---


@needs_files
def test_500_and_2000_share_130_questions_a_quarter_of_them_in_other_dress() -> None:
    test, train = cybermetric(500).questions, cybermetric(2000).questions
    found = find_contamination(test, train)
    counts = {"identical": 96, "question": 130, "normalised": 130, "jaccard": 134, "ngram": 128}
    assert {check: len(matches) for check, matches in found.items()} == counts
    assert len(set().union(*found.values())) == 135
    with pytest.raises(RunError, match="130 of 500 questions were trained on"):
        refuse_contaminated(test, train, "outputs/mine")
    assert len(find_contamination(cybermetric(80).questions, test)["question"]) == 80  # 80 lies inside 500


@needs_files
def test_a_split_by_cluster_passes() -> None:
    held_out = split_questions(DataConfig(name="mcq"), [cybermetric(2000), replace(cybermetric(500), held_out=True)])
    train = held_out.train + held_out.validation
    found = find_contamination(held_out.test, train)
    # Of one test question: an option that is the text of another question.
    assert {check: len(matches) for check, matches in found.items() if matches} == {"ngram": 1}
    refuse_contaminated(held_out.test, train, "outputs/mine")

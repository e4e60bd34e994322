"""Shortcut floors by hand-worked examples, and diagnoses: each sign planted is named, and nothing else is."""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MULTIPLE_CHOICE

from cyberlm.config.schema import OnBadRow
from cyberlm.data.readers import read_questions
from cyberlm.evaluation.metrics.baselines import (
    BAD_ECE,
    Finding,
    Floor,
    compare_with_floors,
    diagnose,
    longest_option,
    majority_letter,
    options_only,
    shortcut_floors,
    skill,
    skill_limits,
)
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.shares import wilson
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.questions import LETTERS, Question

DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")
needs_files = pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")


def asked(*rows: tuple[str, str]) -> list[Question]:
    """Questions from (options divided by "/", gold letter)."""
    return [
        Question(f"q:{k}", f"Question {k}?", tuple(options.split("/")), LETTERS.index(letter))
        for k, (options, letter) in enumerate(rows)
    ]


def answered(questions: Sequence[Question], letters: str | Sequence[int]) -> list[Prediction]:
    choices = [LETTERS.index(letter) if isinstance(letter, str) else letter for letter in letters]
    return [
        Prediction(
            id=question.id,
            hash=question.hash,
            gold=question.gold,
            n_options=len(question.options),
            option_logprobs=tuple(0.0 if k == choice else -1.0 for k in range(len(question.options))),
            option_tokens=(1,) * len(question.options),
            option_chars=(1,) * len(question.options),
            choice=choice,
            gold_nll=1.0,
            generated=None,
            parsed=None,
            reference=question.letter,
            prompt_hash="p",
        )
        for question, choice in zip(questions, choices, strict=True)
    ]


def balanced(count: int, n_options: int = 4) -> list[Question]:
    """Gold letters in turn; the options' lengths are in random order, so that no shortcut helps."""
    rng = random.Random(0)
    lengths = [f"{'x' * k}" for k in range(1, n_options + 1)]
    return [
        Question(f"q:{k}", f"Question {k}?", tuple(rng.sample(lengths, n_options)), k % n_options) for k in range(count)
    ]


# --- the floors ---

TEST = asked(
    ("aaaa/bb/cc/dd", "A"),  # the longest is right
    ("a/bbb/ccc/d", "C"),  # one of two longest
    ("a/bbb/ccc/d", "D"),  # none of the longest
    ("aa/bb/cc/dd", "B"),  # one of four
    ("a/bb", "B"),  # two options
)


def test_longest_option_shares_the_credit_of_ties() -> None:
    floor = longest_option(TEST)
    assert floor.credits == (1, 1 / 2, 0, 1 / 4, 1)
    assert floor.accuracy == pytest.approx(2.75 / 5)
    assert (floor.name, floor.note) == ("longest_option", "always the option of the most characters")


def test_majority_letter_of_the_training_questions() -> None:
    floor = majority_letter(TEST, asked(("a/b/c/d", "D"), ("a/b/c/d", "D"), ("a/b/c/d", "B")))
    assert floor.credits == (0, 0, 1, 0, 0)
    assert (floor.name, floor.accuracy) == ("majority_letter", 1 / 5)
    assert floor.note == "always D, which is right in 2 of 3 training questions"


def test_majority_letter_of_the_test_questions_says_so() -> None:
    floor = majority_letter(TEST)
    assert (floor.accuracy, floor.credits) == (2 / 5, (0, 0, 0, 1, 1))
    assert floor.note == "always B, which is right in 2 of 5 test questions"
    tied = majority_letter(TEST[:3])
    assert tied.note == "always A, which is right in 1 of 3 test questions (as is C, D)"


def marked(count: int, mark: Callable[[str], str]) -> list[Question]:
    """Questions whose right option carries a mark."""
    rng = random.Random(count)
    questions = []
    for k in range(count):
        options = [" ".join(rng.sample(["key", "log", "hash", "port", "salt", "mail"], 3)) for _ in range(4)]
        options[k % 4] = mark(options[k % 4])
        questions.append(Question(f"q:{k}", f"Question {k}?", tuple(options), k % 4))
    return questions


@pytest.mark.parametrize(
    "mark", [lambda text: f"{text} securely", lambda text: text[:-1], lambda text: " ".join(text.split()[:1])]
)
def test_options_only_finds_a_word_or_a_length_that_gives_the_answer_away(mark: Callable[[str], str]) -> None:
    floor = options_only(marked(80, mark), marked(400, mark))
    assert floor.accuracy > 0.9
    assert floor.note == "a logistic model of the options alone, fitted on 400 questions"


def test_options_only_finds_a_rank_by_length_that_gives_the_answer_away() -> None:
    rng = random.Random(0)
    questions = []
    for k in range(500):
        lengths = rng.sample(range(1, 60), 4)
        second = lengths.index(sorted(lengths)[2])
        questions.append(Question(f"q:{k}", "?", tuple("x" * length for length in lengths), second))
    assert options_only(questions[:100], questions[100:]).accuracy > 0.9


def test_options_only_is_chance_where_options_tell_nothing() -> None:
    floor = options_only(marked(401, str), marked(402, str))
    assert 0.15 < floor.accuracy < 0.35


def test_options_only_reads_neither_the_question_nor_the_test_key() -> None:
    train = marked(200, lambda text: f"{text} securely")
    test = marked(40, lambda text: f"{text} securely")
    reworded = [replace(question, question="Never seen") for question in test]
    rekeyed = [replace(question, gold=(question.gold + 1) % 4) for question in test]
    assert options_only(reworded, [replace(question, question="Nor this") for question in train]) == options_only(
        test, train
    )
    assert options_only(test, train).accuracy > 0.9
    assert options_only(rekeyed, train).accuracy < 0.1


def test_options_only_takes_two_to_eight_options_and_options_without_words() -> None:
    options = ("a", "b", "?!", "", "e f g", "h", "i", "j")
    test = [Question(f"q:{k}", "?", options[:k], k - 1) for k in range(2, 9)]
    floor = options_only(test, test)
    assert len(floor.credits) == 7
    alike = Question("q:0", "?", ("same", "same"), 0)
    assert options_only([alike], test).credits == (1 / 2,)


def test_shortcut_floors_says_what_is_missing() -> None:
    floors = shortcut_floors(TEST)
    assert [floor.name for floor in floors.floors] == ["majority_letter", "longest_option"]
    assert floors.missing == {"options_only": "not measured: there are no training questions to learn it from"}
    assert floors.tested == tuple(question.hash for question in TEST)
    floors = shortcut_floors(TEST, TEST)
    assert [floor.name for floor in floors.floors] == ["majority_letter", "longest_option", "options_only"]
    assert floors.missing == {}
    with pytest.raises(RunError, match="no questions"):
        shortcut_floors([], TEST)


QUESTIONS = st.lists(
    st.builds(
        lambda options, gold: Question("", "?", tuple(options), gold % len(options)),
        st.lists(st.text("ab ", max_size=5), min_size=2, max_size=8),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(QUESTIONS, st.randoms(use_true_random=False))
def test_order_does_not_matter(questions: list[Question], rng: random.Random) -> None:
    order = rng.sample(range(len(questions)), len(questions))
    shuffled = [questions[k] for k in order]
    train = asked(("aa/b/a b", "A"), ("b/bb", "A"), ("a/aaa/b", "B"))
    for first, second in zip(
        shortcut_floors(questions, train).floors, shortcut_floors(shuffled, train).floors, strict=True
    ):
        assert second.accuracy == first.accuracy
        assert second.credits == tuple(first.credits[k] for k in order)
    choices = [rng.randrange(len(question.options)) for question in questions]
    for ece in ((None, None), (0.9, 0.0005)):
        findings = diagnose(questions, answered(questions, choices), *ece)
        assert diagnose(shuffled, answered(shuffled, [choices[k] for k in order]), *ece) == findings


# --- a model against them ---


@pytest.mark.parametrize(
    ("accuracy", "max_floor", "expected"),
    [(0.85, 0.4, 0.75), (0.4, 0.4, 0.0), (1.0, 0.4, 1.0), (0.1, 0.4, -0.5), (0.7, 0.0, 0.7), (1.0, 1.0, None)],
)
def test_skill(accuracy: float, max_floor: float, expected: float | None) -> None:
    assert skill(accuracy, max_floor) == (None if expected is None else pytest.approx(expected))


def test_a_model_against_the_best_floor() -> None:
    report = compare_with_floors(shortcut_floors(TEST), answered(TEST, "ACDDB"))  # right: 1, 2, 3, 5
    assert report.floors == {"majority_letter": 2 / 5, "longest_option": pytest.approx(0.55)}
    assert report.notes == {
        "majority_letter": "always B, which is right in 2 of 5 test questions",
        "longest_option": "always the option of the most characters",
        "options_only": "not measured: there are no training questions to learn it from",
        "no_question": "not measured",
    }
    assert (report.best, report.max_floor, report.accuracy) == ("longest_option", pytest.approx(0.55), 4 / 5)
    assert report.skill == pytest.approx((0.8 - 0.55) / 0.45)
    assert (report.hard_floor, report.n_hard, report.correct_hard, report.accuracy_hard) == ("longest_option", 1, 1, 1)


def test_predictions_without_the_question_name_the_hard_questions() -> None:
    report = compare_with_floors(shortcut_floors(TEST), answered(TEST, "ABDBB"), no_question=answered(TEST, "AADBB"))
    assert (report.best, report.max_floor, report.hard_floor) == ("no_question", 0.8, "no_question")
    assert report.skill == pytest.approx(0)
    assert (report.n_hard, report.correct_hard, report.accuracy_hard) == (1, 0, 0)


def test_a_floor_that_is_always_right_leaves_no_hard_questions() -> None:
    questions = asked(("aa/b", "A"), ("a/bb", "B"))
    report = compare_with_floors(shortcut_floors(questions), answered(questions, "AB"))
    assert (report.max_floor, report.skill, report.n_hard, report.accuracy_hard) == (1, None, 0, None)


def test_predictions_of_other_questions_are_refused() -> None:
    floors, predictions = shortcut_floors(TEST), answered(TEST, "ACDBB")
    with pytest.raises(RunError, match="4 predictions are not of the 5 questions") as caught:
        compare_with_floors(floors, predictions[:4])
    assert f"at place 5: question {TEST[4].hash}, prediction none" in caught.value.screen()
    with pytest.raises(RunError, match=f"at place 1: question {TEST[0].hash}, prediction {TEST[4].hash}"):
        compare_with_floors(floors, predictions[::-1])
    with pytest.raises(RunError, match="are not of"):
        compare_with_floors(floors, predictions, no_question=predictions[::-1])
    with pytest.raises(RunError, match="are not of"):
        diagnose(TEST, predictions[::-1])
    with pytest.raises(RunError, match="no questions"):
        diagnose([], [])


def skill_by_bootstrap(
    correct: np.ndarray, credits: np.ndarray, clusters: np.ndarray, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile interval over clusters drawn whole, both accuracies anew in each resample."""
    rng, found = np.random.default_rng(0), []
    members = [np.flatnonzero(clusters == number) for number in np.unique(clusters)]
    for _ in range(resamples):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        found.append(1 - (1 - correct[rows].mean()) / (1 - credits[rows].mean()))
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return low, high


@pytest.mark.parametrize(("size", "alike"), [(1, 0.0), (1, 0.6), (3, 0.3)])
def test_limits_of_skill_equal_a_paired_bootstrap(size: int, alike: float) -> None:
    rng = np.random.default_rng(1)
    clusters = np.arange(600) // size
    shared, own = rng.random(600)[clusters], rng.random((2, 600))[:, clusters]
    correct, credits = np.where(rng.random(600)[clusters] < alike, shared, own) < np.array([[0.6], [0.4]])
    floor = Floor("drawn", float(credits.mean()), tuple(credits.astype(float)), "")
    limits = skill_limits(correct.tolist(), [floor], clusters)
    assert limits == pytest.approx(skill_by_bootstrap(correct, credits, clusters), abs=0.02)


def test_skill_does_not_take_the_floor_as_known() -> None:
    """Wilson's limits of accuracy, put on skill's scale with the floor as known, are too narrow: they cover 85%."""
    rng, covered = np.random.default_rng(0), np.zeros(2, dtype=int)
    for _ in range(400):
        correct, credits = rng.random((2, 300)) < [[0.42], [0.4]]
        floor = float(credits.mean())
        known = [(limit - floor) / (1 - floor) for limit in wilson(float(correct.mean()), 300)]
        limits = skill_limits(correct.tolist(), [Floor("drawn", floor, tuple(credits.astype(float)), "")])
        covered += [low <= 1 - 0.58 / 0.6 <= high for low, high in (known, limits)]
    assert covered[0] / 400 < 0.88 and 0.92 < covered[1] / 400 < 0.98


def test_the_interval_of_skill_allows_for_the_choice_of_the_floor() -> None:
    correct = [k % 5 < 3 for k in range(300)]
    floors = [Floor(f"f{k}", 1 / 3, tuple(float(i % 3 == k) for i in range(300)), "") for k in range(3)]
    one, several = skill_limits(correct, floors[:1]), skill_limits(correct, floors)
    assert several[0] <= one[0] and several[1] != one[1]
    report = compare_with_floors(shortcut_floors(TEST), answered(TEST, "ACDDB"))
    assert report.choice == "the highest of 2 on the same questions; the interval of skill allows for the choice"
    assert report.skill_lo < report.skill < report.skill_hi


def test_limits_of_skill_at_their_ends() -> None:
    """A model that is always right, or that is the floor itself, has no interval of one point."""
    floor = Floor("half", 0.5, (1.0, 0.0) * 50, "")
    low, high = skill_limits([True] * 100, [floor])
    assert 0.9 < low < 0.95 and high == 1
    low, high = skill_limits([True, False] * 50, [floor])
    assert -0.06 < low < 0 < high < 0.06
    assert skill_limits([True] * 100, [Floor("key", 1.0, (1.0,) * 100, "")]) == (None, None)
    doubled = Floor("half", 0.5, (1.0, 1.0, 0.0, 0.0) * 50, "")
    alike = [k % 8 < 6 for k in range(200)]
    once = skill_limits(alike[::2], [floor])
    assert skill_limits(alike, [doubled], np.arange(200) // 2) == pytest.approx(once)


def test_skill_of_one_cluster_is_that_of_one_question() -> None:
    """Deviations of one cluster sum to 0: rounding must not make them many questions that agree."""
    credits = (1 / 3, 0.0, 1.0, 0.5, 1 / 3, 0.0, 0.0, 1.0, 0.5, 1 / 3)
    floor = Floor("shared", sum(credits) / 10, credits, "")
    low, high = skill_limits([k % 3 > 0 for k in range(10)], [floor], np.zeros(10))
    apart = skill_limits([k % 3 > 0 for k in range(10)], [floor])
    assert low < 2 * apart[0] < apart[1] < high


# --- diagnoses ---


def choices_of(questions: Sequence[Question], accuracy: float, shift: int = 0, seed: int = 0) -> list[int]:
    """Right in that share of the questions, against a key moved by `shift`; else any wrong option."""
    rng = random.Random(seed)
    choices = []
    for question in questions:
        k = len(question.options)
        gold = (question.gold + shift) % k
        choices.append(gold if rng.random() < accuracy else (gold + rng.randrange(1, k)) % k)
    return choices


def test_a_key_shifted_by_one_letter() -> None:
    questions = balanced(200)
    on = choices_of(questions, 1.0, shift=1)
    assert diagnose(questions, answered(questions, on)) == (
        Finding(
            "shifted_key",
            1.0,
            "The answer key looks shifted by one letter: accuracy is 0.0%, far below the 25.0% of chance, "
            "but 100.0% against the key moved one letter on (A to B).",
        ),
    )
    back = diagnose(questions, answered(questions, choices_of(questions, 0.9, shift=-1)))
    assert [finding.name for finding in back] == ["shifted_key"]
    assert back[0].figure == pytest.approx(0.9, abs=0.07)
    assert "one letter back (B to A)" in back[0].sentence


def test_a_shifted_key_of_a_model_that_knows_half_the_answers() -> None:
    questions = balanced(500)
    (found,) = diagnose(questions, answered(questions, choices_of(questions, 0.45, shift=1)))
    assert found.name == "shifted_key"


def test_a_shifted_key_of_questions_with_different_numbers_of_options() -> None:
    questions = [question for n in (2, 3, 4, 5) for question in balanced(60, n)]
    (found,) = diagnose(questions, answered(questions, choices_of(questions, 1.0, shift=1)))
    assert (found.name, found.figure) == ("shifted_key", 1)


def test_a_constant_letter() -> None:
    questions = balanced(40)
    assert diagnose(questions, answered(questions, "C" * 40)) == (
        Finding("constant_letter", 1.0, "The model answers C to 100.0% of the questions, where C is right in 25.0%."),
    )
    nearly = diagnose(questions, answered(questions, "C" * 34 + "ABDABD"))
    assert [(finding.name, finding.figure) for finding in nearly] == [("constant_letter", 34 / 40)]


def test_a_constant_letter_that_is_seldom_right_is_no_shifted_key() -> None:
    questions = [replace(question, gold=0 if k % 10 else 1) for k, question in enumerate(balanced(200))]
    found = diagnose(questions, answered(questions, "B" * 200))  # 10% right, 90% against the key moved one on
    assert [finding.name for finding in found] == ["constant_letter"]


def test_a_constant_letter_is_no_fault_where_the_key_is_constant() -> None:
    questions = [replace(question, gold=2) for question in balanced(40)]
    assert diagnose(questions, answered(questions, "C" * 40)) == ()


def test_a_model_that_goes_for_length() -> None:
    questions = balanced(80)
    longest = [question.options.index("xxxx") for question in questions]
    right = sum(question.gold == choice for question, choice in zip(questions, longest, strict=True)) / 80
    assert diagnose(questions, answered(questions, longest)) == (
        Finding(
            "longest_option",
            1.0,
            "The model chooses the longest option in 100.0% of the questions, "
            f"where the longest is right in {right:.1%}.",
        ),
    )


def test_length_is_no_habit_where_the_longest_is_right() -> None:
    questions = [replace(question, gold=question.options.index("xxxx")) for question in balanced(80)]
    assert diagnose(questions, answered(questions, [question.gold for question in questions])) == ()


def test_length_is_no_habit_where_all_options_are_of_one_length() -> None:
    questions = [replace(question, options=("w", "x", "y", "z")) for question in balanced(80)]
    assert diagnose(questions, answered(questions, choices_of(questions, 0.5))) == ()


def test_bad_calibration() -> None:
    questions = balanced(2000)
    predictions = answered(questions, choices_of(questions, 0.5))
    (found,) = diagnose(questions, predictions, ece=0.31, ece_p_value=0.0005)
    assert (found.name, found.figure) == ("calibration", 0.31)
    assert found.sentence == (
        "Confidence is badly calibrated: on average it is 0.31 away from the share of right answers, "
        "more than a calibrated model shows by chance on 2000 questions."
    )
    for ece, p_value in ((None, None), (0.0, 1.0), (BAD_ECE, 0.0005), (0.31, 0.002)):
        assert diagnose(questions, predictions, ece, p_value) == ()


@pytest.mark.parametrize("accuracy", [0.1, 0.2, 0.25, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_where_nothing_is_wrong(accuracy: float, seed: int) -> None:
    for questions in (balanced(3), balanced(20), balanced(500), balanced(100, 2), balanced(300, 8)):
        if len(questions[0].options) == 2 and accuracy < 0.5:
            continue  # of two options, mostly wrong is a moved key
        predictions = answered(questions, choices_of(questions, accuracy, seed=seed))
        assert diagnose(questions, predictions, ece=0.05, ece_p_value=0.0005) == ()


# --- the real files ---


def real(size: int) -> tuple[Question, ...]:
    path = Path(str(DATA_DIR)) / f"CyberMetric-{size}-v1.json"
    return read_questions(path, f"CyberMetric-{size}-v1", OnBadRow.error, MULTIPLE_CHOICE).questions


@needs_files
@pytest.mark.parametrize(("size", "longest"), [(80, 0.375), (500, 0.4068), (2000, 0.4084)])
def test_floors_of_cybermetric(size: int, longest: float) -> None:
    floors = shortcut_floors(real(size))
    assert [floor.accuracy for floor in floors.floors] == [0.25, pytest.approx(longest, abs=5e-5)]


@needs_files
def test_options_alone_beat_the_longest_option_and_are_fitted_in_seconds() -> None:
    test = real(500)
    asked_too = {question.question for question in test}
    train = [question for question in real(2000) if question.question not in asked_too]
    begun = time.monotonic()
    floors = shortcut_floors(test, train)
    assert time.monotonic() - begun < 5
    accuracy = {floor.name: floor.accuracy for floor in floors.floors}
    assert 0.41 < accuracy["options_only"] < 0.48
    assert accuracy["options_only"] > accuracy["longest_option"]
    longest: Floor = floors.floors[1]
    choices = [max(range(4), key=lambda k, options=question.options: len(options[k])) for question in test]
    predictions = answered(test, choices)
    assert [finding.name for finding in diagnose(test, predictions)] == ["longest_option"]
    report = compare_with_floors(floors, predictions)
    assert report.skill is not None and report.skill < 0
    assert report.accuracy == pytest.approx(longest.accuracy, abs=0.02)

"""Baselines by hand-worked examples, and findings: each sign planted is named, and nothing else is."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from statistics_support import answered, eval_set, measured

from cyberlm.evaluation.metrics.baselines import (
    Baseline,
    baselines,
    findings,
    longest_option,
    majority_letter,
    options_only,
    shortcut_baselines,
    skill_limits,
)
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.statistics import skill_interval
from cyberlm.tasks.task import LETTERS, Example


def asked(*rows: tuple[str, str]) -> list[Example]:
    """Questions from (options divided by "/", gold letter)."""
    return [
        Example(f"q:{k}", f"Question {k}?", tuple(options.split("/")), LETTERS.index(letter))
        for k, (options, letter) in enumerate(rows)
    ]


def shortcuts(test: Sequence[Example], train: Sequence[Example] = ()) -> tuple[Baseline, ...]:
    return shortcut_baselines(eval_set(test, seen=train))


def against(
    questions: Sequence[Example], letters: str, blind: str = "", seen: Sequence[Example] = ()
) -> dict[str, Metric]:
    """Metrics of a model that answers with the letters, and without the question with those of `blind`."""
    rows, without = (
        [answered(q, LETTERS.index(letter)) for q, letter in zip(questions, given, strict=False)]
        for given in (letters, blind)
    )
    return measured(baselines, questions, rows, seen=seen, without_question=without)


TEST = asked(
    ("aaaa/bb/cc/dd", "A"),  # the longest is right
    ("a/bbb/ccc/d", "C"),  # one of two longest
    ("a/bbb/ccc/d", "D"),  # none of the longest
    ("aa/bb/cc/dd", "B"),  # one of four
    ("a/bb", "B"),  # two options
)


def test_letters_and_lengths_by_hand() -> None:
    """Ties share the credit."""
    found = longest_option(TEST)
    assert (found.credits, found.accuracy) == ((1, 1 / 2, 0, 1 / 4, 1), pytest.approx(2.75 / 5))
    found = majority_letter(TEST, asked(("a/b/c/d", "D"), ("a/b/c/d", "D"), ("a/b/c/d", "B")))
    assert (found.credits, found.note) == ((0, 0, 1, 0, 0), "always D, which is right in 2 of 3 training questions")
    found = majority_letter(TEST)
    assert (found.credits, found.note) == ((0, 0, 0, 1, 1), "always B, which is right in 2 of 5 test questions")
    assert majority_letter(TEST[:3]).note == "always A, which is right in 1 of 3 test questions (as is C, D)"


def marked(count: int, mark: Callable[[str], str]) -> list[Example]:
    """Questions whose right option carries a mark."""
    rng = random.Random(count)
    questions = []
    for k in range(count):
        options = [" ".join(rng.sample(["key", "log", "hash", "port", "salt", "mail"], 3)) for _ in range(4)]
        options[k % 4] = mark(options[k % 4])
        questions.append(Example(f"q:{k}", f"Question {k}?", tuple(options), k % 4))
    return questions


def second_longest(count: int) -> list[Example]:
    """Questions whose right option is the second longest."""
    rng = random.Random(count)
    lengths = [rng.sample(range(1, 60), 4) for _ in range(count)]
    return [Example("q:0", "?", tuple("x" * one for one in row), row.index(sorted(row)[2])) for row in lengths]


@pytest.mark.parametrize(
    ("questions", "low"),
    [
        (lambda count: marked(count, lambda text: f"{text} securely"), 0.9),  # a word
        (lambda count: marked(count, lambda text: text.split()[0]), 0.9),  # a length
        (second_longest, 0.9),  # a rank by length
        (lambda count: marked(count, str), 0.15),  # nothing gives the answer away: chance
    ],
)
def test_options_only_finds_what_gives_the_answer_away(questions: Callable[[int], list[Example]], low: float) -> None:
    test, train = questions(101), questions(400)
    found = options_only(test, train)
    assert low < found.accuracy <= (1 if low == 0.9 else 0.35)
    assert found.note == "a logistic model of the options alone, fitted on 400 questions"
    assert options_only([replace(question, question="Never seen") for question in test], train[::-1]) == found
    if low == 0.9:
        rekeyed = [replace(question, gold=(question.gold + 1) % 4) for question in test]
        assert options_only(rekeyed, train).accuracy < 0.1


def test_options_only_takes_any_options_in_any_order() -> None:
    """Two to eight, without words, and alike; free answers have none to learn from."""
    options = ("a", "b", "?!", "", "e f g", "h", "i", "j")
    test = [Example(f"q:{k}", "?", options[:k], k - 1) for k in range(2, 9)]
    assert len(options_only(test, test).credits) == 7
    assert options_only([Example("q:0", "?", ("same", "same"), 0)], test).credits == (1 / 2,)
    free = [Example(f"q:{k}", f"Question {k}?", (f"answer {k}",), 0) for k in range(4)]
    assert "options_only" not in {baseline.name for baseline in shortcuts(free, free)}
    # questions in another order
    questions = [*TEST, *marked(20, str)]
    order = random.Random(0).sample(range(25), 25)
    train = asked(("aa/b/a b", "A"), ("b/bb", "A"), ("a/aaa/b", "B"))
    shuffled = [questions[k] for k in order]
    for first, second in zip(shortcuts(questions, train), shortcuts(shuffled, train), strict=True):
        assert second.credits == tuple(first.credits[k] for k in order)


def test_a_model_against_the_best_baseline() -> None:
    found = against(TEST, "ACDDB")  # right: 1, 2, 3, 5
    details = {name: (metric.value, metric.note) for name, metric in found.items() if metric.place == "detail"}
    assert details == {
        "baseline_majority_letter": (2 / 5, "always B, which is right in 2 of 5 test questions"),
        "baseline_longest_option": (pytest.approx(0.55), "always the option of the most characters"),
        "baseline_options_only": (None, "not measured: there are no training questions to learn it from"),
        "baseline_no_question": (None, "not measured"),
    }
    assert found["best_baseline"].value == pytest.approx(0.55)
    assert found["best_baseline"].note.startswith("The best baseline, longest_option, is the highest of 2")
    low, high = found["skill"].interval
    assert found["skill"].value == pytest.approx((0.8 - 0.55) / 0.45) and low < found["skill"].value < high
    assert (found["accuracy_hard"].value, found["accuracy_hard"].n) == (1, 1)
    assert against(TEST, "ACDDB", seen=TEST)["baseline_options_only"].value is not None
    # without the question
    found = against(TEST, "ABDBB", blind="AADBB")
    assert found["best_baseline"].value == found["baseline_no_question"].value == 0.8
    assert "no_question" in found["best_baseline"].note and found["skill"].value == pytest.approx(0)
    assert (found["accuracy_hard"].value, found["accuracy_hard"].n) == (0, 1)
    # always right: no hard questions are left
    found = against(asked(("aa/b", "A"), ("a/bb", "B")), "AB")
    assert (found["best_baseline"].value, found["skill"].value, found["skill"].interval) == (1, None, None)
    assert (found["accuracy_hard"].value, found["accuracy_hard"].n) == (None, 0)


def test_the_interval_of_skill_allows_for_the_choice_of_the_baseline() -> None:
    correct = [k % 5 < 3 for k in range(300)]
    several = [Baseline(f"f{k}", tuple(float(i % 3 == k) for i in range(300)), "") for k in range(3)]
    one, chosen = skill_limits(correct, several[:1]), skill_limits(correct, several)
    assert one == skill_interval(correct, several[0].credits, None)
    assert chosen[0] <= one[0] and chosen[1] != one[1]


def balanced(count: int, n_options: int = 4) -> list[Example]:
    """Gold letters in turn; the options' lengths are in random order, so that no shortcut helps."""
    rng = random.Random(0)
    lengths = [f"{'x' * k}" for k in range(1, n_options + 1)]
    return [
        Example(f"q:{k}", f"Question {k}?", tuple(rng.sample(lengths, n_options)), k % n_options) for k in range(count)
    ]


def found_in(questions: Sequence[Example], choices: Sequence[int]) -> dict[str, tuple[float, str]]:
    rows = [answered(q, choice) for q, choice in zip(questions, choices, strict=True)]
    return {name: (metric.value, metric.note) for name, metric in measured(findings, questions, rows).items()}


def choices_of(questions: Sequence[Example], accuracy: float, shift: int = 0, seed: int = 0) -> list[int]:
    """Right in that share of the questions, against a key moved by `shift`; else any wrong option."""
    rng = random.Random(seed)
    choices = []
    for question in questions:
        k = len(question.options)
        gold = (question.gold + shift) % k
        choices.append(gold if rng.random() < accuracy else (gold + rng.randrange(1, k)) % k)
    return choices


def test_a_shifted_key() -> None:
    questions = balanced(200)
    assert found_in(questions, choices_of(questions, 1.0, shift=1)) == {
        "shifted_key": (
            1.0,
            "The answer key looks shifted by one letter: accuracy is 0.0%, far below the 25.0% of chance, "
            "but 100.0% against the key moved one letter on (A to B)",
        )
    }
    ((figure, sentence),) = found_in(questions, choices_of(questions, 0.9, shift=-1)).values()
    assert figure == pytest.approx(0.9, abs=0.07) and "one letter back (B to A)" in sentence
    for questions, known in ((balanced(500), 0.45), ([q for n in (2, 3, 4, 5) for q in balanced(60, n)], 1.0)):
        assert list(found_in(questions, choices_of(questions, known, shift=1))) == ["shifted_key"]


def test_a_constant_letter() -> None:
    questions = balanced(40)
    always = (1.0, "The model answers C to 100.0% of the questions, where C is right in 25.0%")
    assert found_in(questions, [2] * 40) == {"constant_letter": always}
    assert found_in(questions, [2] * 34 + [0, 1, 3] * 2)["constant_letter"][0] == 34 / 40
    assert found_in([replace(question, gold=2) for question in questions], [2] * 40) == {}  # as the key is
    seldom_right = [replace(question, gold=0 if k % 10 else 1) for k, question in enumerate(balanced(200))]
    # 10% right, 90% against the key moved one on: no shifted key
    assert list(found_in(seldom_right, [1] * 200)) == ["constant_letter"]


def test_a_model_that_goes_for_length() -> None:
    questions = balanced(80)
    longest = [question.options.index("xxxx") for question in questions]
    right = sum(question.gold == choice for question, choice in zip(questions, longest, strict=True)) / 80
    ((figure, sentence),) = found_in(questions, longest).values()
    assert figure == 1.0 and sentence == (
        f"The model chooses the longest option in 100.0% of the questions, where the longest is right in {right:.1%}"
    )
    keyed = [replace(question, gold=gold) for question, gold in zip(questions, longest, strict=True)]
    assert found_in(keyed, longest) == {}  # the longest is right
    alike = [replace(question, options=("w", "x", "y", "z")) for question in questions]
    assert found_in(alike, choices_of(alike, 0.5)) == {}  # all are of one length


@pytest.mark.parametrize("accuracy", [0.1, 0.25, 0.5, 0.85, 1.0])
def test_nothing_is_said_where_nothing_is_wrong(accuracy: float) -> None:
    several = [balanced(3), balanced(20), balanced(500), balanced(300, 8)]
    several += [balanced(100, 2)] if accuracy >= 0.5 else []  # of two options, mostly wrong is a moved key
    for questions in several:
        for seed in range(3):
            assert found_in(questions, choices_of(questions, accuracy, seed=seed)) == {}

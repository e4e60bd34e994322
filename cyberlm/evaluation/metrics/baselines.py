"""Floors: what shortcuts score that read no question; and signs that a model or an answer key is wrong."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array, hstack
from scipy.stats import binom, norm
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.shares import skill_interval
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import LETTERS, Question

OPTIONS_ONLY = "options_only"
NO_QUESTION = "no_question"
HASHED_FEATURES = 2**18  # columns for the words and word pairs of an option
SURE = 0.001  # `diagnose` says only what chance would bring about more rarely than this
CONSTANT_SHARE = 0.8  # least share of answers with one letter that is called constant
LONGEST_SHARE = 0.6  # least share of answers with the longest option that is called a habit
BAD_ECE = 0.1  # largest calibration error that passes without a word


@dataclass(frozen=True)
class Floor:
    """What one shortcut scores.

    Attributes:
        name: `majority_letter`, `longest_option`, `options_only` or `no_question`.
        accuracy, note: On the test questions, and what it rests on, in words.
        credits: For each test question, in order: 1 where the shortcut is right, 0 where it is wrong, 1/m where it
            names m options with the right one among them.
    """

    name: str
    accuracy: float
    credits: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class Floors:
    """Floors of one set of test questions, to be held against any number of models.

    Attributes:
        tested: Hashes of the test questions, in order.
        floors: What each shortcut scores.
        missing: Why others are not among them, by name.
    """

    tested: tuple[str, ...]
    floors: tuple[Floor, ...]
    missing: dict[str, str]


@dataclass(frozen=True)
class FloorReport:
    """One model, by likelihood, against the floors.

    Attributes:
        floors, notes: By name, the accuracy of each shortcut, and what it rests on or why it is missing.
        best, max_floor: Name (the first of equals) and accuracy of the highest floor.
        accuracy, skill: The model's; see `skill`.
        hard_floor: `best`.
        n_hard, correct_hard, accuracy_hard: Questions that `hard_floor` gets wrong (not those that it gets half
            right), how many of them the model gets right, and their share; None where there are none.
        skill_lo, skill_hi: 95% interval of the skill above the highest floor there is, see `skill_limits`.
        choice: How the floor was chosen, in words.
    """

    floors: dict[str, float]
    notes: dict[str, str]
    best: str
    max_floor: float
    accuracy: float
    skill: float | None
    hard_floor: str
    n_hard: int
    correct_hard: int
    accuracy_hard: float | None
    skill_lo: float | None = None
    skill_hi: float | None = None
    choice: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model or the answer key, in a sentence for the report, and the figure behind it.

    Attributes:
        name: `shifted_key`, `constant_letter`, `longest_option` or `calibration`.
        figure: Accuracy against the shifted key, share of the letter, agreement with the longest option, or ECE.
    """

    name: str
    figure: float
    sentence: str


def shortcut_floors(test: Sequence[Question], train: Sequence[Question] = ()) -> Floors:
    """What can be scored on the test questions without reading them.

    Args:
        test: Questions that models are scored on.
        train: Questions that a shortcut may learn from; none of the test questions may be among them. Without any,
            the majority letter is that of the test questions, and there is no model of the options.

    Raises:
        RunError: If there are no test questions.
    """
    if not test:
        raise RunError("There are no questions to score.")
    tested, floors = tuple(question.hash for question in test), (majority_letter(test, train), longest_option(test))
    if not train:
        return Floors(tested, floors, {OPTIONS_ONLY: "not measured: there are no training questions to learn it from"})
    return Floors(tested, (*floors, options_only(test, train)), {})


def majority_letter(test: Sequence[Question], train: Sequence[Question] = ()) -> Floor:
    """Always the letter that is right most often in training; the first of equals."""
    counts = Counter(question.gold for question in train or test)
    most = max(counts.values())
    first, *equals = (LETTERS[gold] for gold in sorted(counts) if counts[gold] == most)
    note = f"always {first}, which is right in {most} of {counts.total()} {'training' if train else 'test'} questions"
    if equals:
        note += f" (as is {', '.join(equals)})"
    return _floor("majority_letter", [float(question.letter == first) for question in test], note)


def longest_option(test: Sequence[Question]) -> Floor:
    """Always the option of the most characters; options of equal length share the credit."""
    shares = [_is_longest(question, question.gold) for question in test]
    return _floor("longest_option", shares, "always the option of the most characters")


def options_only(test: Sequence[Question], train: Sequence[Question]) -> Floor:
    """The option most like the right ones of training, judged without the question.

    Logistic regression of whether an option is right on its words and word pairs (hashed, each row of norm 1), its
    place among its question's options by length, and the log of its length over their mean.
    """
    model = LogisticRegression(C=1.0, solver="liblinear", max_iter=1000)
    is_gold = [int(k == question.gold) for question in train for k in range(len(question.options))]
    model.fit(_option_features(train), is_gold)
    ends = np.cumsum([len(question.options) for question in test])
    logits = np.split(model.decision_function(_option_features(test)), ends[:-1])  # one array for each question
    shares = [_share_of_best(row.tolist(), question.gold) for row, question in zip(logits, test, strict=True)]
    return _floor(OPTIONS_ONLY, shares, f"a logistic model of the options alone, fitted on {len(train)} questions")


def _floor(name: str, shares: Sequence[float], note: str) -> Floor:
    return Floor(name, math.fsum(shares) / len(shares), tuple(shares), note)


def _share_of_best(values: Sequence[float], index: int) -> float:
    """1/m where `values[index]` is one of m equal largest values, else 0."""
    best = max(values)
    return 1 / values.count(best) if values[index] == best else 0.0


def _is_longest(question: Question, index: int) -> float:
    """1/m where the option is one of the m longest, else 0."""
    return _share_of_best([len(option) for option in question.options], index)


def _option_features(questions: Sequence[Question]) -> csr_array:
    """One row for each option of each question, of HASHED_FEATURES + len(LETTERS) + 1 columns."""
    words = HashingVectorizer(
        n_features=HASHED_FEATURES, ngram_range=(1, 2), token_pattern=r"\w+", binary=True, alternate_sign=False
    )
    hashed = words.transform([option for question in questions for option in question.options])
    lengths = np.concatenate([_length_features(question) for question in questions])
    return csr_array(hstack([hashed, csr_array(lengths)]))


def _length_features(question: Question) -> np.ndarray:
    """(K, len(LETTERS) + 1): how many options are longer, one-hot; log of the option's length over the mean."""
    lengths = np.array([max(len(option), 1) for option in question.options])
    longer = (lengths > lengths[:, None]).sum(axis=1)  # (K,)
    return np.column_stack([np.eye(len(LETTERS))[longer], np.log(lengths / lengths.mean())])


def compare_with_floors(
    floors: Floors,
    predictions: Sequence[Prediction],
    no_question: Sequence[Prediction] = (),
    clusters: ArrayLike | None = None,
) -> FloorReport:
    """How far a model is above the best floor, and what it makes of the questions that this floor gets wrong.

    Args:
        floors: Of the test questions.
        predictions: The model's, of the same questions in the same order.
        no_question: What the same model predicts where it is shown the options without the question, of the same
            questions in the same order; empty where it was not asked.
        clusters: (N,) int, number of the near-duplicate cluster of each question; None if all are independent.

    Raises:
        RunError: If predictions are of other questions.
    """
    _check_same(floors.tested, predictions)
    measured, missing = floors.floors, {NO_QUESTION: "not measured"}
    if no_question:
        _check_same(floors.tested, no_question)
        credits = [float(prediction.correct) for prediction in no_question]
        blind = _floor(NO_QUESTION, credits, "the model itself, shown the options without the question")
        measured, missing = (*measured, blind), {}
    best = max(measured, key=lambda floor: floor.accuracy)
    hard = [row.correct for row, credit in zip(predictions, best.credits, strict=True) if credit == 0]
    accuracy = sum(row.correct for row in predictions) / len(predictions)
    low, high = skill_limits([row.correct for row in predictions], measured, clusters)
    return FloorReport(
        floors={floor.name: floor.accuracy for floor in measured},
        notes={floor.name: floor.note for floor in measured} | floors.missing | missing,
        best=best.name,
        max_floor=best.accuracy,
        accuracy=accuracy,
        skill=skill(accuracy, best.accuracy),
        hard_floor=best.name,
        n_hard=len(hard),
        correct_hard=sum(hard),
        accuracy_hard=sum(hard) / len(hard) if hard else None,
        skill_lo=low,
        skill_hi=high,
        choice=f"the highest of {len(measured)} on the same questions; the interval of skill allows for the choice",
    )


def skill(accuracy: float, max_floor: float) -> float | None:
    """(accuracy - max_floor) / (1 - max_floor), None where the floor is 1 (Murphy 1988, Mon. Weather Rev. 116:2417)."""
    return (accuracy - max_floor) / (1 - max_floor) if max_floor < 1 else None


def skill_limits(
    correct: Sequence[bool], floors: Sequence[Floor], clusters: ArrayLike | None = None
) -> tuple[float | None, float | None]:
    """95% interval of the skill above the highest of several floors, whichever that is in truth.

    The highest on a sample is the highest of noisy estimates: too high, and the skill above it too low. Skill above
    the truly highest floor is the lowest of all skills. It is no lower than the lowest of their lower limits (at 97.5%
    each), since that of the highest floor is among them; and no higher than any of their upper limits, which is why
    these share the 2.5% of that side.

    Returns:
        None twice where a floor is always right.
    """
    if any(floor.accuracy == 1 for floor in floors):
        return None, None
    numbers = np.arange(len(correct)) if clusters is None else clusters
    z_high = float(norm.ppf(1 - 0.025 / len(floors)))
    limits = [skill_interval(correct, floor.credits, numbers, z_high=z_high) for floor in floors]
    return min(low for low, _ in limits), min(high for _, high in limits)


def _check_same(tested: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Raises RunError where the predictions are not of the tested questions in the same order."""
    answered = [prediction.hash for prediction in predictions]
    if list(tested) == answered:
        return
    pairs = zip_longest(tested, answered, fillvalue="none")
    place, (asked, found) = next((k, pair) for k, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
    raise RunError(
        f"{len(answered)} predictions are not of the {len(tested)} questions.",
        [Problem(f"the first difference, at place {place}: question {asked}, prediction {found}")],
        "Give one prediction for each question, in the same order.",
    )


def diagnose(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    ece: float | None = None,
    ece_p_value: float | None = None,
) -> tuple[Finding, ...]:
    """What looks wrong with a model's choices by likelihood, or with the answer key; nothing where nothing does.

    Args:
        questions: Those that were scored.
        predictions: Of the same questions in the same order.
        ece: Expected calibration error of the model's confidence, in [0, 1], where it was measured.
        ece_p_value: How often a calibrated model of the same confidence shows as much.

    Raises:
        RunError: If there are no predictions, or they are of other questions.
    """
    if not questions:
        raise RunError("There are no questions to score.")
    _check_same([question.hash for question in questions], predictions)
    by_choice = (_shifted_key(predictions), _constant_letter(predictions), _longest_habit(questions, predictions))
    by_confidence = _bad_calibration(len(predictions), ece, ece_p_value)
    return tuple(finding for finding in (*by_choice, by_confidence) if finding is not None)


def _shifted_key(predictions: Sequence[Prediction]) -> Finding | None:
    """Accuracy far below chance, and high against the key moved one letter on or back."""
    n, chance, correct = len(predictions), _chance(predictions), sum(row.correct for row in predictions)
    if binom.cdf(correct, n, chance) >= SURE:
        return None
    chosen = Counter(row.choice for row in predictions)
    wrong_evenly = sum((not row.correct) / max(row.n_options - 1, 2) for row in predictions) / n  # of two: chance
    for step, moved in ((1, "on (A to B)"), (-1, "back (B to A)")):
        key = [(row.gold + step) % row.n_options for row in predictions]
        shifted = sum(row.choice == letter for row, letter in zip(predictions, key, strict=True))
        by_habit = sum(chosen[letter] for letter in key) / n**2  # the same letters, whatever the question
        if _above(shifted, n, max(chance, wrong_evenly, by_habit)):
            return Finding(
                "shifted_key",
                shifted / n,
                f"The answer key looks shifted by one letter: accuracy is {correct / n:.1%}, far below the "
                f"{chance:.1%} of chance, but {shifted / n:.1%} against the key moved one letter {moved}.",
            )
    return None


def _constant_letter(predictions: Sequence[Prediction]) -> Finding | None:
    """Nearly always the same letter, and more often than it is right."""
    n = len(predictions)
    choice, count = Counter(row.choice for row in predictions).most_common(1)[0]
    gold = sum(row.gold == choice for row in predictions) / n
    if count / n < CONSTANT_SHARE or not _above(count, n, max(gold, _chance(predictions))):
        return None
    letter = LETTERS[choice]
    return Finding(
        "constant_letter",
        count / n,
        f"The model answers {letter} to {count / n:.1%} of the questions, where {letter} is right in {gold:.1%}.",
    )


def _longest_habit(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Finding | None:
    """Mostly the longest option, and more often than it is right; options of equal length share the credit."""
    n, pairs = len(predictions), list(zip(questions, predictions, strict=True))
    agreed = math.fsum(_is_longest(question, row.choice) for question, row in pairs)
    right = math.fsum(_is_longest(question, row.gold) for question, row in pairs) / n
    if agreed / n < LONGEST_SHARE or not _above(math.floor(agreed), n, max(right, _chance(predictions))):
        return None
    return Finding(
        "longest_option",
        agreed / n,
        f"The model chooses the longest option in {agreed / n:.1%} of the questions, "
        f"where the longest is right in {right:.1%}.",
    )


def _bad_calibration(n: int, ece: float | None, p_value: float | None) -> Finding | None:
    """An ECE above `BAD_ECE`, and above all that a calibrated model is likely to show by chance."""
    if ece is None or p_value is None or ece <= BAD_ECE or p_value >= SURE:
        return None
    return Finding(
        "calibration",
        ece,
        f"Confidence is badly calibrated: on average it is {ece:.2f} away from the share of right answers, "
        f"more than a calibrated model shows by chance on {n} questions.",
    )


def _chance(predictions: Sequence[Prediction]) -> float:
    """Expected accuracy of guessing."""
    return sum(1 / row.n_options for row in predictions) / len(predictions)


def _above(count: int, n: int, share: float) -> bool:
    """Whether `count` of `n` is too many to come about by chance where the expected share is `share`."""
    return bool(binom.sf(count - 1, n, share) < SURE)

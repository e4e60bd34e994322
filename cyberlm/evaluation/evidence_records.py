"""Records of one model's evidence in evidence.json."""

from dataclasses import dataclass

from cyberlm.evaluation.intervals import AccuracyInterval
from cyberlm.evaluation.metrics.baselines import Baseline


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens; lower is better in all four.

    Attributes:
        ece: Expected calibration error over bins of equal mass, in [0, 1].
        brier: Mean squared error of the probabilities, summed over options, in [0, 2].
        nll: Mean negative log-probability of the right option among the options (nats).
        aurc: Area under the risk-coverage curve, in [0, 1]: mean error rate when only the most confident are answered.
        ece_chance, ece_chance_hi: Mean and 95% point of `ece` for a calibrated model of the same confidence on as many
            questions: it is above 0 by chance alone.
        ece_p_value: How often that model shows at least this `ece`.
    """

    ece: float
    brier: float
    nll: float
    aurc: float
    ece_chance: float | None = None
    ece_chance_hi: float | None = None
    ece_p_value: float | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of one model on the test questions.

    Attributes:
        n: Questions.
        bins: Of `ece`.
        raw: Of softmax over the options' scores.
        temperature: Fitted on the validation questions; None where there are none.
        n_validation: How many there are.
        scaled: With the scores divided by the temperature; None where there is none.
        warning: Why the figures deserve less trust; empty where they do not.
    """

    n: int
    bins: int
    raw: Calibration
    temperature: float | None
    n_validation: int
    scaled: Calibration | None
    warning: str


@dataclass(frozen=True)
class LetterBias:
    """How answers fall on the letters.

    Attributes:
        recall: Of the questions with each gold letter, the share answered right; letters that are never gold are left
            out. A completion that names no option is wrong.
        rstd: Standard deviation of these recalls (of a population, as the paper's code has it), in [0, 0.5]. None where
            fewer than two letters are ever gold.
        gold: How often each letter is right.
        predicted: How often each letter was chosen.
        chi_square: Of the chosen letters against those that an unbiased model of the same accuracy would choose, see
            `preference_test`; None where nothing was chosen, or all answers are right.
        p_value: Of `chi_square`.
        rstd_chance, rstd_chance_hi: Mean and 95% point of `rstd` for an unbiased model of the same accuracy on as many
            questions of each letter: with few, chance alone makes the recalls differ.
    """

    recall: dict[str, float]
    rstd: float | None
    gold: dict[str, int]
    predicted: dict[str, int]
    chi_square: float | None
    p_value: float | None
    rstd_chance: float | None = None
    rstd_chance_hi: float | None = None


@dataclass(frozen=True)
class Debiasing:
    """Accuracy without the preference for letters, by PriDe, on the questions that the prior was not estimated from.

    Attributes:
        prior: Probability of each letter before the model has read the options; sums to 1.
        n_sample: Questions that the prior was estimated from.
        n: Questions scored: all but the sample.
        n_unchanged: Of these, those with another number of options than the sample has: the prior says nothing of them.
        acc: Accuracy on the n questions as they were answered.
        acc_debiased: Accuracy on the same with the prior taken out.
        rstd, rstd_debiased: Of the same two.
    """

    prior: dict[str, float]
    n_sample: int
    n: int
    n_unchanged: int
    acc: float
    acc_debiased: float
    rstd: float | None
    rstd_debiased: float | None


@dataclass(frozen=True)
class PermutationScores:
    """What one model answered to the same questions under every rotation of their options.

    Attributes:
        n: Questions that were rotated.
        skipped: Questions left out, since their options must not be reordered.
        acc_mean: Mean over questions of the share of rotations answered right.
        circular_acc: Share of questions answered right under every rotation.
        consistency: Share of questions where every rotation led to the same option text, right or wrong.
    """

    n: int
    skipped: int
    acc_mean: float
    circular_acc: float
    consistency: float


@dataclass(frozen=True)
class Floors:
    """Floors of one set of test questions, to be held against any number of models.

    Attributes:
        tested: Hashes of the test questions, in order.
        floors: What each shortcut scores.
        missing: Why others are not among them, by name.
    """

    tested: tuple[str, ...]
    floors: tuple[Baseline, ...]
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


@dataclass(frozen=True)
class NoiseSensitivity:
    """Accuracy under three readings of the key.

    Attributes:
        all: On all questions, with the key as published.
        without_suspects: On the questions that nobody doubts; None where there are none.
        corrected_keys: On all questions, with corrected letters; suspects without one keep the published key.
        n_suspects: Suspects among the questions.
        n_corrected: Of these, those with a corrected letter.
        n_absent: Suspects of the list that are not among the questions.
    """

    all: AccuracyInterval
    without_suspects: AccuracyInterval | None
    corrected_keys: AccuracyInterval
    n_suspects: int
    n_corrected: int
    n_absent: int

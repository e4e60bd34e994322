"""What stands behind an accuracy: intervals, pairs, letter bias, calibration, floors, leaks, and what looks wrong.

Everything here is computed from predictions and questions, so that it can be computed again without a model. What costs
passes over the model (rotations of the options, answering without the question, answers to validation questions) is
used where it was measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from cyberlm.config.schema import OptionScore, Protocol
from cyberlm.evaluation.comparison import MeanDifference, PairComparison, compare_means, compare_models
from cyberlm.evaluation.evidence_measures import (
    accuracy_clean_and_dirty,
    audit_leaks,
    calibrate,
    compare_with_floors,
    debias,
    diagnose,
    letter_bias,
    noise_sensitivity,
    permutation_scores,
    shortcut_floors,
)
from cyberlm.evaluation.evidence_records import (
    CalibrationReport,
    CleanAccuracy,
    Debiasing,
    Finding,
    FloorReport,
    Floors,
    LeakAudit,
    LetterBias,
    NoiseSensitivity,
    PermutationScores,
)
from cyberlm.evaluation.intervals import AccuracyInterval, accuracy_interval
from cyberlm.evaluation.metrics.label_noise import Suspect
from cyberlm.evaluation.outcomes import cluster_numbers, golds, option_scores, right
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import RougeScores
from cyberlm.evaluation.results import read_record, write_record
from cyberlm.evaluation.scores import ROUGE, pick_best, rouge, rouge_of, short_references, tie_key
from cyberlm.tasks.questions import LETTERS, Question

EVIDENCE_FILE = "evidence.json"
EVIDENCE_VERSION = 2
"""Of evidence.json: raised when a field changes its meaning or goes away."""

Figure = Callable[[Sequence[Prediction]], ArrayLike]
"""From N predictions to a figure of each, (N,) float."""


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        plain: To the test questions as they are.
        rotated: To each rotation of every question that may be rotated, the unrotated one first; empty if not measured.
        skipped: Questions that must not be rotated.
        prior_sample: Hashes of the questions that the letters' prior is estimated on.
        blind: To the same questions without their text; empty if not measured.
        validation: To the validation questions; empty if not measured.
    """

    plain: Sequence[Prediction]
    rotated: Sequence[Sequence[Prediction]] = ()
    skipped: int = 0
    prior_sample: frozenset[str] = frozenset()
    blind: Sequence[Prediction] = ()
    validation: Sequence[Prediction] = ()


@dataclass(frozen=True)
class Setting:
    """What the answers were asked for with.

    Attributes:
        protocol, option_score: Of the prompt and of the choice by likelihood.
        options_shown: Without, a completion cannot be matched to an option, and generation is not judged.
        clusters: Near-duplicate cluster of each test question, by hash; without it questions count as independent.
        suspects: Items whose published key is doubtful.
        tuned_from: From each tuned model to its base, as `compare_models` takes it.
    """

    protocol: Protocol
    option_score: OptionScore
    options_shown: bool = True
    clusters: Mapping[str, int] | None = None
    suspects: Sequence[Suspect] = ()
    tuned_from: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class OptionScoring:
    """Accuracy by likelihood where options are compared by their summed log-probability, or by that divided by length.

    Attributes:
        sum, per_token, per_char: As `evaluation.option_score`; one of them is the accuracy that is reported.
    """

    sum: AccuracyInterval
    per_token: AccuracyInterval
    per_char: AccuracyInterval


@dataclass(frozen=True)
class RougeContext:
    """What ROUGE is for answers that need no model: the ends of its scale on these questions.

    Attributes:
        oracle: The reference answers against themselves.
        always_wrong: The option behind the right one (after the last the first), as a text or a letter.
        share_refs_lt2_tokens: Share of the references with fewer than two tokens, for which ROUGE-2 is undefined.
    """

    oracle: RougeScores
    always_wrong: RougeScores
    share_refs_lt2_tokens: float


@dataclass(frozen=True)
class ModelEvidence:
    """One model's evidence; None where it was not measured or does not apply.

    Attributes:
        likelihood, generation: Accuracy with its interval, near-duplicates counted once.
        agreement: Share of questions where likelihood and generation name the same option.
        letter_mass: Mean probability that falls on the option letters at all (letter protocol).
        letters: Recall of each letter, its spread (RStd), and predicted against gold letters.
        calibration: Of the probabilities over the options.
        floors: Against what shortcuts score.
        clean: Accuracy on test questions that no leak check flagged, and on the others.
        permutations: Over rotations of the options.
        debiasing: With the letters' prior taken out (letter protocol).
        noise: With and without items whose key is doubtful.
        findings: What looks wrong, in words.
        option_scoring: Under each way of comparing options (text protocol).
    """

    likelihood: AccuracyInterval
    generation: AccuracyInterval | None
    agreement: float | None
    letter_mass: float | None
    letters: LetterBias
    calibration: CalibrationReport
    floors: FloorReport
    clean: CleanAccuracy | None
    permutations: PermutationScores | None
    debiasing: Debiasing | None
    noise: NoiseSensitivity | None
    findings: tuple[Finding, ...]
    option_scoring: OptionScoring | None = None


@dataclass(frozen=True)
class Evidence:
    """evidence.json of a run.

    Attributes:
        schema_version: Raised when a field changes its meaning; what an older version wrote is read.
        models: By name.
        pairs: Every two models on the same questions, by each outcome; p-values adjusted (Holm) over those that ask
            the same.
        leaks: Test questions against those that were trained on or validated on; None without training questions.
        rouge: What ROUGE is without any model; None where nothing was generated.
        differences: Every two models by the means of NLL and ROUGE.
    """

    schema_version: int
    models: dict[str, ModelEvidence]
    pairs: tuple[PairComparison, ...] = ()
    leaks: LeakAudit | None = None
    rouge: RougeContext | None = None
    differences: tuple[MeanDifference, ...] = ()


def collect(
    answers: Mapping[str, Answers], setting: Setting, test: Sequence[Question], train: Sequence[Question] = ()
) -> Evidence:
    """All evidence about one or more models on the same test questions.

    Args:
        answers: By model.
        setting: What they were asked for with.
        test: The questions, in the order of the answers.
        train: Questions that the models may have seen, for floors and the leak audit.
    """
    floors = shortcut_floors(test, train)
    leaks = audit_leaks(test, train) if train else None
    plain = {name: given.plain for name, given in answers.items()}
    completed = all(row.generated is not None for rows in plain.values() for row in rows)
    several, asked = len(answers) > 1, (setting.clusters, setting.tuned_from)
    figures = _figures(setting, next(iter(plain.values())), completed)
    return Evidence(
        schema_version=EVIDENCE_VERSION,
        models={name: _of_model(given, setting, test, floors, leaks) for name, given in answers.items()},
        pairs=compare_models(plain, *asked, generated=completed and setting.options_shown) if several else (),
        leaks=leaks,
        rouge=_rouge_context(next(iter(answers.values())).plain, setting.protocol, test),
        differences=compare_means(plain, figures, *asked) if several else (),
    )


def _figures(setting: Setting, rows: Sequence[Prediction], completed: bool) -> dict[str, Figure]:
    """What each question has besides right or wrong: NLL in nats, and ROUGE where all models were asked to write."""
    how = OptionScore.sum if setting.protocol is Protocol.letter else setting.option_score

    def option_nll(rows: Sequence[Prediction]) -> ArrayLike:
        log_probs = log_softmax(option_scores(rows, how), axis=1)  # (N, K)
        return -log_probs[np.arange(len(rows)), golds(rows)]

    def rouge_figure(name: str) -> Figure:
        return lambda rows: [rouge_of(row.generated or "", row.reference)[name] for row in rows]

    figures: dict[str, Figure] = {"gold_nll": lambda rows: [row.gold_nll for row in rows], "option_nll": option_nll}
    if completed:
        figures |= {name: rouge_figure(name) for name in ROUGE}
        if short_references([row.reference for row in rows]) == len(rows):
            del figures["rouge2"]  # undefined
    return figures


def _of_model(
    answers: Answers, setting: Setting, test: Sequence[Question], floors: Floors, leaks: LeakAudit | None
) -> ModelEvidence:
    plain = answers.plain
    clusters = cluster_numbers([row.hash for row in plain], setting.clusters)
    letters_asked = setting.protocol is Protocol.letter
    generated = setting.options_shown and all(row.generated is not None for row in plain)
    how = OptionScore.sum if letters_asked else setting.option_score
    calibration = calibrate(plain, answers.validation, how, clusters=clusters)
    sample = [group for group in answers.rotated if group[0].hash in answers.prior_sample]
    return ModelEvidence(
        likelihood=accuracy_interval(right(plain), clusters),
        generation=accuracy_interval(right(plain, generated=True), clusters) if generated else None,
        agreement=sum(row.parsed == row.choice for row in plain) / len(plain) if generated else None,
        letter_mass=_letter_mass(plain) if letters_asked else None,
        letters=letter_bias(plain, clusters=clusters),
        calibration=calibration,
        floors=compare_with_floors(floors, plain, answers.blind, clusters),
        clean=accuracy_clean_and_dirty(leaks, plain) if leaks else None,
        permutations=permutation_scores(answers.rotated, answers.skipped) if answers.rotated else None,
        debiasing=debias(sample, plain) if sample and letters_asked else None,
        noise=noise_sensitivity(plain, setting.suspects, setting.clusters) if setting.suspects else None,
        findings=diagnose(test, plain, calibration.raw.ece, calibration.raw.ece_p_value),
        option_scoring=None if letters_asked else _option_scoring(plain, clusters),
    )


def _option_scoring(predictions: Sequence[Prediction], clusters: ArrayLike) -> OptionScoring:
    gold, keys = golds(predictions), torch.tensor([tie_key(row.prompt_hash) for row in predictions])
    scores = {how: torch.from_numpy(option_scores(predictions, how)) for how in OptionScore}
    by = {how: pick_best(values, keys)[0].numpy() == gold for how, values in scores.items()}
    sums, tokens, chars = (
        accuracy_interval(by[how], clusters) for how in (OptionScore.sum, OptionScore.per_token, OptionScore.per_char)
    )
    return OptionScoring(sums, tokens, chars)


def _rouge_context(
    predictions: Sequence[Prediction], protocol: Protocol, test: Sequence[Question]
) -> RougeContext | None:
    if any(row.generated is None for row in predictions):
        return None
    references = [row.reference for row in predictions]
    behind = [(question.gold + 1) % len(question.options) for question in test]
    wrong = [
        LETTERS[option] if protocol is Protocol.letter else question.options[option]
        for question, option in zip(test, behind, strict=True)
    ]
    return RougeContext(
        oracle=rouge(references, references),
        always_wrong=rouge(wrong, references),
        share_refs_lt2_tokens=short_references(references) / len(references),
    )


def _letter_mass(predictions: Sequence[Prediction]) -> float:
    return sum(sum(map(math.exp, row.option_logprobs)) for row in predictions) / len(predictions)


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Writes evidence.json.

    Raises:
        RunError: If a number is infinite or not a number where the type does not allow None.
    """
    write_record(folder / EVIDENCE_FILE, evidence)


def read_evidence(folder: Path) -> Evidence:
    """Reads evidence.json of a run or an evaluation.

    Raises:
        RunError: If there is none, or it is torn, of a later version, or has wrong fields.
    """
    hint = f"A training run is scored again by: python evaluate.py run={folder}"
    return read_record(Evidence, folder / EVIDENCE_FILE, EVIDENCE_VERSION, hint)

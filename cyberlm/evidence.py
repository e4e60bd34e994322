"""What stands behind an accuracy: intervals, pairs, letter bias, calibration, floors, leaks, and what looks wrong.

Everything here is computed from predictions and questions, so that it can be computed again without a model. What costs
passes over the model (rotations of the options, answering without the question, answers to validation questions) is
used where it was measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cyberlm.config import OptionScore, Protocol
from cyberlm.floors import Finding, FloorReport, Floors, compare_with_floors, diagnose, shortcut_floors
from cyberlm.leaks import CleanAccuracy, LeakAudit, accuracy_clean_and_dirty, audit_leaks
from cyberlm.records import LETTERS, Prediction, Question
from cyberlm.statistics import (
    AccuracyInterval,
    CalibrationReport,
    Debiasing,
    LetterBias,
    NoiseSensitivity,
    PairComparison,
    PermutationScores,
    Suspect,
    accuracy_interval,
    calibrate,
    cluster_numbers,
    compare_models,
    debias,
    letter_bias,
    noise_sensitivity,
    permutation_scores,
    right,
)

EVIDENCE_VERSION = 1


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
    """

    protocol: Protocol
    option_score: OptionScore
    options_shown: bool = True
    clusters: Mapping[str, int] | None = None
    suspects: Sequence[Suspect] = ()


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


@dataclass(frozen=True)
class Evidence:
    """evidence.json of a run.

    Attributes:
        schema_version: Raised when a field changes its meaning or goes away.
        models: By name.
        pairs: Every two models on the same questions, p-values adjusted over all of them (Holm).
        leaks: Test questions against those that were trained on or validated on; None without training questions.
    """

    schema_version: int
    models: dict[str, ModelEvidence]
    pairs: tuple[PairComparison, ...] = field(default=())
    leaks: LeakAudit | None = None


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
    return Evidence(
        schema_version=EVIDENCE_VERSION,
        models={name: _of_model(given, setting, test, floors, leaks) for name, given in answers.items()},
        pairs=compare_models({name: given.plain for name, given in answers.items()}, setting.clusters)
        if len(answers) > 1
        else (),
        leaks=leaks,
    )


def _of_model(
    answers: Answers, setting: Setting, test: Sequence[Question], floors: Floors, leaks: LeakAudit | None
) -> ModelEvidence:
    plain = answers.plain
    clusters = cluster_numbers([row.hash for row in plain], setting.clusters)
    letters_asked = setting.protocol is Protocol.letter
    generated = setting.options_shown and all(row.generated is not None for row in plain)
    how = OptionScore.sum if letters_asked else setting.option_score
    calibration = calibrate(plain, answers.validation, how)
    sample = [group for group in answers.rotated if group[0].hash in answers.prior_sample]
    return ModelEvidence(
        likelihood=accuracy_interval(right(plain), clusters),
        generation=accuracy_interval(right(plain, generated=True), clusters) if generated else None,
        agreement=sum(row.parsed == row.choice for row in plain) / len(plain) if generated else None,
        letter_mass=_letter_mass(plain) if letters_asked else None,
        letters=letter_bias(plain),
        calibration=calibration,
        floors=compare_with_floors(floors, plain, answers.blind or None),
        clean=accuracy_clean_and_dirty(leaks, plain) if leaks else None,
        permutations=permutation_scores(answers.rotated, answers.skipped) if answers.rotated else None,
        debiasing=debias(sample, plain) if sample and letters_asked else None,
        noise=noise_sensitivity(plain, setting.suspects, setting.clusters) if setting.suspects else None,
        findings=diagnose(test, plain, calibration.raw.ece, calibration.bins),
    )


def _letter_mass(predictions: Sequence[Prediction]) -> float:
    return sum(sum(map(math.exp, row.option_logprobs)) for row in predictions) / len(predictions)


# ------------------------------------------------------------------------------------------------- for the terminal


def summary(evidence: Evidence) -> list[list[str]]:
    """Rows of a table: what it is, then the figure of each model."""
    models = list(evidence.models.values())
    rows = [
        ["independent questions (n_eff)", *(f"{m.likelihood.n_eff:.0f} of {m.likelihood.n}" for m in models)],
        [f"best floor: {models[0].floors.best}", *(f"{m.floors.max_floor:.1%}" for m in models)],
        ["skill above it", *(_signed(m.floors.skill) for m in models)],
        ["accuracy where it is wrong", *(_share(m.floors.accuracy_hard) for m in models)],
        ["letters: recall, lowest", *(_lowest(m.letters) for m in models)],
        ["letters: RStd", *("-" if m.letters.rstd is None else f"{m.letters.rstd:.3f}" for m in models)],
        ["calibration error (ECE)", *(f"{m.calibration.raw.ece:.3f}" for m in models)],
    ]
    if any(m.calibration.scaled for m in models):
        rows.append(["  scaled on validation", *(_scaled(m.calibration) for m in models)])
    if any(m.letter_mass is not None for m in models):
        rows.append(["probability on the letters", *(_share(m.letter_mass) for m in models)])
    if any(m.agreement is not None for m in models):
        rows.append(["likelihood = generation", *(_share(m.agreement) for m in models)])
    if any(m.debiasing for m in models):
        rows.append(
            ["without the letters' prior", *(_share(m.debiasing.acc_debiased if m.debiasing else None) for m in models)]
        )
    if any(m.permutations for m in models):
        for label, name in (("mean", "acc_mean"), ("right in all", "circular_acc"), ("same option", "consistency")):
            cells = (_share(getattr(m.permutations, name) if m.permutations else None) for m in models)
            rows.append([f"rotations: {label}", *cells])
    return rows


def sentences(evidence: Evidence) -> list[str]:
    """What has to be said in words: leaks, comparisons, and what looks wrong."""
    said = []
    if evidence.leaks is not None:
        leaks = evidence.leaks
        said.append(
            f"Leak audit: {leaks.n_exact} exact and {leaks.n_near} near copies of training questions among "
            f"{leaks.n_test} test questions."
        )
    for pair in evidence.pairs:
        word = "not significant" if pair.p_holm >= 0.05 else "significant"
        smallest = "" if pair.detectable is None else f"; {pair.detectable:.1%} could be told from none (80% power)"
        said.append(
            f"{pair.second} minus {pair.first}: {pair.difference:+.1%}, 95% interval {pair.ci_lo:+.1%} to "
            f"{pair.ci_hi:+.1%}, {word} (p = {pair.p_holm:.3g}, n = {pair.n}){smallest}."
        )
    for name, model in evidence.models.items():
        said += [f"{name}: {finding.sentence}" for finding in model.findings]
        if model.calibration.warning:
            said.append(f"{name}: {model.calibration.warning}")
    return list(dict.fromkeys(said))


def figures(evidence: Evidence) -> dict[str, float]:
    """The main figures under short names, for experiment loggers."""
    flat: dict[str, float] = {}
    for name, model in evidence.models.items():
        flat[f"test/{name}/n_eff"] = model.likelihood.n_eff
        flat[f"test/{name}/ece"] = model.calibration.raw.ece
        if model.floors.skill is not None:
            flat[f"test/{name}/skill"] = model.floors.skill
        if model.letters.rstd is not None:
            flat[f"test/{name}/letter_rstd"] = model.letters.rstd
        if model.permutations is not None:
            flat[f"test/{name}/circular_accuracy"] = model.permutations.circular_acc
    return flat


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _lowest(letters: LetterBias) -> str:
    letter, recall = min(letters.recall.items(), key=lambda item: (item[1], LETTERS.index(item[0])))
    return f"{letter} {recall:.1%}"


def _scaled(report: CalibrationReport) -> str:
    return "-" if report.scaled is None else f"{report.scaled.ece:.3f} (T = {report.temperature:.2f})"

"""Records of one model's evidence, filled from the functions of `metrics`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import ArrayLike

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.evidence_records import (
    Calibration,
    CalibrationReport,
    CleanAccuracy,
    Debiasing,
    Finding,
    FloorReport,
    Floors,
    Leak,
    LeakAudit,
    LetterBias,
    NoiseSensitivity,
    PermutationScores,
)
from cyberlm.evaluation.intervals import accuracy_interval, effective_questions
from cyberlm.evaluation.metrics import baselines
from cyberlm.evaluation.metrics.baselines import Baseline, shortcut_baselines, skill_limits
from cyberlm.evaluation.metrics.calibration import (
    BAD_ECE,
    BAD_P,
    BINS,
    FEWEST_QUESTIONS,
    TEMPERATURES,
    calibrated_errors,
    calibration_measures,
    confidence_of,
    fit_temperature,
)
from cyberlm.evaluation.metrics.contamination import MAX_NAMED, find_contamination
from cyberlm.evaluation.metrics.label_noise import Suspect
from cyberlm.evaluation.metrics.letter_bias import debiased_choices, letter_prior, preference_test, rstd_by_chance
from cyberlm.evaluation.metrics.rotations import check_rotations
from cyberlm.evaluation.outcomes import NO_CHOICE, choices, cluster_numbers, golds, option_scores
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import LETTERS, Question

OPTIONS_ONLY, NO_QUESTION = "options_only", "no_question"


def calibrate(
    test: Sequence[Prediction],
    validation: Sequence[Prediction],
    how: OptionScore,
    bins: int = BINS,
    clusters: ArrayLike | None = None,
) -> CalibrationReport:
    """Calibration of the option probabilities on the test questions, raw and scaled."""
    shared = {p.hash for p in test} & {p.hash for p in validation}
    if shared:
        raise RunError(
            "The temperature must not be fitted on test questions.",
            [Problem(f"{len(shared)} of the validation questions are in the test", "none")],
        )
    scores, gold = option_scores(test, how), golds(test)
    temperature = fit_temperature(option_scores(validation, how), golds(validation)) if validation else None
    return CalibrationReport(
        n=len(test),
        bins=bins,
        raw=calibration(scores, gold, bins, clusters),
        temperature=temperature,
        n_validation=len(validation),
        scaled=None if temperature is None else calibration(scores / temperature, gold, bins, clusters),
        warning=_warning(len(test), len(validation), temperature),
    )


def _warning(n: int, n_validation: int, temperature: float | None) -> str:
    warnings = []
    if n < FEWEST_QUESTIONS:
        warnings.append(
            f"{n} questions are few for calibration (fewer than {FEWEST_QUESTIONS}): compare ECE with its chance level"
        )
    if temperature is not None:
        if n_validation < FEWEST_QUESTIONS:
            warnings.append(f"the temperature was fitted on {n_validation} questions (fewer than {FEWEST_QUESTIONS})")
        if temperature in TEMPERATURES:
            warnings.append(
                f"no temperature is best: the likelihood grows up to the limit of the search, {temperature:g}"
            )
    return "; ".join(warnings)


def calibration(scores: ArrayLike, gold: ArrayLike, bins: int = BINS, clusters: ArrayLike | None = None) -> Calibration:
    measures = calibration_measures(scores, gold)
    by_chance = calibrated_errors(confidence_of(scores), bins, clusters)
    return Calibration(
        ece=measures["ece"],
        brier=measures["brier"],
        nll=measures["option_nll"],
        aurc=measures["aurc"],
        ece_chance=float(by_chance.mean()),
        ece_chance_hi=float(np.quantile(by_chance, 0.95)),
        ece_p_value=float((1 + (by_chance >= measures["ece"]).sum()) / (1 + by_chance.size)),
    )


def letter_bias(
    predictions: Sequence[Prediction], generated: bool = False, clusters: ArrayLike | None = None
) -> LetterBias:
    """Recall of each gold letter, its spread RStd, and chosen letters against those of an unbiased model."""
    chosen, gold = choices(predictions, generated), golds(predictions)
    options = np.array([prediction.n_options for prediction in predictions])
    numbers = np.arange(gold.size) if clusters is None else np.asarray(clusters)
    width = int(options.max())
    asked = np.bincount(gold, minlength=width)  # (K,)
    hits = np.bincount(gold[chosen == gold], minlength=width)  # (K,)
    recall = {LETTERS[k]: float(hits[k] / asked[k]) for k in np.flatnonzero(asked)}
    given = chosen >= 0
    statistic, p_value = preference_test(chosen[given], gold[given], options[given], numbers[given])
    several = len(recall) > 1
    share = effective_questions(chosen == gold, numbers) / gold.size
    mean = high = None
    if several:
        by_chance = rstd_by_chance(asked[asked > 0] * share, float((chosen == gold).mean()))
        mean, high = float(by_chance.mean()), float(np.quantile(by_chance, 0.95))
    return LetterBias(
        recall=recall,
        rstd=float(np.std(list(recall.values()))) if several else None,
        gold=dict(zip(LETTERS, asked.tolist(), strict=False)),
        predicted=dict(zip(LETTERS, np.bincount(chosen[given], minlength=width).tolist(), strict=False)),
        chi_square=statistic,
        p_value=p_value,
        rstd_chance=mean,
        rstd_chance_hi=high,
    )


def debias(sample: Sequence[Sequence[Prediction]], predictions: Sequence[Prediction]) -> Debiasing:
    """Estimates the prior on a sample and takes it out of all other answers."""
    if not sample:
        raise RunError("The prior of the letters cannot be estimated.", [Problem("no question can be permuted")])
    check_rotations(sample)
    sizes = sorted({len(group) for group in sample})
    if len(sizes) > 1:
        raise RunError(
            "The prior of the letters cannot be estimated.",
            [Problem(f"numbers of options in the sample: {', '.join(map(str, sizes))}", allowed="one number")],
        )
    prior = letter_prior([[p.option_logprobs for p in group] for group in sample])
    used = {group[0].hash for group in sample}
    rest = [p for p in predictions if p.hash not in used]
    if not rest:
        raise RunError("There are no questions to score.", [Problem("the prior was estimated from all of them")])
    changed = without_prior(rest, prior)
    before, after = letter_bias(rest), letter_bias(changed)
    return Debiasing(
        prior=dict(zip(LETTERS, prior.tolist(), strict=False)),
        n_sample=len(sample),
        n=len(rest),
        n_unchanged=sum(p.n_options != sizes[0] for p in rest),
        acc=sum(p.correct for p in rest) / len(rest),
        acc_debiased=sum(p.correct for p in changed) / len(rest),
        rstd=before.rstd,
        rstd_debiased=after.rstd,
    )


def without_prior(predictions: Sequence[Prediction], prior: ArrayLike) -> list[Prediction]:
    """The same predictions with the debiased choice, ready for every other statistic."""
    count = len(np.asarray(prior))
    return [
        replace(p, choice=int(debiased_choices([p.option_logprobs], prior)[0])) if p.n_options == count else p
        for p in predictions
    ]


def permutation_scores(
    rotated: Sequence[Sequence[Prediction]], skipped: int = 0, generated: bool = False
) -> PermutationScores:
    """Accuracy and consistency over rotations; `circular_acc` is CircularEval (Liu et al. 2023, arXiv 2307.06281)."""
    if not rotated:
        raise RunError("There are no questions whose options can be reordered.")
    check_rotations(rotated)
    shares, circular, consistent = 0.0, 0, 0
    for group in rotated:
        chosen = choices(group, generated)  # (K,)
        correct = chosen == golds(group)
        # Back to where each option stood in the question itself.
        texts = {int(choice + shift) % len(group) for shift, choice in enumerate(chosen)}
        shares += float(correct.mean())
        circular += bool(correct.all())
        consistent += len(texts) == 1 and NO_CHOICE not in chosen
    n = len(rotated)
    return PermutationScores(n, skipped, acc_mean=shares / n, circular_acc=circular / n, consistency=consistent / n)


def shortcut_floors(test: Sequence[Question], train: Sequence[Question] = ()) -> Floors:
    """What can be scored on the test questions without reading them."""
    if not test:
        raise RunError("There are no questions to score.")
    missing = {} if train else {OPTIONS_ONLY: "not measured: there are no training questions to learn it from"}
    return Floors(tuple(question.hash for question in test), shortcut_baselines(test, train), missing)


def compare_with_floors(
    floors: Floors,
    predictions: Sequence[Prediction],
    no_question: Sequence[Prediction] = (),
    clusters: ArrayLike | None = None,
) -> FloorReport:
    """How far a model is above the best floor, and what it makes of the questions that this floor gets wrong."""
    _check_same(floors.tested, predictions)
    measured, missing = floors.floors, {NO_QUESTION: "not measured"}
    if no_question:
        _check_same(floors.tested, no_question)
        credits = tuple(float(prediction.correct) for prediction in no_question)
        blind = Baseline(NO_QUESTION, credits, "the model itself, shown the options without the question")
        measured, missing = (*measured, blind), {}
    best = max(measured, key=lambda floor: floor.accuracy)
    hard = [row.correct for row, credit in zip(predictions, best.credits, strict=True) if credit == 0]
    accuracy = sum(row.correct for row in predictions) / len(predictions)
    low, high = skill_limits([row.correct for row in predictions], measured, clusters) or (None, None)
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
    """What looks wrong with a model's choices by likelihood, or with the answer key; nothing where nothing does."""
    if not questions:
        raise RunError("There are no questions to score.")
    _check_same([question.hash for question in questions], predictions)
    by_choice = (
        baselines._shifted_key(predictions),
        baselines._constant_letter(predictions),
        baselines._longest_option_habit(predictions, questions),
    )
    found = [Finding(row[0].removesuffix("_habit"), row[1], f"{row[2]}.") for row in by_choice if row is not None]
    by_confidence = _bad_calibration(len(predictions), ece, ece_p_value)
    return (*found, by_confidence) if by_confidence else tuple(found)


def _bad_calibration(n: int, ece: float | None, p_value: float | None) -> Finding | None:
    """An ECE above `BAD_ECE`, and above all that a calibrated model is likely to show by chance."""
    if ece is None or p_value is None or ece <= BAD_ECE or p_value >= BAD_P:
        return None
    return Finding(
        "calibration",
        ece,
        f"Confidence is badly calibrated: on average it is {ece:.2f} away from the share of right answers, "
        f"more than a calibrated model shows by chance on {n} questions.",
    )


def audit_leaks(test: Sequence[Question], train: Sequence[Question]) -> LeakAudit:
    """Compares every test question with every training question."""
    found = find_contamination(test, train)
    flagged = sorted(set(chain.from_iterable(found.values())))
    return LeakAudit(
        n_test=len(test),
        n_train=len(train),
        tested=tuple(question.hash for question in test),
        leaks={
            check: tuple(Leak(test[i].id, train[j].id) for i, rows in matches.items() for j in rows[:MAX_NAMED])
            for check, matches in found.items()
        },
        n_exact=len(found["question"]),
        n_near=len(flagged) - len(found["question"]),
        flagged=tuple(dict.fromkeys(test[i].hash for i in flagged)),
    )


def accuracy_clean_and_dirty(audit: LeakAudit, predictions: Sequence[Prediction]) -> CleanAccuracy:
    """Accuracy apart on the test questions that the audit flagged and on those that it did not."""
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


def noise_sensitivity(
    predictions: Sequence[Prediction],
    suspects: Sequence[Suspect],
    clusters: Mapping[str, int] | None = None,
    generated: bool = False,
) -> NoiseSensitivity:
    """Accuracy on all questions, without the suspects, and with corrected keys."""
    chosen, published = choices(predictions, generated), golds(predictions)
    by_hash = {suspect.hash: suspect for suspect in suspects}
    doubted = np.array([p.hash in by_hash for p in predictions])
    corrected = published.copy()
    for i, prediction in enumerate(predictions):
        suspect = by_hash.get(prediction.hash)
        if suspect is not None and suspect.corrected is not None:
            corrected[i] = LETTERS.index(suspect.corrected)
    numbers = cluster_numbers([p.hash for p in predictions], clusters)
    sure = ~doubted
    return NoiseSensitivity(
        all=accuracy_interval(chosen == published, numbers),
        without_suspects=accuracy_interval((chosen == published)[sure], numbers[sure]) if sure.any() else None,
        corrected_keys=accuracy_interval(chosen == corrected, numbers),
        n_suspects=int(doubted.sum()),
        n_corrected=int((corrected != published).sum()),
        n_absent=len(by_hash.keys() - {p.hash for p in predictions}),
    )

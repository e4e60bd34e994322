"""Evidence for people: rows of a table, sentences, and the main figures for experiment loggers.

A share stands with its 95% interval and, where it is of other questions than all, with their number. Where evidence
holds no interval of its own, it is Wilson's on the number of questions.
"""

from collections.abc import Sequence

from cyberlm.evaluation.comparison import NAMED, NAMED_BY_BOTH, MeanDifference, PairComparison
from cyberlm.evaluation.evidence import Evidence, ModelEvidence, RougeContext
from cyberlm.evaluation.evidence_records import CalibrationReport, LetterBias
from cyberlm.evaluation.intervals import AccuracyInterval, share_text, with_limits
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, primary_metric
from cyberlm.evaluation.records import RougeScores
from cyberlm.tasks.questions import LETTERS

LABELS = {
    LIKELIHOOD: "accuracy, likelihood",
    GENERATION: "accuracy, generation",
    NAMED: "  an option is named",
    NAMED_BY_BOTH: "  where both name one",
    "gold_nll": "gold answer NLL, nats/token",
    "option_nll": "right option's NLL, nats",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
"""Of the outcomes and figures that models are compared by."""


def summary(evidence: Evidence) -> list[list[str]]:
    """Rows of a table: what it is, then the figure of each model."""
    models = list(evidence.models.values())
    rows = [
        ["independent questions (n_eff)", *(f"{m.likelihood.n_eff:.0f} of {m.likelihood.n}" for m in models)],
        *_option_rows(models),
        *_floor_rows(models),
        ["letters: lowest recall", *(_lowest(m.letters) for m in models)],
        ["  questions", *(str(m.letters.gold[_weakest(m.letters)]) for m in models)],
        ["letters: RStd", *(_figure(m.letters.rstd) for m in models)],
        ["  without preference", *(_chance(m.letters.rstd_chance, m.letters.rstd_chance_hi) for m in models)],
        ["letters: preference, p", *(_p(m.letters.p_value) for m in models)],
        ["calibration error (ECE)", *(_figure(m.calibration.raw.ece) for m in models)],
        ["  if calibrated", *(_chance(m.calibration.raw.ece_chance, m.calibration.raw.ece_chance_hi) for m in models)],
    ]
    if any(m.calibration.scaled for m in models):
        rows.append(["  scaled on validation", *(_scaled(m.calibration) for m in models)])
    if any(m.letter_mass is not None for m in models):
        masses = ("-" if m.letter_mass is None else f"{m.letter_mass:.1%}" for m in models)
        rows.append(["mean probability on letters", *masses])
    if any(m.agreement is not None for m in models):
        rows.append(["likelihood = generation", *(share_text(m.agreement, m.likelihood.n) for m in models)])
    if any(m.debiasing for m in models):
        cells = (share_text(m.debiasing.acc_debiased, m.debiasing.n) if m.debiasing else "-" for m in models)
        rows.append(["without the letters' prior", *cells])
    if any(m.permutations for m in models):
        for label, name in (("mean", "acc_mean"), ("right in all", "circular_acc"), ("same option", "consistency")):
            cells = (
                share_text(getattr(m.permutations, name), m.permutations.n) if m.permutations else "-" for m in models
            )
            rows.append([f"rotations: {label}", *cells])
        rows.append(["  questions", *(str(m.permutations.n) if m.permutations else "-" for m in models)])
    return rows


def _option_rows(models: Sequence[ModelEvidence]) -> list[list[str]]:
    """Accuracy under each option score."""
    names = ("sum", "per_token", "per_char") if all(m.option_scoring for m in models) else ()
    return [
        [f"accuracy, options by {name}", *(_interval(getattr(m.option_scoring, name)) for m in models)]
        for name in names
    ]


def _floor_rows(models: Sequence[ModelEvidence]) -> list[list[str]]:
    one = len({m.floors.best for m in models}) == 1
    rows = [[f"best floor: {models[0].floors.best}" if one else "best floor"]]
    rows[0] += [share_text(m.floors.max_floor, m.likelihood.n) for m in models]
    if not one:
        rows.append(["  it is", *(m.floors.best for m in models)])
    rows.append(["skill above it", *(_skill(m) for m in models)])
    rows.append(["accuracy where it is wrong", *(share_text(m.floors.accuracy_hard, m.floors.n_hard) for m in models)])
    rows.append(["  right", *(f"{m.floors.correct_hard} of {m.floors.n_hard}" for m in models)])
    return rows


def sentences(evidence: Evidence) -> list[str]:
    """What has to be said in words: leaks, what could be found, and what looks wrong."""
    said = []
    if evidence.leaks is not None:
        leaks = evidence.leaks
        said.append(
            f"Leak audit: {leaks.n_exact} exact and {leaks.n_near} near copies of training questions among "
            f"{leaks.n_test} test questions."
        )
    if evidence.rouge is not None:
        said.append(_rouge_context(evidence.rouge))
    said += [
        f"The best floor is {how}." for how in dict.fromkeys(m.floors.choice for m in evidence.models.values()) if how
    ]
    said += _detectable(evidence)
    if len(_main(evidence)) > 1:
        said.append("Other measures of these pairs are in evidence.json.")
    alike: dict[str, list[str]] = {}
    for name, model in evidence.models.items():
        for sentence in _about(model):
            alike.setdefault(sentence, []).append(name)
    return said + [f"{', '.join(names)}: {sentence}" for sentence, names in alike.items()]


def _about(model: ModelEvidence) -> list[str]:
    """What has to be said about one model."""
    said = [finding.sentence for finding in model.findings]
    if model.clean is not None and model.clean.n_dirty:
        clean = model.clean
        said.append(
            f"Of the questions that a leak check flagged {share_text(clean.accuracy_dirty, clean.n_dirty)} are right "
            f"({clean.correct_dirty} of {clean.n_dirty}), of the others "
            f"{share_text(clean.accuracy_clean, clean.n_clean)} ({clean.correct_clean} of {clean.n_clean})."
        )
    return said + ([f"{model.calibration.warning}."] if model.calibration.warning else [])


def differences(evidence: Evidence) -> list[tuple[str, dict[str, list[str]]]]:
    """Tables, each with its title and its columns: all measures of one pair, or the main accuracy of several pairs.

    Differences of accuracy are in points. p is mid-p for these, with Holm's correction beside it where several pairs
    ask the same.
    """
    if len({(pair.first, pair.second) for pair in evidence.pairs}) <= 1:
        rows: list[PairComparison | MeanDifference] = [*evidence.pairs, *evidence.differences]
        return [(_names(rows[0]), _columns([LABELS[row.outcome] for row in rows], rows))] if rows else []
    main = _main(evidence)
    tables = []
    for family in dict.fromkeys(pair.family for pair in main):
        asked = [pair for pair in main if pair.family == family]
        columns = _columns([_names(pair) for pair in asked], asked)
        columns["Holm p"] = [_p(pair.p_holm) for pair in asked]
        columns["gained, lost"] = [f"{pair.only_second_right}, {pair.only_first_right}" for pair in asked]
        tables.append((f"{LABELS[asked[0].outcome]}: {family or 'all pairs'} (Holm over {len(asked)})", columns))
    return tables


def _main(evidence: Evidence) -> list[PairComparison]:
    metric = primary_metric(any(pair.outcome == GENERATION for pair in evidence.pairs))
    return [pair for pair in evidence.pairs if pair.outcome == metric]


def _columns(labels: list[str], rows: Sequence[PairComparison | MeanDifference]) -> dict[str, list[str]]:
    return {
        "": labels,
        "change": [_change(row, row.difference) for row in rows],
        "95% interval": [_limits(row) for row in rows],
        "p": [_p(row.p) for row in rows],
    }


def _names(pair: PairComparison | MeanDifference) -> str:
    return f"{pair.second} minus {pair.first}"


def _change(row: PairComparison | MeanDifference, value: float) -> str:
    """In points for shares of questions."""
    return f"{100 * value:+.1f}" if isinstance(row, PairComparison) else f"{value:+.4f}"


def _limits(row: PairComparison | MeanDifference) -> str:
    if row.ci_lo is None or row.ci_hi is None:
        return "-"
    return f"{_change(row, row.ci_lo)} to {_change(row, row.ci_hi)}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _detectable(evidence: Evidence) -> list[str]:
    """From what difference on a run like this would show one."""
    pairs = [pair for pair in _main(evidence) if pair.detectable is not None]
    if not pairs:
        return []
    least, most = (100 * reach(pair.detectable or 0.0 for pair in pairs) for reach in (min, max))
    found = f"{least:.1f}" if len(pairs) == 1 else f"{least:.1f} to {most:.1f}"
    return [f"A difference of accuracy by {pairs[0].outcome} would be found 80 times in 100 from {found} points on."]


def _rouge_context(context: RougeContext) -> str:
    short = context.share_refs_lt2_tokens
    return (
        f"ROUGE-1/2/L of the right answers themselves: {_rouge(context.oracle)}; of always a wrong option: "
        f"{_rouge(context.always_wrong)} ({context.oracle.n} references, {short:.1%} with fewer than two tokens)."
    )


def _rouge(scores: RougeScores) -> str:
    values = (scores.rouge1, scores.rouge2, scores.rougeL)
    return ", ".join("undefined" if value is None else f"{value:.4f}" for value in values)


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


def _interval(accuracy: AccuracyInterval) -> str:
    return with_limits(accuracy.acc, accuracy.ci_lo, accuracy.ci_hi)


def _skill(model: ModelEvidence) -> str:
    floors = model.floors
    if floors.skill is None or floors.skill_lo is None or floors.skill_hi is None:
        return _figure(floors.skill)
    return f"{floors.skill:.2f} ({floors.skill_lo:.2f}, {floors.skill_hi:.2f})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _chance(mean: float | None, high: float | None) -> str:
    """What chance alone makes of a figure: its mean, and what it passes 5 times in 100."""
    return "-" if mean is None or high is None else f"{mean:.3f} (up to {high:.3f})"


def _lowest(letters: LetterBias) -> str:
    letter = _weakest(letters)
    return f"{letter} {share_text(letters.recall[letter], letters.gold[letter])}"


def _weakest(letters: LetterBias) -> str:
    """The gold letter of the lowest recall; the first of equals."""
    return min(letters.recall, key=lambda letter: (letters.recall[letter], LETTERS.index(letter)))


def _scaled(report: CalibrationReport) -> str:
    return "-" if report.scaled is None else f"{report.scaled.ece:.3f} (T = {report.temperature:.2f})"

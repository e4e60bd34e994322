"""Evidence for people: rows of a table, sentences, and the main figures for experiment loggers."""

from cyberlm.evidence.collecting import Evidence
from cyberlm.records import LETTERS
from cyberlm.statistics import CalibrationReport, LetterBias


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

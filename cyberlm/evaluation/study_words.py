"""A study in sentences: its plan before any result, and its findings."""

from collections.abc import Mapping, Sequence

from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.power import Variability, needed_questions, supported_margin
from cyberlm.evaluation.predictions import NAMED
from cyberlm.evaluation.study import (
    AGAINST_BASE,
    AGAINST_REFERENCE,
    RIGHT_WHERE_NAMED,
    Claim,
    StudyComparison,
    StudyRow,
)
from cyberlm.evaluation.study_analysis import ABOVE_BASE, StudyAnalysis
from cyberlm.evaluation.verdict import p_text

ASSUMED = 0.08, 0.05, 0.004
"""Discordance of two methods, of two seeds of one, and standard deviation over seeds, before anything is known."""


def plan_lines(study: StudyConfig) -> list[str]:
    """Plan of a study: what it runs and decides by, before any result."""
    seeds = ", ".join(map(str, study.seeds))
    tried = {method: rates for method, rates in study.learning_rates.items() if method in study.methods}
    lines = [
        f"Study {study.name}: {', '.join(study.methods)}, each with seeds {seeds}, on one split and the same test set",
        f"Decided by accuracy by {study.outcome.name}; margin {100 * study.margin:g} points against {study.reference}",
    ]
    if study.tune:
        rates = "; ".join(f"{method} {', '.join(f'{rate:g}' for rate in given)}" for method, given in tried.items())
        lines.append(f"Learning rates, chosen by validation option NLL with seed {study.tune_seed}: {rates}")
    return lines


def findings(
    rows: Sequence[StudyRow], comparisons: Sequence[StudyComparison], claims: Sequence[Claim], outcome: str
) -> list[str]:
    """Accuracy of each row and its differences, each method in a line, then format separately from knowledge."""
    by_row = {(pair.second, pair.family): pair for pair in comparisons if pair.outcome == outcome}
    lines = []
    for row in rows:
        if outcome not in row.figures:
            continue
        parts = [f"{row.name}: {_share(row, outcome)} right by {outcome}"]
        if (pair := by_row.get((row.name, AGAINST_BASE))) is not None:
            parts.append(f"{_difference(pair)} against {pair.first} ({p_text(pair.p_holm)}, Holm)")
        if (pair := by_row.get((row.name, AGAINST_REFERENCE))) is not None:
            parts.append(f"{_difference(pair)} against {pair.first}: {pair.words}")
        own = [claim for claim in claims if claim.method == row.name and claim.name != ABOVE_BASE]
        failed = [claim.reason for claim in own if not claim.holds][:1]
        lines.append(" ".join(["; ".join(parts) + ".", *(claim.reason for claim in own if claim.holds), *failed]))
    return lines + _format(rows)


def _share(row: StudyRow, outcome: str) -> str:
    figure = row.figures[outcome]
    assert figure.ci_lo is not None and figure.ci_hi is not None  # an accuracy has an interval
    return f"{figure.value:.1%} (95% {100 * figure.ci_lo:.1f} to {figure.ci_hi:.1%})"


def _difference(pair: StudyComparison) -> str:
    return f"{100 * pair.difference:+.1f} points (95% {100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f})"


def _format(rows: Sequence[StudyRow]) -> list[str]:
    """Format, separately from knowledge: completions that name an option, and how many of these are right."""
    found = []
    for row in rows:
        if NAMED in row.figures:
            right = row.figures.get(RIGHT_WHERE_NAMED)
            of_these = "" if right is None else f", {right.value:.1%} of these are right"
            found.append(f"{row.name} {row.figures[NAMED].value:.1%}{of_these}")
    return [f"Completions that name an option: {'; '.join(found)}."] if found else []


def baseline_sentence(rows: Sequence[StudyRow], baselines: Mapping[str, float], outcome: str) -> list[str]:
    """Methods whose accuracy is not above what needs no model; nothing where all are."""
    name, best = max(baselines.items(), key=lambda item: item[1], default=("", -1.0))
    below = [row.name for row in rows if outcome in row.figures and row.figures[outcome].value <= best]
    return [f"Not above the highest floor ({name}, {best:.1%}): {', '.join(below)}."] if below else []


def planned_power(study: StudyConfig, questions: int) -> str:
    """Margin that a study would support where the methods are equally good, before anything is known of them."""
    seeds, assumed = len(study.seeds), Variability(*ASSUMED)
    supported = supported_margin(questions, seeds, assumed)
    needed = needed_questions(study.margin, seeds, assumed)
    points = f"{100 * study.margin:g} points"
    ask = f"{points} are out of reach" if needed is None else f"{points} ask for {needed:,} questions"
    return (
        f"Power: where {assumed.discordance:.0%} of the answers of two methods differ, {questions:,} test questions "
        f"and {seeds} seeds show non-inferiority within {100 * supported:.1f} points 90 times in 100; {ask}"
    )


def found_power(analysis: StudyAnalysis, margin: float, seeds: int) -> list[str]:
    """The margin that the answers as they were support, and the questions that the named one asks for."""
    if not analysis.supported_margin:  # 0 where nothing varies
        return []
    found = (
        f"As these answers vary, {analysis.questions:,} test questions and {seeds} seeds show non-inferiority within "
        f"{100 * analysis.supported_margin:.1f} points 90 times in 100 where the methods are equally good"
    )
    if analysis.needed_questions is None:
        return [f"{found}; no number of questions alone supports {100 * margin:g} points."]
    return [f"{found}; {100 * margin:g} points ask for {analysis.needed_questions:,} questions."]

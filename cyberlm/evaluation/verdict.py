"""Comparisons as sentences and tables."""

from collections.abc import Sequence

from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, NAMED, NAMED_BY_BOTH, OUTCOMES, ROUGE
from cyberlm.evaluation.records import MeanDifference, PairComparison, Results

NLLS = {"gold_nll": "gold answer NLL", "option_nll": "right option's NLL"}
LABELS = OUTCOMES | ROUGE | NLLS
"""Of outcomes; a task's own figure has its name."""
SIGNIFICANCE = 0.05
"""A difference with a smaller p-value is called significant."""


def primary_comparisons(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """Main comparisons of a report: by generation, as in arXiv 2509.25241, where it was measured."""
    outcome = GENERATION if any(pair.outcome == GENERATION for pair in pairs) else LIKELIHOOD
    return [pair for pair in pairs if pair.outcome == outcome]


def main_comparison(pairs: Sequence[PairComparison]) -> PairComparison | None:
    """The tuned model of a run against its base; None where they were not compared."""
    return next((pair for pair in primary_comparisons(pairs) if (pair.first, pair.second) == ("base", "tuned")), None)


def main_means(means: Sequence[MeanDifference]) -> list[MeanDifference]:
    """Main comparisons where no answer counts as right or wrong: by ROUGE-L, or else NLL."""
    outcome = "rougeL" if any(mean.outcome == "rougeL" for mean in means) else "gold_nll"
    return [mean for mean in means if mean.outcome == outcome]


def task_figure(pair: PairComparison, means: Sequence[MeanDifference]) -> MeanDifference | None:
    """The first of the task's figures, of the same models: it gives credit to an answer that is right in part."""
    same = (mean for mean in means if (mean.first, mean.second) == (pair.first, pair.second))
    return next((mean for mean in same if mean.outcome not in NLLS and not mean.outcome.startswith("rouge")), None)


def verdict(pairs: Sequence[PairComparison], means: Sequence[MeanDifference] = ()) -> list[str]:
    """`Tuned against base: +2.7 points of accuracy by likelihood (95% -1.2 to +6.5), significantly better ...`.

    Args:
        means: Reported where there are no pairs; of the others the task's own figure is.
    """
    pair = main_comparison(pairs)
    if pair is None:
        listed = [_mean(mean) for mean in means if not pairs and (mean.first, mean.second) == ("base", "tuned")]
        return [f"Tuned against base: {'; '.join(listed)}."] if listed else []
    sentence = (
        f"Tuned against base: {_points(pair)} of accuracy by {pair.outcome} ({_interval(pair)}), "
        f"{_finding(pair)} ({p_text(pair.p)}): {_changes(pair)}."
    )
    by, figure = _by_outcome(pair, pairs), task_figure(pair, means)
    moved = [_moved(pair, by[NAMED], by.get(NAMED_BY_BOTH))] if pair.outcome == GENERATION else []
    return [sentence, *moved, *([f"Answers that are right in part count in {_mean(figure)}."] if figure else [])]


def verdict_in_brief(pairs: Sequence[PairComparison], means: Sequence[MeanDifference] = ()) -> list[str]:
    """At most two lines of 80 columns: the main difference, or how many of several differences are significant."""
    main = primary_comparisons(pairs)
    if not main:
        return [f"Difference: {_mean(mean)}" for mean in main_means(means)] if len(main_means(means)) == 1 else []
    pair = main_comparison(pairs) or main[0]
    if len(main) > 1 and main_comparison(pairs) is None:
        significant = sum(other.p_holm < SIGNIFICANCE for other in main)
        return [f"Differences by {pair.outcome}: {significant} of {len(main)} significant (Holm, {SIGNIFICANCE:.0%})"]
    moved, figure = "", task_figure(pair, means)
    if figure is not None:
        moved = f"; {_mean(figure)}"
    elif pair.outcome == GENERATION:
        both = _by_outcome(pair, pairs).get(NAMED_BY_BOTH)
        knowledge = _knowledge(pair, both)
        parts = f"format {100 * (pair.difference - knowledge):+.1f}, knowledge {100 * knowledge:+.1f}"
        moved = f"; {parts}" if both is not None else "; they never both name an option"
    finding = "" if figure else f"{_finding(pair).capitalize()}: "
    return [
        f"Difference: {_points(pair)} by {pair.outcome} ({_interval(pair)}), {p_text(pair.p)}",
        f"  {finding}{pair.only_second_right} gained, {pair.only_first_right} lost{moved}",
    ]


def _by_outcome(pair: PairComparison, pairs: Sequence[PairComparison]) -> dict[str, PairComparison]:
    """Comparisons of the same two models."""
    return {other.outcome: other for other in pairs if (other.first, other.second) == (pair.first, pair.second)}


def _mean(mean: MeanDifference) -> str:
    """`ROUGE-L +0.0532 (95% +0.0104 to +0.0960, p = 0.0152)`."""
    more = "" if mean.p is None else f" (95% {_limits(mean)}, {p_text(mean.p)})"
    return f"{LABELS.get(mean.outcome, mean.outcome.replace('_', ' '))} {mean.difference:+.4f}{more}"


def _points(pair: PairComparison) -> str:
    return f"{100 * pair.difference:+.1f} points"


def _interval(pair: PairComparison) -> str:
    return f"95% {100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f}"


def _finding(pair: PairComparison) -> str:
    if pair.p >= SIGNIFICANCE:
        return "no significant difference"
    return "significantly better" if pair.difference > 0 else "significantly worse"


def _knowledge(generation: PairComparison, both: PairComparison | None) -> float:
    """Part of the difference by generation that comes from questions on which both models name an option."""
    return 0.0 if both is None else both.difference * both.n / generation.n


def _moved(generation: PairComparison, named: PairComparison, both: PairComparison | None) -> str:
    """Format separately from knowledge: their points add up to the difference by generation."""
    knowledge = _knowledge(generation, both)
    unnamed = [f"{1 - (right or 0) / named.n:.1%}" for right in (named.first_right, named.second_right)]
    format_part = (
        f"Format {100 * (generation.difference - knowledge):+.1f} points: completions that name no option, cut off or "
        f"not, go from {unnamed[0]} to {unnamed[1]} ({p_text(named.p)})"
    )
    if both is None:
        return f"{format_part}; no question has both models name an option."
    return (
        f"{format_part}; knowledge {100 * knowledge:+.1f} points: where both name one ({both.n} of {generation.n} "
        f"questions) {_changes(both)} ({p_text(both.p)})."
    )


def _changes(pair: PairComparison) -> str:
    gained, lost = pair.only_second_right, pair.only_first_right
    return f"{gained} question{'' if gained == 1 else 's'} gained, {lost} lost"


def p_text(p_value: float) -> str:
    """`p = 0.0312`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3g}"


def difference_tables(results: Results) -> list[tuple[str, dict[str, list[str]]]]:
    """Tables, each with its title and its columns: all measures of one pair, or the main accuracy of several pairs.

    Differences of accuracy are in points. p is mid-p for these, with Holm's correction beside it where several pairs
    ask the same.
    """
    labels = LABELS | {m.name: m.label or m.name for found in results.metrics.values() for m in found.values()}
    rows: list[PairComparison | MeanDifference] = [*results.comparisons, *results.differences]
    if len({(row.first, row.second) for row in rows}) <= 1:
        return [(_names(rows[0]), _columns([labels.get(r.outcome, r.outcome) for r in rows], rows))] if rows else []
    main = primary_comparisons(results.comparisons) or main_means(results.differences)
    tables = []
    for family in dict.fromkeys(pair.family for pair in main):
        asked = [pair for pair in main if pair.family == family]
        columns = _columns([_names(pair) for pair in asked], asked)
        columns["Holm p"] = [p_cell(pair.p_holm) for pair in asked]
        moved = [(pair.only_second_right, pair.only_first_right) for pair in asked if isinstance(pair, PairComparison)]
        columns |= {"gained, lost": [f"{gained}, {lost}" for gained, lost in moved]} if moved else {}
        tables.append((f"{labels[asked[0].outcome]}: {family or 'all pairs'} (Holm over {len(asked)})", columns))
    return tables


def power(pairs: Sequence[PairComparison]) -> list[str]:
    """From what difference on an evaluation like this would show one, and where all comparisons are."""
    main = primary_comparisons(pairs)
    detectable = [100 * pair.detectable for pair in main if pair.detectable is not None]
    sentences = []
    if detectable:
        least, most = min(detectable), max(detectable)
        found = f"{least:.1f}" if len(detectable) == 1 else f"{least:.1f} to {most:.1f}"
        sentences.append(
            f"A difference of accuracy by {main[0].outcome} would be found 80 times in 100 from {found} points on."
        )
    return sentences + (["Other measures of these pairs are in results.json."] if len(main) > 1 else [])


def _columns(labels: list[str], rows: Sequence[PairComparison | MeanDifference]) -> dict[str, list[str]]:
    return {
        "": labels,
        "change": [_change(row, row.difference) for row in rows],
        "95% interval": [_limits(row) for row in rows],
        "p": [p_cell(row.p) for row in rows],
    }


def _names(pair: PairComparison | MeanDifference) -> str:
    return f"{pair.second} minus {pair.first}"


def _change(row: PairComparison | MeanDifference, value: float | None) -> str:
    """In points for shares of questions."""
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if isinstance(row, PairComparison) else f"{value:+.4f}"


def _limits(row: PairComparison | MeanDifference) -> str:
    return "-" if row.ci_lo is None else f"{_change(row, row.ci_lo)} to {_change(row, row.ci_hi)}"


def p_cell(value: float | None) -> str:
    """`< 0.001` or `0.031`; `-` for none."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

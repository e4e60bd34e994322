"""Page of a training run or an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from scipy.special import softmax

from cyberlm.evaluation.charts import by_topic, letter_counts, reliability
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.calibration import confidence_of
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.pages import figures
from cyberlm.evaluation.pages.learning_curves import panels_of
from cyberlm.evaluation.pages.rendering import Picture, picture, render
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, OUTCOMES, Prediction, Predictions, right
from cyberlm.evaluation.records import PairComparison, Results
from cyberlm.evaluation.report import cost_rows, metric_rows, notes
from cyberlm.evaluation.scores import scores_of
from cyberlm.evaluation.statistics import FloatArray
from cyberlm.evaluation.verdict import difference_tables, main_comparison, power, primary_comparisons, verdict
from cyberlm.tasks.task import LETTERS, option_name

MAX_SHOWN = 20
"""Questions."""
MAX_TOPICS = 12
"""In the figure; the table has all."""
MAX_CARDS = 5
MAX_MODELS = 6
MAX_PAIRS = 12
"""In figures."""


@dataclass(frozen=True)
class Origin:
    """Command, settings and learning curves of a run.

    Attributes:
        command: To type; without secrets.
        changed: Settings that differ from the defaults: key, this run's value, default.
        curves: Figures of metrics.csv by optimizer step, by the column's name.
    """

    name: str
    command: str
    changed: Sequence[tuple[str, str, str]] = ()
    curves: Mapping[str, figures.Points] = field(default_factory=dict)


def run_page(results: Results, eval_set: EvalSet, models: Mapping[str, Predictions], origin: Origin) -> str:
    """Renders report.html of a run or an evaluation; without models where no test question was answered."""
    rows = {name: given.test for name, given in models.items()}
    scores = {name: scores_of(given, eval_set.option_score).numpy() for name, given in rows.items()}
    topics = _topics(results, eval_set, rows)
    ids = [row.id for row in next(iter(rows.values()), ())]
    by_id = {name: dict(zip(ids, given, strict=True)) for name, given in rows.items()}
    probabilities = {name: dict(zip(ids, softmax(found, axis=1), strict=True)) for name, found in scores.items()}
    pair = _pair(results)
    return render(
        "run.html",
        title=f"{results.model}{'' if results.method == 'none' else f', {results.method}'} on {results.data}",
        results=results,
        origin=origin,
        findings=[*verdict(results.comparisons, results.differences), *power(results.comparisons)],
        cards=_cards(results),
        headline=metric_rows(results, "headline"),
        headline_notes=notes(results, "headline"),
        differences=difference_tables(results),
        evidence=metric_rows(results, "evidence"),
        evidence_notes=notes(results, "evidence", "note"),
        details=metric_rows(results, "detail"),
        pictures=_pictures(results, eval_set, dict(list(rows.items())[:MAX_MODELS]), scores, origin, topics),
        omitted=max(0, len(rows) - MAX_MODELS),
        topics=topics,
        cost=cost_rows(results, results.cost) if results.cost else {},
        questions=informative_questions(by_id, probabilities, pair),
        compared=(pair.first, pair.second) if pair else list(rows)[-1:],
        rows=by_id,
        probabilities=probabilities,
        texts=dict(zip(ids, eval_set.questions, strict=False)),
        eval_set=eval_set,
        option_name=option_name,
    )


def _pair(results: Results) -> PairComparison | None:
    """Main comparison of a page."""
    return main_comparison(results.comparisons) or next(iter(primary_comparisons(results.comparisons)), None)


def _cards(results: Results) -> list[tuple[str, str]]:
    """The main figure of each model, and the main difference; below each, what it rests on."""
    pair, cards = _pair(results), []
    label = OUTCOMES[pair.outcome] if pair else ""
    for model, metrics in list(results.metrics.items())[:MAX_CARDS]:
        heads = [m for m in metrics.values() if m.place == "headline" and m.value is not None]
        metric = next((m for m in heads if m.label == label), heads[0] if heads else None)
        if metric is not None:
            cards.append((metric.shown(), f"{model}: {metric.label or metric.name}. {metric.basis()}"))
    if pair is not None:
        limits = f"95%: {100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f}"
        cards.append((f"{100 * pair.difference:+.1f} points", f"{pair.second} minus {pair.first}. {limits}"))
    return cards


def _outcome(results: Results) -> str:
    """Main outcome of a page."""
    pair = _pair(results)
    return pair.outcome if pair else LIKELIHOOD


def _topics(
    results: Results, eval_set: EvalSet, models: Mapping[str, Sequence[Prediction]]
) -> dict[str, dict[str, Metric]]:
    """Accuracy by topic, then by model."""
    found: dict[str, dict[str, Metric]] = {}
    for model, rows in models.items():
        correct = right(rows, generated=_outcome(results) == GENERATION)
        for metric in by_topic(rows, correct, eval_set.clusters):
            found.setdefault(metric.name, {})[model] = metric
    return found


def _pictures(
    results: Results,
    eval_set: EvalSet,
    models: Mapping[str, Sequence[Prediction]],
    scores: Mapping[str, FloatArray],
    origin: Origin,
    topics: Mapping[str, Mapping[str, Metric]],
) -> list[Picture]:
    """Every figure of the models that are shown, as far as the results allow."""
    found = []
    if results.comparisons:
        found.append(_forest(results.comparisons))
    if origin.curves:
        caption = "From metrics.csv. Pale: each row; bold: the mean of neighbouring rows."
        found.append(picture(figures.curves(panels_of(origin.curves)), "Learning curves", caption))
    if models and all(row.n_options > 1 for row in next(iter(models.values()))):
        points = {
            name: reliability(confidence_of(scores[name]), right(rows), eval_set.clusters)
            for name, rows in models.items()
        }
        caption = (
            "Share of right answers by the probability of the chosen option, in bins of equally many questions, with "
            "95% intervals. Below the dashed line a model is surer than it is right."
        )
        found.append(picture(figures.reliability(points), "Reliability", caption))
        counts = {name: letter_counts(rows) for name, rows in models.items()}
        if all(len(table) <= len(LETTERS) for table in counts.values()):
            caption = "How often each letter is right, and how often each model chooses it, by likelihood."
            found.append(picture(figures.letters(counts), "Letters", caption))
    if len(topics) > 1:
        most = f" The {MAX_TOPICS} topics with the most questions." if len(topics) > MAX_TOPICS else ""
        shown = {
            topic: {name: metric for name, metric in shares.items() if name in models}
            for topic, shares in list(topics.items())[:MAX_TOPICS]
        }
        caption = f"Accuracy by {_outcome(results)}, with 95% intervals.{most}"
        found.append(picture(figures.shares(shown), "Accuracy by topic", caption))
    return found


def _forest(pairs: Sequence[PairComparison]) -> Picture:
    """Differences of accuracy: of one pair by every outcome, of several pairs by the main one."""
    one = len({(pair.first, pair.second) for pair in pairs}) == 1
    chosen = pairs if one else primary_comparisons(pairs)
    rows = []
    for pair in chosen[:MAX_PAIRS]:
        label = OUTCOMES[pair.outcome].strip() if one else f"{pair.second} minus {pair.first}"
        rows.append((label, 100 * pair.difference, 100 * pair.ci_lo, 100 * pair.ci_hi))
    what = f"{pairs[0].second} minus {pairs[0].first}" if one else OUTCOMES[chosen[0].outcome]
    most = f" The first {MAX_PAIRS} of {len(chosen)} pairs." if len(chosen) > MAX_PAIRS else ""
    caption = f"Of {what}, with 95% intervals. Grey: 0 lies within.{most}"
    return picture(figures.forest(rows, "points"), "Differences", caption)


def informative_questions(
    rows: Mapping[str, Mapping[str, Prediction]],
    probabilities: Mapping[str, Mapping[str, FloatArray]],
    pair: PairComparison | None,
) -> dict[str, list[str]]:
    """Ids of the questions that tell the most, by kind: gained, lost, and answered wrong with confidence.

    At most `MAX_SHOWN`, each kind having its share. Gained and lost are sorted by how far the right option's
    probability moved.

    Args:
        rows, probabilities: By model, then by the question's id; probabilities (K,) of the options.
        pair: Comparison that says what was gained and lost; None for a single model.
    """
    if not rows:
        return {}
    shown = (pair.first, pair.second) if pair else tuple(rows)[-1:]
    last = shown[-1]

    def moved(name: str) -> float:
        first, second = (float(probabilities[model][name][rows[model][name].gold]) for model in shown)
        return second - first

    changed = {*pair.gained, *pair.lost} if pair else set()
    wrong = [name for name, row in rows[last].items() if not row.correct and row.n_options > 1 and name not in changed]
    kinds = {
        "gained": sorted(pair.gained, key=moved, reverse=True) if pair else [],
        "lost": sorted(pair.lost, key=moved) if pair else [],
        "confidently wrong": sorted(wrong, key=lambda name: -probabilities[last][name].max()),
    }
    in_turn = [name for names in zip_longest(*kinds.values()) for name in names if name is not None][:MAX_SHOWN]
    shown_of = {kind: [name for name in names if name in in_turn] for kind, names in kinds.items()}
    return {kind: names for kind, names in shown_of.items() if names}

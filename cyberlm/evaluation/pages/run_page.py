"""Page of a training run or an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cyberlm.evaluation.breakdowns import by_topic, letter_counts, reliability
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, Place
from cyberlm.evaluation.outcomes import FloatArray, choices, golds, right
from cyberlm.evaluation.pages import figures
from cyberlm.evaluation.pages.learning_curves import panels_of
from cyberlm.evaluation.pages.questions import ShownQuestion, informative_questions
from cyberlm.evaluation.pages.rendering import Cell, Picture, Table, picture, render
from cyberlm.evaluation.predictions import GENERATION, LIKELIHOOD, OUTCOMES, Prediction
from cyberlm.evaluation.records import PairComparison, Results
from cyberlm.evaluation.report import cost_rows, notes
from cyberlm.evaluation.verdict import difference_tables, main_comparison, power, primary_comparisons, verdict

MOST_TOPICS = 12
"""In the figure; the table has all."""
MOST_CARDS = 5
MOST_MODELS = 6
MOST_PAIRS = 12
"""In figures."""


@dataclass(frozen=True)
class Origin:
    """How a run was made, and how to make it again.

    Attributes:
        name: Of its folder.
        command: To type; without secrets.
        changed: Settings that differ from the defaults: key, this run's value, default.
        curves: Figures of metrics.csv by optimizer step, by the column's name.
    """

    name: str
    command: str
    changed: Sequence[tuple[str, str, str]] = ()
    curves: Mapping[str, figures.Points] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Answers of the models to the test questions; empty where none was asked.

    Attributes:
        rows: By model, in the order of the questions.
        probabilities: Of the options, (N, K), by model; 0 for options that a question does not have.
    """

    rows: Mapping[str, Sequence[Prediction]]
    probabilities: Mapping[str, FloatArray]

    @property
    def shown(self) -> Mapping[str, Sequence[Prediction]]:
        """Those of the models in figures."""
        return dict(list(self.rows.items())[:MOST_MODELS])

    @property
    def first(self) -> Sequence[Prediction]:
        return next(iter(self.rows.values()), ())


def run_page(results: Results, eval_set: EvalSet, answers: Answers, origin: Origin) -> str:
    """Renders report.html of a run or an evaluation."""
    topics = _topics(results, eval_set, answers)
    tuned = "" if results.method == "none" else f", {results.method}"
    return render(
        "run.html",
        title=f"{results.model}{tuned} on {results.data}",
        kind="Training run" if results.kind == "train" else "Evaluation",
        origin=origin,
        facts=_facts(results),
        findings=[*verdict(results.comparisons), *power(results.comparisons)],
        cards=_cards(results),
        headline=_metric_table(results, "headline"),
        headline_notes=notes(results, "headline"),
        differences=[(title, _plain_table(columns)) for title, columns in difference_tables(results)],
        evidence=_metric_table(results, "evidence"),
        evidence_notes=notes(results, "evidence", "note"),
        details=_metric_table(results, "detail"),
        pictures=_pictures(results, eval_set, answers, origin, topics),
        omitted=len(answers.rows) - len(answers.shown),
        topics=_topic_table(topics, list(answers.rows)),
        cost=cost_rows(results, results.cost) if results.cost else {},
        questions=_questions(results, eval_set, answers),
        licence=eval_set.config.data.licence,
        shows_text=eval_set.shows_text,
        settings=Table(["setting", "here", "default"], origin.changed),
        provenance=results.provenance,
    )


def _facts(results: Results) -> dict[str, str]:
    """Model, method, data and choice of the weights."""
    facts = {
        "model": results.model,
        "method": "none: nothing was trained" if results.method == "none" else results.method,
        "base weights": "as they are" if results.quant == "none" else results.quant,
        "prompt": results.prompt,
        "data": results.data,
        "questions": ", ".join(f"{count:,} {part}" for part, count in results.questions.items()),
    }
    if results.kind == "train":
        facts["optimizer steps"] = f"{results.steps:,}"
    if results.objective is not None:
        figures_of = {name: value for name, value in results.validation.items() if value is not None}
        listed = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures_of.items())
        by = (results.monitor or "accuracy").replace("_", " ")
        facts["weights chosen by"] = f"{by} on the validation questions ({listed or f'{results.objective:.4f}'})"
    return facts


def _pair(results: Results) -> PairComparison | None:
    """The comparison that a page speaks of first."""
    return main_comparison(results.comparisons) or next(iter(primary_comparisons(results.comparisons)), None)


def _cards(results: Results) -> list[Cell]:
    """The main figure of each model, and the main difference."""
    pair, cards = _pair(results), []
    label = OUTCOMES[pair.outcome] if pair else ""
    for model, metrics in list(results.metrics.items())[:MOST_CARDS]:
        heads = [m for m in metrics.values() if m.place == "headline" and m.value is not None]
        metric = next((m for m in heads if m.label == label), heads[0] if heads else None)
        if metric is not None:
            cell = _metric_cell(metric)
            cards.append(replace(cell, small=f"{model}: {metric.label or metric.name}. {cell.small}"))
    if pair is not None:
        limits = f"95%: {100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f}"
        small = f"{pair.second} minus {pair.first}. {limits}"
        cards.append(Cell(f"{100 * pair.difference:+.1f} points", pair.difference, small))
    return cards


def _metric_cell(metric: Metric | None, usual: int | None = None) -> Cell:
    """Value, below it the interval and the questions in words: `95%: 30.0% to 45.3%, 56 of 150`.

    Args:
        usual: Number of questions that goes without saying, where the value is no share of them.
    """
    if metric is None or metric.value is None:
        return Cell("-")
    words = []
    if metric.interval is not None:
        low, high = (format(limit, metric.format_spec) for limit in metric.interval)
        words.append(f"{low} to {high}" if metric.label.endswith("%)") else f"95%: {low} to {high}")
    if metric.n is not None and metric.is_share:
        words.append(f"{round(metric.value * metric.n)} of {metric.n}")
    elif metric.n not in (None, usual):
        words.append(f"{metric.n} questions")
    return Cell(replace(metric, interval=None).text(), metric.value, ", ".join(words))


def _metric_table(results: Results, place: Place) -> Table:
    """A row for each metric of a place, a column for each model."""
    every = [m for found in results.metrics.values() for m in found.values() if m.place == place]
    labels = {m.name: (m.label or m.name).strip() for m in every}
    usual = results.questions.get("test")
    rows: list[list[Cell | str]] = []
    for name, label in labels.items():
        rows.append([label, *(_metric_cell(found.get(name), usual) for found in results.metrics.values())])
    return Table(["metric", *results.metrics], rows)


def _plain_table(columns: Mapping[str, Sequence[str]]) -> Table:
    return Table(list(columns), [[cell.strip() for cell in row] for row in zip(*columns.values(), strict=True)])


def _outcome(results: Results) -> str:
    """Outcome that a page speaks of first."""
    pair = _pair(results)
    return GENERATION if pair is not None and pair.outcome == GENERATION else LIKELIHOOD


def _topics(results: Results, eval_set: EvalSet, answers: Answers) -> dict[str, dict[str, Metric]]:
    """Accuracy by topic, then by model."""
    found: dict[str, dict[str, Metric]] = {}
    for model, rows in answers.rows.items():
        correct = right(rows, generated=_outcome(results) == GENERATION)
        for metric in by_topic(rows, correct, eval_set.clusters):
            found.setdefault(metric.name, {})[model] = metric
    return found


def _topic_table(topics: Mapping[str, Mapping[str, Metric]], models: Sequence[str]) -> Table:
    rows = []
    for topic, shares in topics.items():
        count = next(iter(shares.values())).n
        rows.append([Cell(topic, small=f"{count} questions"), *(_metric_cell(shares.get(name)) for name in models)])
    return Table(["topic", *models], rows)


def _pictures(
    results: Results, eval_set: EvalSet, answers: Answers, origin: Origin, topics: Mapping[str, Mapping[str, Metric]]
) -> list[Picture]:
    """Every figure that the results allow."""
    found = []
    if results.comparisons:
        found.append(_forest(results.comparisons))
    if origin.curves:
        caption = "From metrics.csv. Pale: each row; bold: the mean of neighbouring rows."
        found.append(picture(figures.curves(panels_of(origin.curves)), "Learning curves", caption))
    if answers.first and all(row.n_options > 1 for row in answers.first):
        found += [_reliability(answers, eval_set), _letters(answers)]
    if len(topics) > 1:
        most = f" The {MOST_TOPICS} topics with the most questions." if len(topics) > MOST_TOPICS else ""
        shown = {
            topic: {name: metric for name, metric in shares.items() if name in answers.shown}
            for topic, shares in list(topics.items())[:MOST_TOPICS]
        }
        caption = f"Accuracy by {_outcome(results)}, with 95% intervals.{most}"
        found.append(picture(figures.shares(shown), "Accuracy by topic", caption))
    return found


def _forest(pairs: Sequence[PairComparison]) -> Picture:
    """Differences of accuracy: of one pair by every outcome, of several pairs by the main one."""
    one = len({(pair.first, pair.second) for pair in pairs}) == 1
    chosen = pairs if one else primary_comparisons(pairs)
    rows = []
    for pair in chosen[:MOST_PAIRS]:
        label = OUTCOMES[pair.outcome].strip() if one else f"{pair.second} minus {pair.first}"
        rows.append(figures.Interval(label, 100 * pair.difference, 100 * pair.ci_lo, 100 * pair.ci_hi))
    what = f"{pairs[0].second} minus {pairs[0].first}" if one else OUTCOMES[chosen[0].outcome]
    most = f" The first {MOST_PAIRS} of {len(chosen)} pairs." if len(chosen) > MOST_PAIRS else ""
    caption = f"Of {what}, with 95% intervals. Grey: 0 lies within.{most}"
    return picture(figures.forest(rows, "points"), "Differences", caption)


def _reliability(answers: Answers, eval_set: EvalSet) -> Picture:
    points = {
        name: reliability(answers.probabilities[name].max(axis=1), right(rows), eval_set.clusters)
        for name, rows in answers.shown.items()
    }
    caption = (
        "Share of right answers by the probability of the chosen option, in bins of equally many questions, with 95% "
        "intervals. Below the dashed line a model is surer than it is right."
    )
    return picture(figures.reliability(points), "Reliability", caption)


def _letters(answers: Answers) -> Picture:
    width = max(row.n_options for row in answers.first)
    counts = {name: letter_counts(choices(rows), golds(rows), width) for name, rows in answers.shown.items()}
    caption = "How often each letter is right, and how often each model chooses it, by likelihood."
    return picture(figures.letters(counts), "Letters", caption)


def _questions(results: Results, eval_set: EvalSet, answers: Answers) -> list[ShownQuestion]:
    """The most informative ones; a completion is read as a letter only where the options were shown."""
    if not answers.rows:
        return []
    texts = {row.id: question for row, question in zip(answers.first, eval_set.questions, strict=True)}
    rows = {name: {row.id: row for row in given} for name, given in answers.rows.items()}
    probabilities = {
        name: {row.id: own for row, own in zip(given, answers.probabilities[name], strict=True)}
        for name, given in answers.rows.items()
    }
    shown = texts if eval_set.shows_text else None
    return informative_questions(shown, rows, probabilities, _pair(results), reads_letters=eval_set.options_shown)

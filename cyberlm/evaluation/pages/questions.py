"""The questions of an evaluation that tell the most: gained, lost, and answered wrong with confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cyberlm.evaluation.outcomes import FloatArray
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import PairComparison
from cyberlm.tasks.task import LETTERS, Example

MOST_SHOWN = 20

Rows = Mapping[str, Prediction]
Probabilities = Mapping[str, FloatArray]
"""Of the options, (K,), by the question's id."""


@dataclass(frozen=True)
class Answer:
    """One model's answer to a question.

    Attributes:
        chosen: Letter of the option chosen by likelihood, and its probability among the options.
        named: Letter that the completion names, `-` for none; None where nothing was generated.
        completion: None where it must not be shown, or nothing was generated.
    """

    chosen: str
    probability: float
    right: bool
    named: str | None
    named_right: bool
    completion: str | None


@dataclass(frozen=True)
class ShownQuestion:
    """A question with the answers of one or two models.

    Attributes:
        kind: `gained`, `lost` or `confidently wrong`.
        text, options: None and empty where the licence does not allow to show them.
    """

    kind: str
    id: str
    topic: str
    right: str
    text: str | None
    options: Mapping[str, str]
    answers: Mapping[str, Answer]


def informative_questions(
    questions: Mapping[str, Example] | None,
    rows: Mapping[str, Rows],
    probabilities: Mapping[str, Probabilities],
    pair: PairComparison | None,
    *,
    reads_letters: bool = True,
) -> list[ShownQuestion]:
    """At most `MOST_SHOWN`, each kind having its share; within a kind the most telling first.

    Gained and lost are sorted by how far the right option's probability moved.

    Args:
        questions: By id; None where their text must not be shown.
        rows, probabilities: By model, then by the question's id.
        pair: Comparison that says what was gained and lost; None for a single model.
        reads_letters: False where completions were not read as options.
    """
    shown = (pair.first, pair.second) if pair else tuple(rows)[-1:]
    last = shown[-1]

    def moved(name: str) -> float:
        first, second = (float(probabilities[model][name][rows[model][name].gold]) for model in shown)
        return second - first

    lost = set(pair.lost) if pair else set()
    wrong = [name for name, row in rows[last].items() if not row.correct and row.n_options > 1 and name not in lost]
    waiting: dict[str, list[str]] = {
        "gained": sorted(pair.gained, key=moved, reverse=True) if pair else [],
        "lost": sorted(pair.lost, key=moved) if pair else [],
        "confidently wrong": sorted(wrong, key=lambda name: -probabilities[last][name].max()),
    }
    kinds = _in_turn(waiting)
    ordered = sorted(kinds, key=lambda name: list(waiting).index(kinds[name]))  # stable
    found = []
    for name in ordered:
        question = None if questions is None else questions[name]
        answers = {
            model: _answer(rows[model][name], probabilities[model][name], question is not None, reads_letters)
            for model in shown
        }
        row = rows[last][name]
        text, options = (
            (question.question, dict(zip(LETTERS, question.options, strict=False))) if question else (None, {})
        )
        found.append(ShownQuestion(kinds[name], name, row.topic, LETTERS[row.gold], text, options, answers))
    return found


def _in_turn(waiting: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Kind of each chosen id: one of each kind in turn, until there are enough or none is left."""
    kinds: dict[str, str] = {}
    queues = {kind: iter(names) for kind, names in waiting.items()}
    while queues and len(kinds) < MOST_SHOWN:
        for kind, queue in list(queues.items()):
            name = next((name for name in queue if name not in kinds), None)
            if name is None:
                del queues[kind]
            elif len(kinds) < MOST_SHOWN:
                kinds[name] = kind
    return kinds


def _answer(row: Prediction, probabilities: FloatArray, shows_text: bool, reads_letters: bool) -> Answer:
    named = None
    if row.generated is not None and reads_letters:
        named = LETTERS[row.parsed] if isinstance(row.parsed, int) else "-"
    return Answer(
        chosen=LETTERS[row.choice],
        probability=float(probabilities.max()),
        right=row.correct,
        named=named,
        named_right=row.generated_correct,
        completion=row.generated if shows_text else None,
    )

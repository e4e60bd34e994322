"""Questions and predictions for the tests of cyberlm.evaluation."""

from collections.abc import Sequence

from hypothesis import settings
from support import compose

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.predictions import Prediction
from cyberlm.tasks.questions import LETTERS, Question

calmly = settings(deadline=None, derandomize=True)
"""For property tests: the same examples every time, and no clock, which a busy machine would fail."""


def question(number: int, gold: int, options: Sequence[str] = ("north", "east", "south", "west")) -> Question:
    return Question(f"q:{number:04}", f"Question {number}?", tuple(options), gold)


def answered(
    asked: Question, choice: int, log_probs: Sequence[float] | None = None, parsed: int | None = None
) -> Prediction:
    """A prediction whose scores fit its choice, unless others are given; `parsed` -1 stands for unparseable."""
    scores = (
        tuple(log_probs) if log_probs is not None else tuple(-0.1 - (k != choice) for k in range(len(asked.options)))
    )
    return Prediction(
        id=asked.id,
        hash=asked.hash,
        gold=asked.gold,
        n_options=len(asked.options),
        option_logprobs=scores,
        option_tokens=(1,) * len(asked.options),
        option_chars=(1,) * len(asked.options),
        choice=choice,
        gold_nll=-scores[asked.gold],
        generated=None if parsed is None else LETTERS[max(parsed, 0)],
        parsed=None if parsed is None or parsed < 0 else parsed,
        reference=asked.letter,
        prompt_hash="f" * 16,
    )


def predictions(golds: str, choices: str) -> list[Prediction]:
    """One prediction a letter: `predictions("ABC", "ABB")` has two right."""
    return [
        answered(question(i, LETTERS.index(gold)), LETTERS.index(choice))
        for i, (gold, choice) in enumerate(zip(golds, choices, strict=True))
    ]


def outcomes(right: Sequence[bool]) -> list[Prediction]:
    """Questions whose answer is A, answered right or wrong."""
    return predictions("A" * len(right), "".join("A" if hit else "B" for hit in right))


def eval_set(asked: Sequence[Question], *overrides: str, seen: Sequence[Question] = ()) -> EvalSet:
    """The context of metrics: the letter protocol, unless overrides say otherwise."""
    composed = compose("prompt=letter", "logger=none", *overrides, command="evaluate")
    return EvalSet(build_config(composed, EvaluateConfig), asked, seen=seen)

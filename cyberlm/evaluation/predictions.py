"""Predictions: one model's answers to the questions of an evaluation, and arrays of what they chose."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyberlm.evaluation.statistics import BoolArray, IntArray
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import LETTERS

LIKELIHOOD, GENERATION, NAMED, NAMED_BY_BOTH = "likelihood", "generation", "option_named", "named_by_both"
OUTCOMES = {
    LIKELIHOOD: "accuracy, likelihood",
    GENERATION: "accuracy, generation",
    NAMED: "  an option is named",
    NAMED_BY_BOTH: "  where both name one",
}
"""Outcomes by question, with their labels: right by likelihood; right by generation; the completion names an option
(format); right by generation where both models' completions name one (knowledge)."""
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
"""Labels of ROUGE by name."""
NO_CHOICE = -1
"""Choice of a completion that names no option."""
OTHER_ANSWER = -2
"""Choice of a completion that holds a free answer other than the target."""


@dataclass(frozen=True)
class Prediction:
    """Answer of one model to one question: everything that a metric needs, so that any number can be recomputed.

    Attributes:
        gold, choice: Indices of the right option, and of the one chosen by likelihood.
        option_logprobs: Summed log-probability (nats) of each option's answer tokens, given the prompt.
        option_tokens, option_chars: Answer tokens and characters of each option.
        gold_nll: Mean negative log-likelihood a token of the right answer, end of turn left out (nats).
        generated: Greedy completion, or None without generation.
        parsed: Option that the completion names, the text of a free answer, or None where it has neither.
        reference: The text that ROUGE compares the completion with.
        prompt_hash: SHA-256 (first 16 hex digits) of the rendered prompt.
        tied: True if another option had the same score as the chosen one.
        finish_reason: `stop`, or `length` where `max_new_tokens` cut the completion off; None in older files.
        option_log_odds: Of each option that was asked about alone, log P(yes) - log P(no) (nats); else empty.
    """

    id: str
    hash: str
    gold: int
    n_options: int
    option_logprobs: tuple[float, ...]
    option_tokens: tuple[int, ...]
    option_chars: tuple[int, ...]
    choice: int
    gold_nll: float
    generated: str | None
    parsed: int | str | None
    reference: str
    prompt_hash: str
    topic: str = ""
    tied: bool = False
    finish_reason: str | None = None
    option_log_odds: tuple[float, ...] = ()

    @property
    def correct(self) -> bool:
        """Right by likelihood."""
        return self.choice == self.gold

    @property
    def generated_correct(self) -> bool:
        """Right by generation; a completion that cannot be parsed is wrong."""
        return self.parsed == self.gold

    @property
    def yes_letters(self) -> str:
        """Letters of the options of which yes is likelier than no, where each was asked about alone: `A, C`."""
        odds = zip(LETTERS, self.option_log_odds, strict=False)
        return ", ".join(letter for letter, value in odds if value > 0)


@dataclass(frozen=True)
class Predictions:
    """One model's predictions; passes that were not run are empty.

    Attributes:
        rotated: Of every rotation of each question that may be rotated (`metrics.rotations`), the unrotated one first.
        without_question: Of the options alone, without the text of the test questions.
    """

    test: Sequence[Prediction]
    rotated: Sequence[Sequence[Prediction]] = ()
    without_question: Sequence[Prediction] = ()
    validation: Sequence[Prediction] = ()


def has_candidates(predictions: Sequence[Prediction]) -> bool:
    """True if there is anything to choose by likelihood; of free answers the target alone is scored."""
    return any(row.n_options > 1 for row in predictions)


def choices(predictions: Sequence[Prediction], generated: bool = False) -> IntArray:
    """Indices of the options chosen by likelihood, or named by the completions (`NO_CHOICE` for none), (N,) int64.

    Raises:
        RunError: If `generated`, and some predictions hold no completion.
    """
    if not generated:
        return np.array([prediction.choice for prediction in predictions], dtype=np.int64)
    without = sum(prediction.generated is None for prediction in predictions)
    if without:
        raise RunError(
            "Accuracy by generation cannot be measured.",
            [Problem(f"{without} of {len(predictions)} predictions hold no generated answer", "a completion for each")],
            hint="Score the model again with evaluation.generate=true.",
        )
    named = [NO_CHOICE if p.parsed is None else p.parsed for p in predictions]
    return np.array([OTHER_ANSWER if isinstance(choice, str) else choice for choice in named], dtype=np.int64)


def golds(predictions: Sequence[Prediction]) -> IntArray:
    """Indices of the right options, (N,) int64."""
    return np.array([prediction.gold for prediction in predictions], dtype=np.int64)


def right(predictions: Sequence[Prediction], generated: bool = False) -> BoolArray:
    """Questions answered right, (N,) bool; a completion that names no option is wrong."""
    return choices(predictions, generated) == golds(predictions)

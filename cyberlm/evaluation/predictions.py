"""Predictions: one model's answers to the questions of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

LIKELIHOOD, GENERATION, NAMED, NAMED_BY_BOTH = "likelihood", "generation", "option_named", "named_by_both"
OUTCOMES = {
    LIKELIHOOD: "accuracy, likelihood",
    GENERATION: "accuracy, generation",
    NAMED: "  an option is named",
    NAMED_BY_BOTH: "  where both name one",
}
"""Outcomes by question, with their labels: right by likelihood; right by generation; the completion names an option
(format); right by generation where both models' completions name one (knowledge)."""


@dataclass(frozen=True)
class Prediction:
    """Answer of one model to one question: everything that a metric needs, so that any number can be recomputed.

    Attributes:
        gold: Index of the right option.
        option_logprobs: Summed log-probability (natural log) of each option's answer tokens, given the prompt.
        option_tokens: Answer tokens of each option (1 each in the letter protocol).
        option_chars: Characters of each option's answer text.
        choice: Index of the option chosen by likelihood.
        gold_nll: Mean negative log-likelihood a token of the right answer, end of turn left out (nats).
        generated: Greedy completion, or None where generation was not asked for.
        parsed: Option that the completion names, the text of a free answer, or None where it has neither.
        reference: The text that ROUGE compares the completion with.
        prompt_hash: SHA-256 (first 16 hex digits) of the rendered prompt.
        tied: Whether another option had the same score as the chosen one (`cyberlm.evaluation.scores.pick_best`).
        finish_reason: Why the completion ended: `stop`, or `length` where `max_new_tokens` cut it off. None where
            nothing was generated, and in older files.
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

    @property
    def correct(self) -> bool:
        """Right by likelihood."""
        return self.choice == self.gold

    @property
    def generated_correct(self) -> bool:
        """Right by generation; a completion that cannot be parsed is wrong."""
        return self.parsed == self.gold


@dataclass(frozen=True)
class Predictions:
    """One model's predictions; what was not asked for is empty.

    Attributes:
        test: Of the test questions, in their order.
        rotated: Of every rotation of each question that may be rotated (`metrics.rotations`), the unrotated one first.
        without_question: Of the options alone, without the text of the test questions.
        validation: Of the validation questions.
    """

    test: Sequence[Prediction]
    rotated: Sequence[Sequence[Prediction]] = ()
    without_question: Sequence[Prediction] = ()
    validation: Sequence[Prediction] = ()

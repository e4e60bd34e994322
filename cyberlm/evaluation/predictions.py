"""Predictions: one model's answers to the questions of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

LIKELIHOOD, GENERATION = "likelihood", "generation"
"""Ways in which an answer is right: the option chosen by likelihood, or the one that the completion names."""


def primary_metric(generated: bool) -> str:
    """The accuracy that a report speaks of first: by generation, as arXiv 2509.25241 does, else by likelihood.

    Args:
        generated: Whether accuracy by generation was measured of all models that are compared.
    """
    return GENERATION if generated else LIKELIHOOD


@dataclass(frozen=True)
class Prediction:
    """Answer of one model to one question: everything that a metric needs, so that any number can be recomputed.

    Attributes:
        id, hash: Of the question.
        gold: Index of the right option.
        n_options: Number of options.
        option_logprobs: Summed log-probability (natural log) of each option's answer tokens, given the prompt.
        option_tokens: Answer tokens of each option (1 each in the letter protocol).
        option_chars: Characters of each option's answer text.
        choice: Option chosen by likelihood.
        gold_nll: Mean negative log-likelihood a token of the right answer, end of turn left out (nats).
        generated: Greedy completion, or None where generation was not asked for.
        parsed: Option that the completion names, the text of a free answer, or None where it has neither.
        reference: The text that ROUGE compares the completion with.
        prompt_hash: SHA-256 (first 16 hex digits) of the rendered prompt.
        topic: Of the question.
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

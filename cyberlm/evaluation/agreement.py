"""Agreement of two models that should be one, on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from cyberlm.evaluation.predictions import Prediction
from cyberlm.tasks.task import option_name


@dataclass(frozen=True)
class Flip:
    """A question that the second model answers otherwise, by letters.

    `margin` is by how much the first model preferred its answer to the other, in nats a token.
    """

    id: str
    gold: str
    before: str
    after: str
    margin: float

    def sentence(self) -> str:
        """`cybermetric:12: A before, C after (right: A); preferred by 0.003 nats a token`."""
        answers = f"{self.before} before, {self.after} after (right: {self.gold})"
        return f"{self.id}: {answers}; preferred by {self.margin:.3g} nats a token"


@dataclass(frozen=True)
class Agreement:
    """Agreement of two models' answers by likelihood.

    Attributes:
        largest_logprob_difference: Of all options of all questions, in nats (sums over an option's tokens).
        largest_logit_difference: Over the vocabulary, at the first token of every answer; None where not known.
    """

    before: str
    after: str
    questions: int
    flips: tuple[Flip, ...]
    largest_logprob_difference: float
    largest_logit_difference: float | None

    def sentence(self) -> str:
        """`merged against adapter: 0 of 200 answers differ; largest difference 2e-05 nats, 6e-05 in a logit`."""
        logit = self.largest_logit_difference
        return (
            f"{self.after} against {self.before}: {len(self.flips)} of {self.questions} answers differ; largest "
            f"difference {self.largest_logprob_difference:.1e} nats in an option's log-probability"
            + (f", {logit:.1e} in a logit" if logit is not None else "")
        )


def compare_answers(
    names: tuple[str, str],
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    largest_logit_difference: float | None,
) -> Agreement:
    """Compares the answers of two models to the same questions in the same order."""
    flips = []
    largest = 0.0
    for first, second in zip(before, after, strict=True):
        pairs = zip(first.option_logprobs, second.option_logprobs, strict=True)
        largest = max(largest, *(abs(one - other) for one, other in pairs))
        if first.choice != second.choice:
            lengths = zip(first.option_logprobs, first.option_tokens, strict=True)
            per_token = [log_prob / tokens for log_prob, tokens in lengths]
            gold, chosen, then = map(option_name, (first.gold, first.choice, second.choice))
            margin = per_token[first.choice] - per_token[second.choice]
            flips.append(Flip(first.id, gold, chosen, then, margin))
    return Agreement(*names, len(before), tuple(flips), largest, largest_logit_difference)

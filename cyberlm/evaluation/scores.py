"""Scores of options by likelihood, and the choice among them."""

from collections.abc import Sequence

import torch

from cyberlm.config.schema import OptionScore
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError


def option_scores(log_probs: torch.Tensor, tokens: torch.Tensor, chars: torch.Tensor, how: OptionScore) -> torch.Tensor:
    """Scores that options are compared by.

    Args:
        log_probs: (..., K) summed log-probability of each option's answer tokens (nats).
        tokens: (..., K) answer tokens of each option; 0 for padding.
        chars: (..., K) characters of each option's answer text; 0 for padding.
        how: The sum itself; or divided by tokens, or by characters (`acc_norm` of lm-evaluation-harness), so that
            long options are not at a disadvantage.
    """
    if how is OptionScore.sum:
        return log_probs
    return log_probs / (tokens if how is OptionScore.per_token else chars).clamp(min=1)


def pick_best(scores: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each question's best option, and how many options share its score: (N,) int64 each.

    Of n options that are equally good the (key mod n)-th is chosen: by the question, not by the order of letters.

    Args:
        scores: (N, K), from `option_scores`; -inf for padding.
        keys: (N,) int64, at least 0: a number of each question that does not depend on which option is right.
    """
    best = scores == scores.amax(-1, keepdim=True)
    count = best.sum(-1)
    nth = keys % count.clamp(min=1) + 1  # (N,)
    chosen = (best & (best.cumsum(-1) == nth[:, None])).int().argmax(-1)
    return chosen, count


def scores_of(predictions: Sequence[Prediction], how: OptionScore) -> torch.Tensor:
    """`option_scores` of N questions of at most K options: (N, K) float64, -inf where a question has fewer.

    Raises:
        RunError: If a score is infinite or not a number, for then any choice would be arbitrary.
    """

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([value for row in predictions for value in getattr(row, name)], dtype=torch.float64)

    found = option_scores(flat("option_logprobs"), flat("option_tokens"), flat("option_chars"), how)
    counts = [row.n_options for row in predictions]
    if not found.isfinite().all():
        bad = next(row for row, own in zip(predictions, found.split(counts), strict=True) if not own.isfinite().all())
        what = f"log-probabilities of the options of {bad.id} are {list(bad.option_logprobs)}"
        hint = "The weights hold infinities or NaN. If this model was trained here, lower optim.learning_rate."
        raise RunError("The model's answers cannot be scored.", [Problem(what, "finite numbers")], hint)
    exists = torch.arange(max(counts, default=1)) < torch.tensor(counts)[:, None]  # (N, K)
    return torch.full(exists.shape, -torch.inf, dtype=torch.float64).masked_scatter(exists, found)


def choose(predictions: Sequence[Prediction], how: OptionScore) -> tuple[torch.Tensor, torch.Tensor]:
    """`pick_best` among the options of N questions: (N,) int64 each.

    A question's key is of the rendered prompt, in which nothing says which option is right.
    """
    keys = torch.tensor([int(row.prompt_hash[:15], 16) for row in predictions], dtype=torch.int64)
    return pick_best(scores_of(predictions, how), keys)

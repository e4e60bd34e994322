"""Scores of options by likelihood, the choice among them, and accuracy over a validation pass."""

from collections.abc import Sequence

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from cyberlm.config.schema import OptionScore
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import LETTERS


def validation_metrics(*, over_processes: bool = False) -> MetricCollection:
    """Accuracy over a validation pass: update with `choice` and `gold`, each (N,) int64 option indices.

    Args:
        over_processes: Whether each process has its share of the questions, so that theirs count together.
    """
    # Micro: every question counts once. The default, macro, weighs rare gold letters up.
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(num_classes=len(LETTERS), average="micro", sync_on_compute=over_processes)}
    )


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
    """Index of each question's best option, and how many options share its score.

    Of n options that are equally good the (key mod n)-th is chosen: by the question, not by the order of letters.

    Args:
        scores: (N, K), from `option_scores`; -inf for padding.
        keys: (N,) int64, at least 0: a number of each question that does not depend on which option is right.

    Returns:
        (N,) int64 each.
    """
    best = scores == scores.amax(-1, keepdim=True)
    count = best.sum(-1)
    nth = keys % count.clamp(min=1) + 1  # (N,)
    chosen = (best & (best.cumsum(-1) == nth[:, None])).int().argmax(-1)
    return chosen, count


def tie_key(prompt_hash: str) -> int:
    """A question's key for `pick_best`: of the rendered prompt, in which nothing says which option is right."""
    return int(prompt_hash[:15], 16)


def choose(
    logprobs: Sequence[float], tokens: Sequence[int], chars: Sequence[int], how: OptionScore, prompt_hash: str
) -> tuple[int, bool]:
    """Index of the option with the highest `option_scores`, and whether another one has the same (`pick_best`).

    Args:
        prompt_hash: Of the rendered prompt (`cyberlm.tasks.prompts.prompt_hash`).

    Raises:
        RunError: If a score is infinite or not a number, for then any choice would be arbitrary.
    """
    values = torch.tensor([logprobs], dtype=torch.float64)
    scores = option_scores(values, torch.tensor([tokens]), torch.tensor([chars]), how)
    if not scores.isfinite().all():
        raise RunError(
            "The model's answers cannot be scored.",
            [Problem(f"log-probabilities of the options are {list(logprobs)}", allowed="finite numbers")],
            hint="The weights hold infinities or NaN. If this model was trained here, lower optim.learning_rate.",
        )
    chosen, best = pick_best(scores, torch.tensor([tie_key(prompt_hash)]))
    return int(chosen), int(best) > 1

"""Where metrics are computed: from the predictions on single questions to the numbers of a report.

A validation pass uses torchmetrics' modules, which Lightning resets and gathers over processes; finished predictions
use its functions, which hold no state and gather nothing.
"""

import functools
import math
import re
from collections.abc import Sequence

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_stat_scores
from torchmetrics.functional.text import rouge_score

from cyberlm.config.schema import OptionScore, Protocol
from cyberlm.evaluation.intervals import wilson
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import ModelScores, Proportion, RougeScores
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import LETTERS

OPTIONS_NOT_SHOWN = "the options were not shown, so a free answer cannot be matched to one of them"
NOT_GENERATED = "no answers were generated"
ROUGE = ("rouge1", "rouge2", "rougeL")


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
    """What options are compared by.

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


def score_predictions(predictions: Sequence[Prediction], protocol: Protocol, show_options: bool) -> ModelScores:
    """Every metric of one model on one set of questions.

    Args:
        predictions: One for each question, in any order.
        protocol: What the prompt asks for, a letter or a text.
        show_options: Whether the options stood in the prompt.

    Raises:
        RunError: If there are no predictions, or only some of them hold a generated answer.
    """
    if not predictions:
        raise RunError("There are no questions to score.")
    note = _why_no_generation(predictions, protocol, show_options)
    unread = [prediction.finish_reason for prediction in predictions if prediction.parsed is None]
    known = all(prediction.finish_reason is not None for prediction in predictions)
    cut = unread.count("length")
    right = sum(prediction.generated_correct for prediction in predictions)
    return ModelScores(
        likelihood=_accuracy(predictions),
        per_letter=_recall_per_letter(predictions),
        gold_nll=math.fsum(prediction.gold_nll for prediction in predictions) / len(predictions),
        generation=None if note else _proportion(right, len(predictions)),
        generation_note=note,
        parse_fail_rate=None if note else (len(unread) - cut) / len(predictions),
        rouge=_rouge(predictions),
        ties=sum(prediction.tied for prediction in predictions),
        truncated_rate=cut / len(predictions) if known and not note else None,
    )


def _why_no_generation(predictions: Sequence[Prediction], protocol: Protocol, show_options: bool) -> str:
    """Why accuracy by generation was not measured; empty where it was."""
    generated = sum(prediction.generated is not None for prediction in predictions)
    if generated not in (0, len(predictions)):
        raise RunError(
            "The predictions do not belong together.",
            [Problem(f"{generated} of {len(predictions)} hold a generated answer", allowed="all or none")],
        )
    if not generated:
        return NOT_GENERATED
    return OPTIONS_NOT_SHOWN if protocol is Protocol.text and not show_options else ""


def _choice_and_gold(predictions: Sequence[Prediction]) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen and right option indices, each (N,) int64."""
    choice = torch.tensor([prediction.choice for prediction in predictions])
    gold = torch.tensor([prediction.gold for prediction in predictions])
    return choice, gold


def _proportion(correct: int, n: int) -> Proportion:
    return Proportion(correct / n, correct, n, *wilson(correct / n, n))


def _accuracy(predictions: Sequence[Prediction]) -> Proportion:
    """Share of questions whose right option was chosen by likelihood."""
    share = float(multiclass_accuracy(*_choice_and_gold(predictions), num_classes=len(LETTERS), average="micro"))
    return _proportion(round(share * len(predictions)), len(predictions))  # exact: float32 holds counts up to 2**24


def _recall_per_letter(predictions: Sequence[Prediction]) -> dict[str, Proportion]:
    """Of the questions with each gold letter, the share chosen right; letters that are never gold are left out."""
    counts = multiclass_stat_scores(*_choice_and_gold(predictions), num_classes=len(LETTERS), average="none")
    rows = counts.tolist()  # (8, 5): tp, fp, tn, fn, support
    return {letter: _proportion(row[0], row[4]) for letter, row in zip(LETTERS, rows, strict=True) if row[4]}


def _rouge(predictions: Sequence[Prediction]) -> RougeScores | None:
    """ROUGE of what was generated; None where nothing was."""
    pairs = [(p.generated, p.reference) for p in predictions if p.generated is not None]
    return rouge([text for text, _ in pairs], [text for _, text in pairs]) if pairs else None


def rouge(answers: Sequence[str], references: Sequence[str]) -> RougeScores:
    """Mean ROUGE F-measures (Lin 2004, aclanthology.org/W04-1013) of answers, each against its reference."""
    each = [rouge_of(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    means = {name: math.fsum(scores[name] for scores in each) / len(each) for name in ROUGE}
    short, n = short_references(references), len(references)
    if short == n:
        note = "ROUGE-2 is undefined: every reference has fewer than two tokens"
    else:
        note = f"{short} of {n} references have fewer than two tokens and count 0 in ROUGE-2" if short else ""
    return RougeScores(
        rouge1=means["rouge1"],
        rouge2=None if short == n else means["rouge2"],
        rougeL=means["rougeL"],
        n=n,
        note=note,
    )


@functools.lru_cache(maxsize=2**16)
def rouge_of(answer: str, reference: str) -> dict[str, float]:
    """ROUGE F-measures of one answer, by the names in `ROUGE`."""
    # rougeLsum is left out: it downloads NLTK data. torchmetrics takes (prediction, target), rouge_score the reverse.
    scores = rouge_score(answer, reference, rouge_keys=ROUGE)
    return {name: float(scores[f"{name}_fmeasure"]) for name in ROUGE}


def short_references(references: Sequence[str]) -> int:
    """How many have fewer than two tokens, and so no pair of tokens for ROUGE-2."""
    return sum(len(_rouge_tokens(reference)) < 2 for reference in references)


def _rouge_tokens(text: str) -> list[str]:
    """Tokens as the `rouge_score` package (and torchmetrics) cuts them, without stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())

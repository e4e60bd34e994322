"""ROUGE: n-grams that generated answers share with the reference answers (Lin 2004, aclanthology.org/W04-1013)."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torchmetrics.functional.text import rouge_score

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, mean_metric
from cyberlm.evaluation.predictions import ROUGE, Predictions, has_candidates
from cyberlm.tasks.task import LETTERS


def rouge(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Mean F-measures of the generated answers, and of the right and of wrong answers in their place.

    Of free answers with intervals; a wrong answer is then that of the next question. ROUGE-2 is undefined where every
    reference has fewer than two tokens.
    """
    rows, n = predictions.test, len(predictions.test)
    generated = [row.generated for row in rows if row.generated is not None]
    if not generated:
        return
    references = [row.reference for row in rows]
    short = short_references(references)
    note = f"{short} of {n} references have fewer than two tokens and count 0 in ROUGE-2" if short else ""
    if short == n:
        note = "ROUGE-2 is undefined: every reference has fewer than two tokens"
    free = not has_candidates(rows)
    for name, value in mean_rouge(generated, references).items():
        shown = Metric(name, value, n=n, note=note if name == "rouge2" else "", label=ROUGE[name])
        if free and value is not None:
            each = [rouge_of(answer, reference)[name] for answer, reference in zip(generated, references, strict=True)]
            shown = replace(shown, interval=mean_metric(name, each, context.clusters, label=name).interval)
        yield shown

    behind = [(question.gold + 1) % len(question.options) for question in context.questions]
    wrong = [
        LETTERS[option] if context.asks_letters else question.options[option]
        for question, option in zip(context.questions, behind, strict=True)
    ]
    if free:
        wrong = [*references[1:], references[0]]
    ends = {"oracle": mean_rouge(references, references), "always_wrong": mean_rouge(wrong, references)}
    for end, values in ends.items():
        for name, value in values.items():
            yield Metric(f"{name}_{end}", value, n=n, place="detail")
    oracle, always_wrong = (_words(values) for values in ends.values())
    other = "the next question's answer" if free else "always a wrong option"
    scale = (
        f"ROUGE-1/2/L of the right answers themselves: {oracle}; of {other}: {always_wrong} "
        f"({n} references, {short / n:.1%} with fewer than two tokens)"
    )
    yield Metric("rouge_short_references", short / n, n=n, note=scale, format_spec=".1%", place="note")


def _words(values: dict[str, float | None]) -> str:
    return ", ".join("undefined" if value is None else f"{value:.4f}" for value in values.values())


def mean_rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """Mean F-measures of answers, each against its reference; of ROUGE-2 None where no reference has two tokens."""
    each = [rouge_of(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    means: dict[str, float | None] = {name: math.fsum(scores[name] for scores in each) / len(each) for name in ROUGE}
    return means | ({"rouge2": None} if short_references(references) == len(references) else {})


@functools.lru_cache(maxsize=2**16)
def rouge_of(answer: str, reference: str) -> dict[str, float]:
    """ROUGE F-measures of one answer, by the names in `ROUGE`."""
    # rougeLsum is left out: it downloads NLTK data. torchmetrics takes (prediction, target), rouge_score the reverse.
    scores = rouge_score(answer, reference, rouge_keys=tuple(ROUGE))
    return {name: float(scores[f"{name}_fmeasure"]) for name in ROUGE}


def short_references(references: Sequence[str]) -> int:
    """Number of references of fewer than two tokens, which have no pair of tokens for ROUGE-2."""
    # Tokens as the rouge_score package (and torchmetrics) cuts them, without stemming.
    return sum(len(re.findall(r"[a-z0-9]+", reference.lower())) < 2 for reference in references)

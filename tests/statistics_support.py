"""Questions and predictions for the tests of cyberlm.evaluation."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support import MULTIPLE_CHOICE, compose

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig, OnBadRow
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, MetricFunction
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.tasks.task import LETTERS, Example

calmly = settings(deadline=None, derandomize=True, max_examples=25)
"""For property tests: the same examples every time, and no clock, which a busy machine would fail."""


def question(number: int, gold: int, options: Sequence[str] = ("north", "east", "south", "west")) -> Example:
    return Example(f"q:{number:04}", f"Question {number}?", tuple(options), gold)


def answered(
    asked: Example, choice: int, log_probs: Sequence[float] | None = None, parsed: int | None = None
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


@functools.cache
def _config(*overrides: str) -> EvaluateConfig:
    return build_config(compose("prompt=letter", "logger=none", *overrides, command="evaluate"), EvaluateConfig)


def eval_set(asked: Sequence[Example], *overrides: str, seen: Sequence[Example] = ()) -> EvalSet:
    """The context of metrics: the letter protocol, unless overrides say otherwise."""
    return EvalSet(_config(*overrides), asked, seen=seen)


def measured(
    metric: MetricFunction,
    asked: Sequence[Example],
    rows: Sequence[Prediction],
    *overrides: str,
    seen: Sequence[Example] = (),
    **further: Any,
) -> dict[str, Metric]:
    """Metrics of one model by name; `further` are fields of its `Predictions`."""
    found = list(metric(Predictions(rows, **further), eval_set(asked, *overrides, seen=seen)))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")
needs_files = pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")


def cybermetric(size: int) -> QuestionSet:
    name = f"CyberMetric-{size}-v1"
    return read_questions(Path(str(DATA_DIR)) / f"{name}.json", name, OnBadRow.error, MULTIPLE_CHOICE)

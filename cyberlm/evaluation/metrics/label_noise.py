"""Label noise: accuracy without questions whose key is doubtful, and with corrected keys.

Leaving out questions that models fail raises every score: read accuracy without suspects beside the other figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, StringConstraints

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Predictions, choices, golds
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import read_json
from cyberlm.runtime.validation import from_json
from cyberlm.tasks.task import LETTERS, Example

SHAPE = '{"version": 1, "items": [{"hash": "0123456789abcdef", "reason": "...", "corrected": "B"}]}'


@dataclass(frozen=True)
class NoisyLabel:
    """Question whose key is doubtful.

    Attributes:
        hash: Of the question with the key as published (`Example.hash`).
        corrected: Letter that is right instead; None where no option is, or it is not known.
    """

    hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    reason: Annotated[str, StringConstraints(pattern=r"\S")]
    corrected: Annotated[str, StringConstraints(pattern=f"^[{LETTERS}]$")] | None


def _each_once(items: tuple[NoisyLabel, ...]) -> tuple[NoisyLabel, ...]:
    hashes = [item.hash for item in items]
    twice = sorted({hash_ for hash_ in hashes if hashes.count(hash_) > 1})
    if twice:
        raise ValueError(f"name a question twice: {', '.join(twice)}")
    return items


@dataclass(frozen=True)
class NoisyLabels:
    """Content of a file of `evaluation.suspects`."""

    version: Annotated[int, Field(ge=1, le=1)]
    items: Annotated[tuple[NoisyLabel, ...], AfterValidator(_each_once)]


def read_noisy_labels(path: Path, questions: Sequence[Example]) -> dict[str, NoisyLabel]:
    """Reads a list of suspects, JSON of the shape `SHAPE`: by hash.

    Raises:
        RunError: If there is no such file, or it is of another shape or version; if a corrected letter names no option
            of its question, or the one that is the key already. All problems are listed.
    """
    hint = f"A list of suspects has the shape {SHAPE}"
    items = from_json(NoisyLabels, read_json(path, hint), str(path), hint).items
    listed, problems = {item.hash: item for item in items}, []
    for question in questions:
        item, others = listed.get(question.hash), LETTERS[: len(question.options)].replace(question.letter, "")
        if item and item.corrected and item.corrected not in others:
            what = (
                f"{item.hash}: corrected is {item.corrected}; the question has {len(question.options)} options "
                f"and key {question.letter}"
            )
            problems.append(Problem(what, f"{', '.join(others)} or null"))
    if problems:
        raise RunError("The list of suspects does not fit the questions.", problems)
    return listed


def label_noise(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy by likelihood without the suspects of `evaluation.suspects`, and on all questions with corrected keys.

    Suspects without a corrected letter keep the published key.
    """
    if context.config.evaluation.suspects is None:
        return
    listed = read_noisy_labels(Path(context.config.evaluation.suspects), context.questions)
    chosen, key, clusters = choices(predictions.test), golds(predictions.test), context.clusters
    doubtful = [listed.get(question.hash) for question in context.questions]
    sure = np.array([item is None for item in doubtful])
    asked = zip(doubtful, context.questions, strict=True)
    letters = [item.corrected if item and item.corrected else question.letter for item, question in asked]
    corrected = np.array(list(map(LETTERS.index, letters)))
    doubted, absent = int((~sure).sum()), len(listed.keys() - {question.hash for question in context.questions})
    note = f"{doubted} of {key.size} questions are suspects; of the list, {absent} are not among the questions"
    label = "accuracy without suspects"
    if sure.any():
        hits = (chosen == key)[sure]
        yield share_metric("accuracy_without_suspects", hits, clusters[sure], note=note, label=label, place="evidence")
    else:
        yield Metric("accuracy_without_suspects", None, None, None, note, label, ".1%", "evidence")
    note = f"Keys that are corrected: {int((corrected != key).sum())} of {key.size}"
    label = "accuracy, corrected keys"
    yield share_metric(
        "accuracy_corrected_keys", chosen == corrected, clusters, note=note, label=label, place="evidence"
    )

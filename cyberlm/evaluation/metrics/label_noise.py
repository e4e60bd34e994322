"""How much accuracy hangs on questions whose key is doubtful: all three figures, never one alone.

Leaving out questions that models fail raises every score, so accuracy without suspects stands only beside the others.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyberlm.evaluation.intervals import AccuracyInterval, accuracy_interval
from cyberlm.evaluation.outcomes import choices, cluster_numbers, golds
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError, did_you_mean
from cyberlm.tasks.questions import LETTERS, Question

SUSPECTS_VERSION = 1
SHAPE = '{"version": 1, "items": [{"hash": "0123456789abcdef", "reason": "...", "corrected": "B"}]}'
_FIELDS = ("hash", "reason", "corrected")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Suspect:
    """A question whose key is doubtful.

    Attributes:
        hash: Of the question with the key as published (`Question.hash`).
        reason: What speaks against the key.
        corrected: Letter that is right instead; None where no option is, or it is not known.
    """

    hash: str
    reason: str
    corrected: str | None


@dataclass(frozen=True)
class NoiseSensitivity:
    """Accuracy under three readings of the key.

    Attributes:
        all: On all questions, with the key as published.
        without_suspects: On the questions that nobody doubts; None where there are none.
        corrected_keys: On all questions, with corrected letters; suspects without one keep the published key.
        n_suspects: Suspects among the questions.
        n_corrected: Of these, those with a corrected letter.
        n_absent: Suspects of the list that are not among the questions.
    """

    all: AccuracyInterval
    without_suspects: AccuracyInterval | None
    corrected_keys: AccuracyInterval
    n_suspects: int
    n_corrected: int
    n_absent: int


def noise_sensitivity(
    predictions: Sequence[Prediction],
    suspects: Sequence[Suspect],
    clusters: Mapping[str, int] | None = None,
    generated: bool = False,
) -> NoiseSensitivity:
    """Accuracy on all questions, without the suspects, and with corrected keys.

    Args:
        predictions: One for each question.
        suspects: As read by `read_suspects`.
        clusters: From a question's hash to the number of its near-duplicate cluster.
        generated: Whether to judge the generated answers instead of the choice by likelihood.

    Raises:
        RunError: If there are no predictions, or a corrected letter does not fit its question.
    """
    chosen, published = choices(predictions, generated), golds(predictions)
    _check({p.hash: (p.n_options, p.gold) for p in predictions}, suspects)
    by_hash = {suspect.hash: suspect for suspect in suspects}
    doubted = np.array([p.hash in by_hash for p in predictions])
    corrected = published.copy()
    for i, prediction in enumerate(predictions):
        suspect = by_hash.get(prediction.hash)
        if suspect is not None and suspect.corrected is not None:
            corrected[i] = LETTERS.index(suspect.corrected)
    numbers = cluster_numbers([p.hash for p in predictions], clusters)
    sure = ~doubted
    return NoiseSensitivity(
        all=accuracy_interval(chosen == published, numbers),
        without_suspects=accuracy_interval((chosen == published)[sure], numbers[sure]) if sure.any() else None,
        corrected_keys=accuracy_interval(chosen == corrected, numbers),
        n_suspects=int(doubted.sum()),
        n_corrected=int((corrected != published).sum()),
        n_absent=len(by_hash.keys() - {p.hash for p in predictions}),
    )


def check_suspects(suspects: Sequence[Suspect], questions: Sequence[Question]) -> None:
    """Checks corrected letters against the questions; to be called before a run spends time.

    Raises:
        RunError: If a letter names no option of its question, or the one that is the key already.
    """
    _check({question.hash: (len(question.options), question.gold) for question in questions}, suspects)


def _check(options_and_gold: Mapping[str, tuple[int, int]], suspects: Sequence[Suspect]) -> None:
    problems = []
    for suspect in suspects:
        if suspect.corrected is None or suspect.hash not in options_and_gold:
            continue
        count, gold = options_and_gold[suspect.hash]
        if suspect.corrected == LETTERS[gold] or suspect.corrected not in LETTERS[:count]:
            allowed = LETTERS[:count].replace(LETTERS[gold], "")
            problems.append(
                Problem(
                    f"{suspect.hash}: corrected is {suspect.corrected}; the question has {count} options and key "
                    f"{LETTERS[gold]}",
                    allowed=f"{', '.join(allowed)} or null",
                )
            )
    if problems:
        raise RunError("The list of suspects does not fit the questions.", problems)


def read_suspects(path: Path) -> tuple[Suspect, ...]:
    """Reads a list of suspects: JSON of the shape `SHAPE`.

    Raises:
        RunError: If there is no such file, or it is of another shape or version; all problems are listed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read.", [Problem(error.strerror or str(error))]) from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RunError(f"{path} is not a list of suspects.", [Problem(str(error), allowed=SHAPE)]) from error
    problems = list(_problems(value))
    if problems:
        raise RunError(f"{path} is not a list of suspects.", problems, hint=f"Its shape: {SHAPE}")
    return tuple(Suspect(item["hash"], item["reason"], item["corrected"]) for item in value["items"])


def _problems(value: Any) -> Iterator[Problem]:
    if not isinstance(value, dict) or type(value.get("version")) is not int or value["version"] != SUSPECTS_VERSION:
        yield Problem(f'it does not hold "version": {SUSPECTS_VERSION}')
        return
    for key in value.keys() - {"version", "items"}:
        yield Problem(f"{key} is not a field. {did_you_mean(key, ('version', 'items'))}".rstrip())
    items = value.get("items")
    if not isinstance(items, list):
        yield Problem("items is missing or no list", allowed="a list; it may be empty")
        return
    seen: set[str] = set()
    for i, item in enumerate(items):
        yield from (Problem(f"items[{i}]: {what}", allowed) for what, allowed in _item_problems(item))
        hash_ = item.get("hash") if isinstance(item, dict) else None
        if isinstance(hash_, str):
            if hash_ in seen:
                yield Problem(f"items[{i}]: {hash_} stands in the list twice", allowed="each question once")
            seen.add(hash_)


def _item_problems(item: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with one entry, and what is allowed."""
    if not isinstance(item, dict):
        yield f"it is {json.dumps(item)[:60]}", "an object"
        return
    for key in item.keys() - set(_FIELDS):
        yield f"{key} is not a field. {did_you_mean(key, _FIELDS)}".rstrip(), ", ".join(_FIELDS)
    for key in _FIELDS:
        if key not in item:
            yield f"{key} is missing", ", ".join(_FIELDS)
    if "hash" in item and not (isinstance(item["hash"], str) and _HASH.fullmatch(item["hash"])):
        yield f"hash is {json.dumps(item['hash'])[:60]}", "16 hexadecimal digits, small letters"
    if "reason" in item and not (isinstance(item["reason"], str) and item["reason"].strip()):
        yield f"reason is {json.dumps(item['reason'])[:60]}", "a text that is not empty"
    letter = item.get("corrected")
    if letter is not None and not (isinstance(letter, str) and len(letter) == 1 and letter in LETTERS):
        yield f"corrected is {json.dumps(letter)[:60]}", f"one of {', '.join(LETTERS)}, or null"

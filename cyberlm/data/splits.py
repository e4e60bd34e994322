"""Splits questions into training, validation and test so that near-duplicates are on one side."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from typing_extensions import TypedDict

from cyberlm.config.schema import DataConfig
from cyberlm.data.near_duplicates import number_words, similar_pairs, words_of
from cyberlm.data.readers import QuestionSet
from cyberlm.runtime.errors import DataError, Problem
from cyberlm.runtime.garbage_collection import gc_disabled
from cyberlm.runtime.validation import validation_messages
from cyberlm.tasks.task import Example

SPLIT_MANIFEST = "split_manifest.json"
SETTINGS = (
    *("on_bad_row", "validation_fraction", "test_fraction", "near_duplicate_jaccard"),
    *("max_train", "max_validation", "max_test"),
)
"""Fields of DataConfig that, with the seed and the files, decide the split."""


@dataclass(frozen=True)
class Split:
    """Questions for training, validation and test; each near-duplicate cluster is in one of them.

    Attributes:
        dropped: Why questions were left out, with counts, for example `{"near-duplicate of the test file": 130}`.
        too_long: Training questions left out under `data.on_long_prompt=skip`, with their tokens.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    sources: tuple[QuestionSet, ...]
    clusters: int
    dropped: dict[str, int] = field(default_factory=dict)
    too_long: tuple[str, ...] = ()

    def parts(self) -> dict[str, Sequence[Example]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


@gc_disabled()
def near_duplicate_clusters(texts: Sequence[str], jaccard: float) -> list[int]:
    """Groups texts that are the same or nearly so: connected components over pairs whose word sets are similar.

    Args:
        jaccard: Least |A ∩ B| / |A ∪ B| of the word sets A and B of a pair, in (0, 1].

    Returns:
        A cluster number for each text, counted from 0 in order of first appearance.
    """
    word_sets = number_words(map(words_of, texts))
    distinct = list(dict.fromkeys(word_sets))
    pairs = similar_pairs(distinct, jaccard)
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (rows, columns)), shape=(len(distinct), len(distinct)))
    _, components = connected_components(graph, directed=False)
    component = dict(zip(distinct, components.tolist(), strict=True))
    number: dict[int, int] = {}
    return [number.setdefault(component[words], len(number)) for words in word_sets]


@gc_disabled()
def split_questions(config: DataConfig, sources: Sequence[QuestionSet]) -> Split:
    """Splits by whole near-duplicate clusters; the same files and settings always give the same split.

    Where questions name the group that they come from, groups are kept whole, and near-duplicates of test and
    validation questions in other groups are left out.

    With a held-out file, all of it is the test, and what other files share with it is left out of training and
    validation. Without one, the test comes from the main file. Fractions are of the main file's questions, less those
    left out; in a mixture, of each source's, and near-duplicates in other sources are left out. Each part keeps the
    order of the files.

    Raises:
        DataError: A part would be empty.
    """
    questions = [question for file in sources for question in file.questions]
    clusters = near_duplicate_clusters([question.question for question in questions], config.near_duplicate_jaccard)
    held_out = [file.held_out for file in sources for _ in file.questions]
    parts = {"test": [row for row, test in enumerate(held_out) if test]}
    usable = _without_near_duplicates([row for row, test in enumerate(held_out) if not test], parts["test"], clusters)
    of_source = {name: [row for row in usable if questions[row].source == name] for name in config.mix or [""]}
    tested = {questions[row].source for row in parts["test"]}
    untested = {name: rows for name, rows in of_source.items() if name not in tested}
    rng = random.Random(config.seed)
    units = [row.group or cluster for row, cluster in zip(questions, clusters, strict=True)]
    parts["test"] = sorted([*parts["test"], *_take_of_each(config.test_fraction, untested, usable, units, rng)])
    left = _without_near_duplicates(usable, parts["test"], clusters)
    parts["validation"] = sorted(_take_of_each(config.validation_fraction, of_source, left, units, rng))
    parts["train"] = _without_near_duplicates(left, parts["validation"], clusters)
    dropped = {
        "near-duplicate of a test question": len(questions) - len(parts["test"]) - len(left),
        "near-duplicate of a validation question": len(left) - len(parts["validation"]) - len(parts["train"]),
    }
    _check_parts(config, parts, len(usable), dropped)
    if config.weights:
        drawn = _draw(config, questions, parts["train"])
        what = "not drawn, by data.weights" + (" and data.max_train" if config.max_train else "")
        dropped[what] = len(parts["train"]) - len(drawn)
        parts["train"] = drawn
    _check_sources(config, questions, parts)
    for name, limit in (("train", config.max_train), ("validation", config.max_validation), ("test", config.max_test)):
        dropped[f"over data.max_{name}"] = len(parts[name])
        parts[name] = _choose(parts[name], limit, f"{config.seed} {name}")
        dropped[f"over data.max_{name}"] -= len(parts[name])
    train, validation, test = (tuple(questions[row] for row in parts[name]) for name in ("train", "validation", "test"))
    return Split(
        train=train,
        validation=validation,
        test=test,
        sources=tuple(sources),
        clusters=len(set(clusters)),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _without_near_duplicates(rows: Sequence[int], others: Sequence[int], clusters: Sequence[int]) -> list[int]:
    """Those rows that are no near-duplicate of the others."""
    near = {clusters[row] for row in others}
    return [row for row in rows if clusters[row] not in near]


def _take_of_each(
    share: float,
    of_source: Mapping[str, Sequence[int]],
    left: Sequence[int],
    units: Sequence[int | str],
    rng: random.Random,
) -> Iterator[int]:
    """Takes a share of the questions of each source from what is left of them."""
    free = set(left)
    for rows in of_source.values():
        yield from _take(share * len(rows), [row for row in rows if row in free], units, rng)


def _take(target: float, rows: Sequence[int], units: Sequence[int | str], rng: random.Random) -> list[int]:
    """Takes whole clusters or groups, in random order, while they fit into the wanted number of rows."""
    members = defaultdict(list)
    for row in rows:
        members[units[row]].append(row)
    shuffled = list(members.values())
    rng.shuffle(shuffled)
    wanted = max(1, round(target)) if target > 0 else 0
    taken: set[int] = set()
    for cluster in shuffled:
        if len(taken) + len(cluster) <= wanted:
            taken.update(cluster)
    return sorted(taken)


def _draw(config: DataConfig, questions: Sequence[Example], rows: Sequence[int]) -> list[int]:
    """Training questions in the shares of `data.weights`: as many as there are, or as `data.max_train` allows."""
    of_source: dict[str, list[int]] = {name: [] for name in config.mix}
    for row in rows:
        of_source[questions[row].source].append(row)
    weights = dict(zip(config.mix, config.weights, strict=True))
    most = config.max_train or len(rows)
    scale = min(most / sum(weights.values()), *(len(own) / weights[name] for name, own in of_source.items()))
    chosen = (
        _choose(own, int(scale * weights[name] + 1e-9), f"{config.seed} train {name}")
        for name, own in of_source.items()
    )
    return sorted(row for own in chosen for row in own)


def _check_sources(config: DataConfig, questions: Sequence[Example], parts: dict[str, list[int]]) -> None:
    """Refuses a mixture in which a source has nothing to train on or to be tested on."""
    problems = [
        Problem(f"no {part} questions of {name}", "a larger source, or another data.weights or data.test_fraction")
        for part in ("train", "test")
        for name in config.mix
        if name not in {questions[row].source for row in parts[part]}
    ]
    if problems:
        raise DataError("The sources cannot be mixed:", problems)


def test_questions(config: DataConfig, questions: Sequence[Example]) -> tuple[Example, ...]:
    """At most `data.max_test` of a file's questions: those that `split_questions` chooses where it is held out."""
    rows = _choose(list(range(len(questions))), config.max_test, f"{config.seed} test")
    return tuple(questions[row] for row in rows)


def _choose(rows: list[int], limit: int | None, seed: str) -> list[int]:
    """At most `limit` of the rows, in their order; a smaller limit chooses a subset of what a larger one does."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[:limit])


def _check_parts(config: DataConfig, parts: dict[str, list[int]], usable: int, dropped: dict[str, int]) -> None:
    problems = []
    for name, use in (("validation", "the best checkpoint is chosen by it"), ("test", "the results are of it")):
        fraction = getattr(config, f"{name}_fraction")
        if usable and not parts[name]:
            what = f"data.{name}_fraction={fraction:g} of {usable} questions leaves the {name} set empty; {use}"
            allowed = "above 0, and enough for a whole cluster of near-duplicates"
            problems.append(Problem(what, allowed, f"data.{name}_fraction={max(0.1, 2 * fraction):g}"))
    if not parts["train"]:
        shared = sum(dropped.values())
        left_out = f" ({shared} more are near-duplicates of test questions)" if shared else ""
        what = f"none of {usable} questions{left_out} is left for training"
        problems.append(Problem(what, "a file with more questions, smaller fractions, or another test file"))
    if problems:
        raise DataError("The questions cannot be split:", problems)


def write_manifest(split: Split, config: DataConfig, path: Path) -> str:
    """Writes the questions of each part, and why: the same split gives the same bytes.

    Returns:
        SHA-256 of the file.
    """
    manifest = {
        "version": 1,
        "seed": config.seed,
        "settings": {name: getattr(config, name) for name in SETTINGS}
        | {"on_bad_row": config.on_bad_row.name}
        | ({"mix": config.mix, "weights": config.weights} if config.mix else {}),
        "sources": [
            {
                "name": source.name,
                "sha256": source.sha256,
                "source": source.source,
                "questions": len(source.questions),
                "whitespace_normalised": source.whitespace_normalised,
                "skipped": list(source.skipped),
                **({"unread": list(source.unread)} if source.unread else {}),
                **({"notes": source.notes} if source.notes else {}),
            }
            for source in split.sources
        ],
        "clusters": split.clusters,
        "dropped": split.dropped,
        **({"too_long": list(split.too_long)} if split.too_long else {}),
        "parts": {
            name: [
                {"id": item.id, "hash": item.hash, **({"source": item.source} if item.source else {})} for item in part
            ]
            for name, part in split.parts().items()
        },
    }
    content = (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


class _ManifestRow(TypedDict):
    id: str
    hash: str
    source: NotRequired[str]


_ManifestPart = Annotated[list[_ManifestRow], Field(min_length=1)]


class _ManifestParts(TypedDict):
    train: _ManifestPart
    validation: _ManifestPart
    test: _ManifestPart


class _Manifest(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    version: Literal[1]
    parts: _ManifestParts


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads what `write_manifest` wrote, and checks the shape of its parts.

    Raises:
        DataError: The file is missing, is not a manifest, or is of another version.
    """
    try:
        return dict(TypeAdapter(_Manifest).validate_json(path.read_bytes(), strict=True))
    except OSError as error:
        raise DataError(f"{path} cannot be read:", [Problem(error.strerror or str(error))]) from error
    except ValidationError as error:
        raise DataError(
            f"{path} is not a split manifest that this version reads:",
            map(Problem, validation_messages(error)),
            "docs/data.md shows its shape; a run writes a new one with the same data settings.",
        ) from error


@gc_disabled()
def select_questions(sources: Sequence[QuestionSet], hashes: Sequence[str]) -> tuple[Example, ...]:
    """Finds the questions that a manifest names by hash, in its order.

    A hash of several equal rows takes those of the later source first (the held-out file: training holds
    none of its questions), then in file order.

    Raises:
        DataError: Some are in none of the sources.
    """
    found: dict[str, list[Example]] = defaultdict(list)  # the first to take is the last
    for source in sources:
        for question in reversed(source.questions):
            found[question.hash].append(question)
    missing = [hash_ for hash_, count in Counter(hashes).items() if count > len(found[hash_])]
    if missing:
        names = ", ".join(f"{source.name} (sha256 {source.sha256})" for source in sources)
        raise DataError(
            f"{len(missing)} of {len(hashes)} questions are not in {names}:",
            [Problem(f"no question has the hash {hash_}") for hash_ in missing],
            "The files differ from those that the manifest was made from: compare the sha256 of its sources.",
        )
    return tuple(found[hash_].pop() for hash_ in hashes)

"""Known benchmarks in the cache: how many of their questions a run is trained on."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.compose import group_files
from cyberlm.config.schema import DataConfig
from cyberlm.data.columns import Columns, normalised
from cyberlm.data.formats import open_rows
from cyberlm.data.near_duplicates import number_words, similar_pairs_between, words_of
from cyberlm.data.sources import pinned_file
from cyberlm.runtime.files import sha256_of
from cyberlm.tasks.task import Example


def trained_on_benchmarks(
    trained: Sequence[Example], jaccard: float, own: Collection[str] = ()
) -> dict[str, tuple[int, int]]:
    """Counts the questions of each benchmark that are near-duplicates of training questions.

    Args:
        own: SHA-256 of the run's own files, which are left out.

    Returns:
        By the name of the benchmark's file: such questions, and all of it.
    """
    texts = [words_of(question.question) for question in trained]
    found = {}
    for name, questions in _cached(own):
        sets = number_words(chain(map(words_of, questions), texts))
        found[name] = len({asked for asked, _ in similar_pairs_between(sets, len(questions), jaccard)}), len(questions)
    return found


def _cached(own: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Question texts of every other pinned file that is in the cache."""
    for file in group_files("data").values():
        loaded: Any = OmegaConf.load(file)
        given = loaded.get("data", loaded)
        kept = OmegaConf.masked_copy(given, [key for key in given if key in DataConfig.__dataclass_fields__])
        try:
            config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), kept))
            if config.address is None or config.answer_address is not None:
                continue
            files = [pinned_file(config, size) for size in (*config.files,) or (None,)]
        except (OmegaConfBaseException, KeyError):  # a source of the user's own that this run does not use
            continue
        for pinned in files:
            if pinned.sha256 in own or not pinned.address.startswith("http") or not pinned.cached.is_file():
                continue
            if sha256_of([pinned.cached]) == pinned.sha256:
                yield pinned.name, list(_texts(config, pinned.cached))


def _texts(config: DataConfig, path: Path) -> Iterator[str]:
    """The question of every row that has one."""
    columns = Columns.of(config.columns)
    for row in open_rows(path, config.reader, None, None).rows(columns.header):
        with contextlib.suppress(ValueError):  # a bad row, which a run would refuse or skip
            text = columns.fields(normalised(row.fields)).get("question")
            if isinstance(text, str):
                yield text

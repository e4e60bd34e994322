"""Near-duplicates: the words of a text, and pairs of word sets with a high Jaccard index.

MinHash with banding (datasketch) proposes pairs; the exact Jaccard index of the two word sets decides.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 128
SEED = 1
MISSED_PAIRS = 1e-4
"""Largest chance that a pair just at the threshold is not proposed."""

_WORD = re.compile(r"\w+")

WordSet = frozenset[str]


def words_of(text: str) -> tuple[str, ...]:
    """The text's words in order, in one case and one Unicode form; a text without any word is its own word."""
    normalised = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(normalised)) or (" ".join(normalised.split()),)


def alike(word_sets: Sequence[WordSet], jaccard: float) -> Iterator[tuple[int, int]]:
    """Every pair i > j of sets in one collection whose Jaccard index is at least `jaccard`, in (0, 1]."""
    index = _index(jaccard)
    for i, sketch in enumerate(_sketches(word_sets)):
        for j in sorted(index.query(sketch)):
            if _jaccard(word_sets[i], word_sets[j]) >= jaccard:
                yield i, j
        index.insert(i, sketch)


def alike_between(left: Sequence[WordSet], right: Sequence[WordSet], jaccard: float) -> Iterator[tuple[int, int]]:
    """Every pair (i, j) of `left[i]` and `right[j]` whose Jaccard index is at least `jaccard`, in order."""
    index = _index(jaccard)
    for j, sketch in enumerate(_sketches(right)):
        index.insert(j, sketch)
    for i, sketch in enumerate(_sketches(left)):
        for j in sorted(index.query(sketch)):
            if _jaccard(left[i], right[j]) >= jaccard:
                yield i, j


def _sketches(word_sets: Sequence[WordSet]) -> Iterator[MinHash]:
    encoded = ([word.encode() for word in words] for words in word_sets)
    return MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=SEED)


def _index(jaccard: float) -> MinHashLSH:
    return MinHashLSH(num_perm=PERMUTATIONS, params=_bands_and_rows(jaccard))


def _jaccard(left: WordSet, right: WordSet) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def _bands_and_rows(jaccard: float) -> tuple[int, int]:
    """Bands b and rows r of the index: the most rows (fewest candidates) with (1 - J^r)^b at most MISSED_PAIRS."""
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - jaccard**rows) ** bands <= MISSED_PAIRS:
            return bands, rows
    return PERMUTATIONS, 1

"""Which texts are nearly the same: the words of a text, and every pair of word sets with a high Jaccard index.

The search is exact: no pair is missed and none is guessed.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

_WORD = re.compile(r"\w+")
_ROUNDING = 1e-9
"""Keeps floating-point error from turning a bound that is just met into one that is missed."""

WordSet = frozenset[str]


def words_of(text: str) -> tuple[str, ...]:
    """The text's words in order, in one case and one Unicode form; a text without any word is its own word."""
    normalised = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(normalised)) or (" ".join(normalised.split()),)


def alike(word_sets: Sequence[WordSet], jaccard: float) -> Iterator[tuple[int, int]]:
    """Every pair i > j of sets in one collection whose Jaccard index is at least `jaccard`.

    Args:
        word_sets: None of them empty.
        jaccard: Least |A ∩ B| / |A ∪ B|, in (0, 1].
    """
    ranks = _rarest_first(word_sets)
    index: defaultdict[str, list[int]] = defaultdict(list)
    for i, words in enumerate(word_sets):
        prefix = _prefix(words, jaccard, ranks)
        for j in _candidates(prefix, index):
            if _is_alike(words, word_sets[j], jaccard):
                yield i, j
        for word in prefix:
            index[word].append(i)


def alike_between(left: Sequence[WordSet], right: Sequence[WordSet], jaccard: float) -> Iterator[tuple[int, int]]:
    """Every pair (i, j) of `left[i]` and `right[j]` whose Jaccard index is at least `jaccard`, in order.

    Args:
        left: None of them empty.
        right: None of them empty.
        jaccard: Least |A ∩ B| / |A ∪ B|, in (0, 1].
    """
    ranks = _rarest_first([*left, *right])
    index: defaultdict[str, list[int]] = defaultdict(list)
    for j, words in enumerate(right):
        for word in _prefix(words, jaccard, ranks):
            index[word].append(j)
    for i, words in enumerate(left):
        for j in _candidates(_prefix(words, jaccard, ranks), index):
            if _is_alike(words, right[j], jaccard):
                yield i, j


def _rarest_first(word_sets: Iterable[WordSet]) -> dict[str, int]:
    """Each word's place in an order from the rarest to the most frequent."""
    counts = Counter(word for words in word_sets for word in words)
    return {word: rank for rank, word in enumerate(sorted(counts, key=lambda word: (counts[word], word)))}


def _prefix(words: WordSet, jaccard: float, ranks: Mapping[str, int]) -> list[str]:
    """The |A| - ceil(J |A|) + 1 rarest words of A: sets with Jaccard index J or more share a word of their prefixes.

    Prefix filtering: Chaudhuri et al. 2006, doi 10.1109/ICDE.2006.9; Bayardo et al. 2007, doi 10.1145/1242572.1242591.
    """
    least_shared = math.ceil(jaccard * len(words) - _ROUNDING)
    return sorted(words, key=ranks.__getitem__)[: len(words) - least_shared + 1]


def _candidates(prefix: Iterable[str], index: Mapping[str, list[int]]) -> list[int]:
    """In order, which sets hold a word of the prefix in theirs."""
    return sorted({i for word in prefix for i in index.get(word, ())})


def _is_alike(left: WordSet, right: WordSet, jaccard: float) -> bool:
    smaller, larger = sorted((len(left), len(right)))
    if smaller < jaccard * larger - _ROUNDING:  # |A ∩ B| / |A ∪ B| is at most the ratio of the sizes
        return False
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) >= jaccard

"""Near-duplicates: the words of a text, and pairs of word sets with a high Jaccard index.

Exact similarity join by prefix filtering (AllPairs, Bayardo, Ma and Srikant 2007; more words for crowded ones as in
AdaptJoin, Wang, Li and Feng 2012): with the words of each set in one order, rare ones first, two sets with enough in
common share some of their first words.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, product

CROWD = 8
"""Sets that share their first words are compared pair by pair; more than so many must share one word more."""
DEEPEST = 8
"""Most words that sets must share before they are compared, however many they are."""

_WORD = re.compile(r"\w+")

WordSet = tuple[int, ...]
"""A text's different words as ascending numbers (`number_words`)."""


def words_of(text: str) -> tuple[str, ...]:
    """The text's words in order, in one case and one Unicode form; a text without any word is its own word."""
    normalised = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(normalised)) or (" ".join(normalised.split()),)


def number_words(texts: Iterable[Iterable[str]]) -> list[WordSet]:
    """Each text's different words as ascending numbers; the rarer a word is among the texts, the lower its number."""
    known: dict[str, int] = {}
    word_sets = [tuple({known.setdefault(word, len(known)) for word in words}) for words in texts]
    count = Counter(chain.from_iterable(word_sets))
    number = {word: k for k, word in enumerate(sorted(known.values(), key=lambda word: (count[word], word)))}
    return [tuple(sorted(map(number.__getitem__, words))) for words in word_sets]


def similar_pairs(sets: Sequence[WordSet], jaccard: float) -> list[tuple[int, int]]:
    """Every pair i > j of sets whose Jaccard index is at least `jaccard`, in (0, 1]; in order."""
    pairs = (pair for rows in _groups(sets, jaccard, len(sets)) for pair in combinations(rows, 2))
    return sorted((i, j) for j, i in _similar_among(pairs, sets, jaccard))


def similar_pairs_between(sets: Sequence[WordSet], count: int, jaccard: float) -> list[tuple[int, int]]:
    """Every such pair (i, j) of one of the first `count` sets and one of the others, counted from 0 again; in order."""
    halves = ((rows, bisect_left(rows, count)) for rows in _groups(sets, jaccard, count))
    pairs = (pair for rows, cut in halves for pair in product(rows[:cut], rows[cut:]))
    return sorted((i, j - count) for i, j in _similar_among(pairs, sets, jaccard))


def _groups(sets: Sequence[WordSet], jaccard: float, count: int) -> Iterator[Sequence[int]]:
    """Rows in ascending order, such that every pair of similar sets is in one of the groups.

    Sets that are alike share k of their first words, for every k up to what they must share in all.

    Args:
        count: Groups without one of the first `count` rows are left out, and, where there are others, without these.
    """
    needed = [math.ceil(jaccard * len(words) - 1e-9) for words in sets]  # words that any set that is alike must share
    search: list[tuple[Sequence[int], int, int]] = [(range(len(sets)), 0, 0)]
    while search:
        rows, shared, begin = search.pop()
        if shared == DEEPEST or len(rows) <= CROWD:
            yield rows
            continue
        yield [row for row in rows if needed[row] <= shared]  # these need not share one word more
        first: dict[int, int] = {}  # most words are one row's: no list for each of these
        holders: dict[int, list[int]] = {}
        for row in rows:
            words = sets[row]
            end = len(words) - needed[row] + 1 + shared
            for word in words[bisect_left(words, begin) : end]:
                if word in holders:
                    holders[word].append(row)
                elif (other := first.setdefault(word, row)) != row:
                    holders[word] = [other, row]
        for word, group in holders.items():
            if group[0] < count and (count == len(sets) or group[-1] >= count):
                search.append((group, shared + 1, word + 1))


def _similar_among(pairs: Iterable[tuple[int, int]], sets: Sequence[WordSet], jaccard: float) -> set[tuple[int, int]]:
    """The similar pairs, each once."""
    found = set()
    for i, j in pairs:
        fewer, more = sorted((len(sets[i]), len(sets[j])))
        if fewer / more >= jaccard and (i, j) not in found:
            shared = len(set(sets[i]).intersection(sets[j]))
            if shared / (fewer + more - shared) >= jaccard:
                found.add((i, j))
    return found

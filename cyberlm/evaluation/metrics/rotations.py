"""Rotations of a question's options: questions that may be reordered, and accuracy over all rotations."""

import functools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.evaluation.predictions import Predictions, choices, golds
from cyberlm.tasks.task import LETTERS, Example

_QUANTITY = r"\b(?:all|any|both|each|either|most|neither|none|one|some|three|two)(?:\s+of)?(?:\s+(?:the|these|those))?"
_NOUN = r"(?:alternatives?|answers?|choices?|options?|responses?)"
_EACH = r"(?:all|any|both|each|either|neither|none)"
_FEW = r"(?:the\s+)?(?:two|three|four|five|2|3|4|5)"
_PLACE = r"(?:(?:both|only)\s+)?(?:the\s+)?(?:first|second|third|fourth|last|other|former|latter)"
_END = r"(?:\s+(?:is|are|were|can\s+be)\b.*|\s+(?:apply|applies|correct|right|true|false|wrong))?\W*$"
_GROUP = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "all of the above"; but "any port above 1023" is no such thing
        rf"{_QUANTITY}(?:\s+\w+)?\s+(?:above|aforementioned|below|foregoing|preceding)\b(?!\s+\d)",
        rf"{_QUANTITY}(?:\s+\w+)?\s+{_NOUN}\b",  # "all provided answers", "not any of the listed options"
        rf"{_QUANTITY}\s+(?:listed|mentioned|provided|stated)\b",  # "all of the mentioned strategies"
        # "All", "Both.", "all of them", "both are correct", "all three", "all apply"
        rf"^\W*(?:they\s+are\s+)?{_EACH}(?:\s+of)?(?:\s+(?:them|these|those|it|{_FEW}))*{_END}",
        rf"^\W*(?:{_PLACE}\s+and\s+)?{_PLACE}(?:\s+(?:{_FEW}|ones?))?{_END}",  # "the first two", "the latter"
        r"^\W*everything\W*$",
        r"^\W*no\s+(?:\w+\s+)?(?:answer|option|choice)s?\b",
        r"\b(?:same|as)\s+(?:as\s+)?(?:the\s+)?above\W*$",
    )
)
"""Patterns of an option that refers to others by place or as a group."""
_SPEAKING = (
    r"and|answers?|are|as|between|both|but|by|choices?|either|except|for|from|if|in|is|just|like|neither|not|of|on|only"
    r"|options?|or|responses?|statements?|than|that|to|was|when|with"
)
"""Words before letters that still leave these to be letters of options."""


def circular_eval(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Accuracy and consistency over the rotations of each question's options.

    `circular_accuracy`, right under every rotation, is CircularEval (Liu et al. 2023, arXiv 2307.06281);
    `rotations_consistency` is the share of questions where every rotation led to the same option text, right or wrong.
    """
    groups, n = predictions.rotated, len(predictions.test)
    if not groups:
        return
    shares, circular, consistent = [], [], []
    for group in groups:
        chosen = choices(group)  # (K,)
        correct = chosen == golds(group)
        # Back to each option's place in the question itself.
        originals = {int(choice + shift) % len(group) for shift, choice in enumerate(chosen)}
        shares.append(float(correct.mean()))
        circular.append(bool(correct.all()))
        consistent.append(len(originals) == 1)
    left_out = f"The options of {n - len(groups)} of {n} questions must not be reordered: rotations leave these out"
    note = left_out if len(groups) < n else ""
    yield share_metric("rotations_accuracy", shares, note=note, label="rotations: mean", place="evidence")
    yield share_metric("circular_accuracy", circular, label="rotations: right in all", place="evidence")
    yield share_metric("rotations_consistency", consistent, label="rotations: same option", place="evidence")


def safe_to_permute(options: Sequence[str]) -> bool:
    """Check that options mean the same in another order: none refers to another by letter, by place, or as a group.

    "All of the above", "neither", "the first two", "both A and B", "all but C", "same as A" do. In doubt the answer
    is no: a question that is left out costs less than one whose right answer has become wrong.
    """
    patterns = (*_GROUP, *_letter_patterns(len(options)))
    return not any(pattern.search(option) for option in options for pattern in patterns)


@functools.cache
def _letter_patterns(n_options: int) -> tuple[re.Pattern[str], ...]:
    """Patterns of an option that refers to others by letter. Letters are capitals, so that the article "a" is none."""
    letter = f"[A-{LETTERS[min(n_options, len(LETTERS)) - 1]}]"
    both = r"\b(?i:both|either|neither)\s+\(?"
    # Not "Hepatitis B and C", "machines A and B": there the word before names what the letters are of.
    before = rf"(?:^|[^\w\s&/.'’-]\s*|\b(?i:{_SPEAKING})\s+)(?<![A-Z],\s)(?<![A-Z],)\(?"
    patterns = (
        # "A, B, and C", "A) and B)", "B nor C"; not "C&C", "C and C++", "A and AAAA"
        rf"{before}({letter})\)?(?:\s*(?:,|&|\b(?i:and|n?or)\b))+\s*\(?(?!\1){letter}(?![\w&/'’+-])",
        rf"\b(?i:answers?|choices?|options?|statements?)\s+\(?{letter}\b",  # "option B"
        rf"\b(?i:both|either|except|neither|only)\s+\(?{letter}(?=\W*(?:$|\b(?:and|n?or|is|are)\b))",  # "only B is"
        rf"^\W*{letter}\)?\s+(?i:only|alone)\b(?!-)",  # "A only"
        rf"\b(?i:(?:all|any|each|every\w*|none)\b.*\b(?:but|except|besides|excluding|than)(?:\s+for)?)\s+\(?{letter}\)?\W*$",
        rf"\b(?i:same\s+as|identical\s+to|equal\s+to|equivalent\s+to|opposite\s+of|see)\s+\(?{letter}\)?\W*$",
        rf"{both}{letter.lower()}\)?\s+(?:and|n?or)\s+\(?{letter.lower()}\b",  # "both a and b"
        rf"^\W*{letter.lower()}\)?\s*(?:,|&|\band\b|\bn?or\b)\s*\(?{letter.lower()}\W*$",  # "a and b"
    )
    return tuple(map(re.compile, patterns))


def rotations(question: Example) -> tuple[Example, ...]:
    """Rotations of a question with K options, by shift; the first is the question itself.

    Option k of a rotated question is option (k + shift) mod K of the original. The id stays; the hash does not.
    """
    options, count = question.options, len(question.options)
    return tuple(
        replace(question, options=options[shift:] + options[:shift], gold=(question.gold - shift) % count)
        for shift in range(count)
    )


def prior_sample(questions: Sequence[Example], share: float = 0.05, seed: int = 0) -> tuple[Example, ...]:
    """Sample to estimate the prior of letters from: safe to permute, and of the most common number of options.

    A share of all questions, as in PriDe (Zheng et al. 2024, arXiv 2309.03882), at least one, in the order of their
    hashes; empty where no question is safe to permute. The order of the questions does not matter.
    """
    safe = sorted((q for q in questions if safe_to_permute(q.options)), key=lambda q: (q.hash, q.id))
    if not safe:
        return ()
    common = Counter(len(question.options) for question in safe).most_common()
    count = max(k for k, times in common if times == common[0][1])
    usable = [question for question in safe if len(question.options) == count]
    size = min(len(usable), max(1, round(share * len(questions))))
    return tuple(usable[i] for i in sorted(random.Random(seed).sample(range(len(usable)), size)))

"""A multiple-choice question."""

import hashlib
import json
from dataclasses import dataclass

LETTERS = "ABCDEFGH"
"""Option letters, in order; a question has 2 to 8 options."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: Unique within its file: the file's name and the row's number, for example `CyberMetric-500-v1:17`.
        question: The question's text, white space already normalised.
        options: 2 to 8 option texts; option k has letter `LETTERS[k]`.
        gold: Index of the right option.
        topic: Sub-topic, where the file states one.
    """

    id: str
    question: str
    options: tuple[str, ...]
    gold: int
    topic: str = ""

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.gold]

    @property
    def answer(self) -> str:
        """The right option's text."""
        return self.options[self.gold]

    @property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of the question, its options in order, and the gold index."""
        text = json.dumps([self.question, list(self.options), self.gold], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

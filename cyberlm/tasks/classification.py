"""Classification: a text that belongs to one class, for example the CWE of a CVE or the family of a program."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cyberlm.config.schema import PromptConfig
from cyberlm.tasks.task import Example

SHORTENED = "text shortened to its first and last words"
RUNS = "repeated calls written once, with their number"
MAX_CHARACTERS = 4096
"""Of all labels together, where they are scored by likelihood: each question takes a pass over all their tokens."""
AROUND = " \t\n\"'`*_.()[]"
"""Characters around a label that a strict reading takes away."""


class Classification:
    """The answer is a label: one of a list, or of a form.

    Listed labels of at most `MAX_CHARACTERS` are scored by likelihood too; of more, or of a form, the right one alone.

    Args:
        labels: All classes.
        form: Regular expression of a label, where classes are not listed; labels are then written in capitals.
        instruction: Text of the prompt, with {text} and, for listed labels, {labels}.
        max_words: A longer text keeps its first and its last words, so many in all; null: it is kept whole.
        run_lengths: Write a sequence of numbers or names, apart by commas or spaces, with repeats as `name x3`.
    """

    most_candidates = MAX_CHARACTERS

    def __init__(
        self,
        prompt: PromptConfig,
        instruction: str = "{text}",
        labels: Sequence[str] = (),
        form: str = "",
        max_words: int | None = None,
        run_lengths: bool = False,
    ) -> None:
        if bool(labels) == bool(form):
            raise TypeError("task.labels=[LABEL,LABEL] or task.form=EXPRESSION is needed, and not both")
        self.labels = tuple(map(str, labels))
        self.instruction, self.max_words, self.run_lengths = instruction, max_words, run_lengths
        ordered = sorted(self.labels, key=len, reverse=True)  # the longest first: T1003.001 before T1003
        self.label = re.compile(rf"(?<![\w.])(?:{form or '|'.join(map(re.escape, ordered))})(?!\w|\.\d)", re.IGNORECASE)

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of the fields `question` (the text), `answer` (the label), `group` and `topic`, if any."""
        text, notes = self._shortened(str(row["question"]))
        label = self.strict(str(row["answer"]))
        if not text:
            raise ValueError("question is empty; allowed: a text")
        if label is None:
            allowed = ", ".join(self.labels) or f"of the form {self.label.pattern}"
            raise ValueError(f"answer is {row['answer']!r}; allowed: {allowed}")
        options = self.labels if self._scored else (label,)
        group, topic = str(row.get("group") or ""), str(row.get("topic") or "")
        return Example(example_id, text, options, options.index(label), topic, notes, group)

    def prompt(self, example: Example) -> str:
        return self.instruction.format(text=example.question, labels=", ".join(self.labels))

    def target(self, example: Example) -> str:
        return example.answer

    def candidates(self, example: Example) -> Sequence[str] | None:
        return self.labels if self._scored else None

    def parse(self, completion: str, example: Example) -> int | str | None:
        return self._named(self.strict(completion), example)

    def parse_last_line(self, completion: str, example: Example) -> int | str | None:
        return self._named(self.last_line(completion), example)

    def strict(self, completion: str) -> str | None:
        """The label that a completion consists of, but for case and the characters `AROUND` it."""
        found = self.label.fullmatch(completion.strip(AROUND))
        return self._spelled(found[0]) if found else None

    def last_line(self, completion: str) -> str | None:
        """The one label that the last line with any text names, whatever else it says; None for several."""
        lines = completion.strip().splitlines() or [""]
        named = {self._spelled(found[0]) for found in self.label.finditer(lines[-1])}
        return named.pop() if len(named) == 1 else None

    def _spelled(self, label: str) -> str:
        return next((known for known in self.labels if known.lower() == label.lower()), label.upper())

    def _named(self, label: str | None, example: Example) -> int | str | None:
        if label is None:
            return None
        return example.options.index(label) if label in example.options else label

    @property
    def _scored(self) -> bool:
        return len(self.labels) > 1 and sum(map(len, self.labels)) <= MAX_CHARACTERS

    def _shortened(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text as it is asked, and what was changed."""
        words, notes = text.split(), []
        if self.run_lengths:
            runs = [(name, len(list(run))) for name, run in groupby(text.replace(",", " ").split())]
            words = [name if count == 1 else f"{name}x{count}" for name, count in runs]
            notes = [RUNS] if any(count > 1 for _, count in runs) else []
        if self.max_words is not None and len(words) > self.max_words:
            head = (self.max_words + 1) // 2
            words = [*words[:head], "...", *words[len(words) - (self.max_words - head) :]]
            notes.append(f"{SHORTENED} ({self.max_words})")
        return " ".join(words), tuple(notes)

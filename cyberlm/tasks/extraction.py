"""Extraction: all labels that a text holds, for example the ATT&CK techniques of a threat report."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from cyberlm.config.schema import PromptConfig
from cyberlm.tasks.task import Example, FreeAnswer


def labels_of(answer: str) -> frozenset[str]:
    """Labels of an answer as `Extraction` writes it: apart by commas."""
    return frozenset(filter(None, (label.strip() for label in answer.split(","))))


class Extraction(FreeAnswer):
    """The answer is a set of labels in order, apart by commas; it is right where the sets are equal.

    A completion's labels are all that it holds, in any place. Each counts once. With `main_only` a sub-technique
    counts as its technique, as CTI-Bench asks for (arXiv 2406.07599).

    Args:
        form: Regular expression of a label.
        instruction: Text of the prompt, with {text}.
        main_only: Leave out a label's first full stop and what follows: `T1003.001` is `T1003`.
    """

    def __init__(self, prompt: PromptConfig, form: str, instruction: str = "{text}", main_only: bool = False) -> None:
        self.form = re.compile(rf"(?<!\w)(?:{form})(?!\w)", re.IGNORECASE)
        self.instruction, self.main_only = instruction, main_only

    @property
    def figures(self) -> Mapping[str, Callable[[str, str], float]]:
        return {"macro_f1": self.f1}

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of the fields `question` (the text), `answer` (its labels), `group` and `topic`, if any."""
        text, labels = str(row["question"]), self.found_in(str(row["answer"]))
        if not text:
            raise ValueError("question is empty; allowed: a text")
        if not labels:
            raise ValueError(f"answer is {row['answer']!r}; allowed: labels of the form {self.form.pattern}")
        group, topic = str(row.get("group") or ""), str(row.get("topic") or "")
        return Example(example_id, text, (self._written(labels),), 0, topic, group=group)

    def parse(self, completion: str, example: Example) -> int | str | None:
        answer = self._written(self.found_in(completion))
        return 0 if answer == example.answer else answer or None

    def found_in(self, text: str) -> frozenset[str]:
        """Labels in a text."""
        labels = (found[0].upper() for found in self.form.finditer(text))
        return frozenset(label.partition(".")[0] if self.main_only else label for label in labels)

    def f1(self, completion: str, reference: str) -> float:
        """F1 of one completion's labels: twice those in common over the sum of both numbers."""
        given, right = self.found_in(completion), labels_of(reference)
        return 2 * len(given & right) / (len(given) + len(right))

    @staticmethod
    def _written(labels: frozenset[str]) -> str:
        return ", ".join(sorted(labels))

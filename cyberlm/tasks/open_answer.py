"""Open answer: any question with a reference text, which the answer is compared with."""

from collections.abc import Mapping
from typing import Any

from cyberlm.config.schema import PromptConfig
from cyberlm.tasks.task import Example, FreeAnswer


class OpenAnswer(FreeAnswer):
    """The answer is free text; it is right only where it is the reference itself."""

    def __init__(self, prompt: PromptConfig, instruction: str = "{text}") -> None:
        self.instruction = instruction

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of the fields `question`, `answer` (the reference), and `group` and `topic`, if any."""
        for name in ("question", "answer"):
            if not (isinstance(row[name], str) and row[name]):
                raise ValueError(f"{name} is {row[name]!r}; allowed: a text")
        group, topic = str(row.get("group") or ""), str(row.get("topic") or "")
        return Example(example_id, row["question"], (row["answer"],), 0, topic, group=group)

    def parse(self, completion: str, example: Example) -> int | str | None:
        answer = " ".join(completion.split())
        return 0 if answer == example.answer else answer or None

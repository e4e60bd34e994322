"""CVSS: the base vector (version 3.0 or 3.1) of a vulnerability, from its description."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cvss import CVSS3
from cvss.exceptions import CVSS3Error

from cyberlm.config.schema import PromptConfig
from cyberlm.tasks.task import Example, FreeAnswer

METRICS = ("AV", "AC", "PR", "UI", "S", "C", "I", "A")
"""Base metrics, in the order of a vector."""
PAIR = rf"(?:{'|'.join(METRICS)}):[A-Z]"
VECTOR = re.compile(rf"{PAIR}(?:/{PAIR})+", re.IGNORECASE)


def base_score(vector: str) -> float:
    """CVSS 3.1 base score, 0 to 10, of a vector from `vector_in`, by the library `cvss`."""
    return float(CVSS3(f"CVSS:3.1/{vector}").scores()[0])


def vector_in(text: str) -> str | None:
    """The last vector with all eight base metrics in a text, in their order and without the prefix `CVSS:3.1/`."""
    for found in reversed(VECTOR.findall(text)):
        pairs = [part.split(":") for part in found.upper().split("/")]
        values = dict(pairs)
        if len(pairs) == len(values) == len(METRICS):
            vector = "/".join(f"{name}:{values[name]}" for name in METRICS)
            try:
                base_score(vector)
            except CVSS3Error:
                continue
            return vector
    return None


def deviation(completion: str, reference: str) -> float:
    """Distance of the base scores; of a completion without a vector the largest that there could be."""
    vector, right = vector_in(completion), base_score(reference)
    return max(right, 10 - right) if vector is None else abs(base_score(vector) - right)


def has_right(metric: str, completion: str, reference: str) -> bool:
    """True for a completion whose vector has the value of one metric that the reference has."""
    right = dict(part.split(":") for part in reference.split("/"))
    return f"{metric}:{right[metric]}" in (vector_in(completion) or "").split("/")


class CvssVector(FreeAnswer):
    """The answer is a vector such as `AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H`; it is right where all metrics are."""

    figures: Mapping[str, Callable[[str, str], float]] = {
        "deviation": deviation,
        **{f"accuracy_{name}": partial(has_right, name) for name in METRICS},
    }

    def __init__(self, prompt: PromptConfig, instruction: str = "{text}") -> None:
        self.instruction = instruction

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of the fields `question` (the description), `answer` (the vector), and `group`, if any."""
        text, vector = str(row["question"]), vector_in(str(row["answer"]))
        if not text:
            raise ValueError("question is empty; allowed: a text")
        if vector is None:
            raise ValueError(f"answer is {row['answer']!r}; allowed: a CVSS 3.1 vector of {', '.join(METRICS)}")
        return Example(example_id, text, (vector,), 0, group=str(row.get("group") or ""))

    def parse(self, completion: str, example: Example) -> int | str | None:
        vector = vector_in(completion)
        return 0 if vector == example.answer else vector

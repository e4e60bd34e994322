"""Open answer: a question with a reference text, and no candidates."""

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.open_answer import OpenAnswer

TASK = OpenAnswer(PromptConfig(name="text", protocol=Protocol.text, question="{question}"), "{text} Briefly.")


def test_an_answer() -> None:
    example = TASK.read(
        {"question": "What is a salt?", "answer": "Random data.", "topic": "Hashes", "group": "b"}, "q:1"
    )
    assert (TASK.prompt(example), TASK.target(example)) == ("What is a salt? Briefly.", "Random data.")
    assert (TASK.candidates(example), example.topic, example.group) == (None, "Hashes", "b")
    parsed = [TASK.parse(text, example) for text in (" Random\n data.", "Some  data.", " ")]
    assert parsed == [0, "Some data.", None]


def test_a_group_that_is_null_is_none() -> None:
    example = TASK.read({"question": "x?", "answer": "y", "group": None, "topic": None}, "q:1")
    assert (example.group, example.topic) == ("", "")


@pytest.mark.parametrize("row", [{"question": "", "answer": "x"}, {"question": "x?", "answer": 3}])
def test_a_row_without_texts_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed: a text"):
        TASK.read(row, "q:1")

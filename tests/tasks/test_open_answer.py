"""Open answer: a question with a reference text, and no candidates."""

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.open_answer import OpenAnswer

TASK = OpenAnswer(PromptConfig(name="text", protocol=Protocol.text, question="{question}"), "{text} Briefly.")


def test_an_answer() -> None:
    row = {"question": "What is a salt?", "answer": "Random data.", "topic": "Hashes", "group": "b"}
    example = TASK.read(row, "q:1")
    assert (TASK.prompt(example), TASK.target(example)) == ("What is a salt? Briefly.", "Random data.")
    assert (TASK.candidates(example), example.topic, example.group) == (None, "Hashes", "b")
    parsed = [TASK.parse(text, example) for text in (" Random\n data.", "Some  data.", " ")]
    assert parsed == [0, "Some data.", None]
    nowhere = TASK.read(row | {"group": None, "topic": None}, "q:1")
    assert (nowhere.group, nowhere.topic) == ("", "")
    for bad in ({"question": ""}, {"answer": 3}):
        with pytest.raises(ValueError, match="allowed: a text"):
            TASK.read(row | bad, "q:1")

"""Extraction: labels wherever they stand, each once, sub-techniques as their technique where that is asked for."""

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.extraction import Extraction

PROMPT = PromptConfig(name="text", protocol=Protocol.text, question="{question}")
TASK = Extraction(PROMPT, r"T\d{4}(?:\.\d{3})?", "{text} Ids:", main_only=True)


def test_an_answer() -> None:
    example = TASK.read({"question": "report", "answer": "T1071, T1059", "topic": "Mobile"}, "q:1")
    assert (TASK.prompt(example), TASK.target(example), example.topic) == ("report Ids:", "T1059, T1071", "Mobile")
    for completion, parsed in (
        ("T1059, T1071", 0),
        ("t1071 and T1059.003, T1059.001; T1071", 0),
        ("T1059", "T1059"),
        ("XT1059", None),
        ("nothing", None),
    ):
        assert TASK.parse(completion, example) == parsed
    assert TASK.f1("T1059, T1083", "T1059, T1071") == 0.5
    exact = Extraction(PROMPT, TASK.form.pattern)
    assert exact.found_in("T1059.003 T1059") == {"T1059.003", "T1059"}
    for bad in ({"question": "", "answer": "T1059"}, {"question": "x", "answer": "none"}):
        with pytest.raises(ValueError, match="allowed"):
            TASK.read(bad, "q:1")

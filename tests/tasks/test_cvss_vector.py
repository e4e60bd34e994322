"""CVSS vectors: read from completions, scored as published examples are."""

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.cvss_vector import CvssVector, base_score, deviation, vector_in

HIGHEST = "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"
TASK = CvssVector(PromptConfig(name="text", protocol=Protocol.text, question="{question}"), "{text} Vector:")


def test_base_scores_are_those_of_first() -> None:
    examples = {  # of FIRST, www.first.org/cvss/v3.1/examples
        "AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N": 6.4,
        "AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N": 3.1,
        "AV:L/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H": 7.8,
        "AV:A/AC:L/PR:N/UI:N/S:C/C:H/I:N/A:H": 9.3,
        HIGHEST: 9.8,
    }
    assert {vector: base_score(vector) for vector in examples} == examples


def test_the_last_whole_vector_of_a_completion() -> None:
    completions = {
        f"CVSS:3.1/{HIGHEST}": HIGHEST,
        f"So it is **{HIGHEST.lower()}**.": HIGHEST,
        "A:H/I:H/C:H/S:U/UI:N/PR:N/AC:L/AV:N": HIGHEST,
        f"Not {HIGHEST}, but AV:L/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H": "AV:L/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H",
        "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H": None,
        "AV:N/AV:N/PR:N/UI:N/S:U/C:H/I:H/A:H": None,
        "AV:X/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H": None,
        "9.8": None,
    }
    assert {text: vector_in(text) for text in completions} == completions


def test_an_answer() -> None:
    row = {"question": "RCE", "answer": f"CVSS:3.1/{HIGHEST}", "group": "CVE-1"}
    example = TASK.read(row, "q:1")
    assert (TASK.prompt(example), TASK.target(example), example.group) == ("RCE Vector:", HIGHEST, "CVE-1")
    local = HIGHEST.replace("AV:N", "AV:L")
    assert [TASK.parse(text, example) for text in (HIGHEST, local, "none")] == [0, local, None]
    assert deviation(HIGHEST, HIGHEST) == 0 and deviation("none", HIGHEST) == 9.8
    assert deviation(local, HIGHEST) == pytest.approx(9.8 - 8.4)
    same = {name: figure(local, HIGHEST) for name, figure in TASK.figures.items()}
    assert same["accuracy_AV"] == 0 and same["accuracy_AC"] == 1 and same["deviation"] == pytest.approx(1.4)
    assert TASK.figures["accuracy_A"]("none", HIGHEST) == 0
    for bad in ({"question": "", "answer": HIGHEST}, {"question": "RCE", "answer": "9.8"}):
        with pytest.raises(ValueError, match="allowed"):
            TASK.read(bad, "q:1")

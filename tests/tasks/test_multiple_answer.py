"""Multiple answer: sets of right options in every form that files have, and as completions name them."""

from typing import Any

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.multiple_answer import MultipleAnswer

PROMPT = PromptConfig(name="text", protocol=Protocol.text, question="{question}")
TASK = MultipleAnswer(PROMPT, "{text}\nLetters:", "{text}\n{letter}?")
OPTIONS = ["SSH", "Telnet, clear", "TLS", "FTP"]


def row(answer: object, **more: object) -> dict[str, Any]:
    return {"question": "What encrypts?", "options": OPTIONS, "answer": answer, **more}


def test_several_right_answers_in_every_form() -> None:
    forms = {
        "letter": ("A,C", "AC", "c; a", "A and C", "A AND C", "a & c", "ac", "C / A", "A, and C", "A|C"),
        "index0": ([0, 2], "0,2", "[0, 2]", ["0", 2.0], "2 0"),
        "index1": ([1, 3],),
        "text": (["SSH", "TLS"], "SSH, TLS", "SSH; TLS", "TLS|SSH"),
    }
    forms["letter"] += (["A", "C"], '["A", "C"]', "['c','a']")
    for answer_is, answers in forms.items():
        for answer in answers:
            example = TASK.read(row(answer, topic="Protocols", answer_is=answer_is), "q:1")
            assert (example.answer, example.gold, example.topic) == ("A, C", 0, "Protocols"), answer
    assert TASK.prompt(example) == "What encrypts?\nA) SSH\nB) Telnet, clear\nC) TLS\nD) FTP\nLetters:"
    assert TASK.target(example) == "A, C" and TASK.candidates(example) is None
    each = TASK.each_option(example)
    assert [TASK.judge.target(one) for one in each] == ["yes", "no", "yes", "no"]
    assert TASK.judge.prompt(each[1]) == "What encrypts?\nA) SSH\nB) Telnet, clear\nC) TLS\nD) FTP\nB?"


def test_one_right_answer_is_a_set_too() -> None:
    assert TASK.read(row("b"), "q:1").answer == "B"
    assert TASK.read(row("Telnet, clear; FTP", answer_is="text"), "q:1").answer == "B, D"
    labels = {"text": OPTIONS, "label": ["1", "2", "3", "4"]}
    assert TASK.read(row("2,4") | {"options": labels}, "q:1").answer == "B, D"


def test_an_answer_that_names_no_option_is_refused() -> None:
    for answer, answer_is, reason in (
        ("A, E", "letter", "the solution is 'E', which names no option; allowed: one letter of A to D"),
        ([], "letter", "answer is an empty list; allowed: one right option or more"),
        ("A, A", "letter", "the answer names A, A; allowed: each option once"),
        ("", "letter", "the solution is '', which names no option"),
        ("[A", "letter", r"the solution is '\[A', which names no option"),
        ([0, 4], "index0", "is '4'; allowed: 0 to 3"),
        ("SSH, SMTP", "text", "is 'SMTP', which is the text of no option"),
        (None, "letter", "answer is null"),
    ):
        with pytest.raises(ValueError, match=reason):
            TASK.read(row(answer, answer_is=answer_is), "q:1")


def test_a_completion_is_read_strictly_and_from_its_last_line() -> None:
    example = TASK.read(row("A,C"), "q:1")
    completions = {
        "A, C": (0, 0),
        "**C, A.**": (0, 0),
        "AC": (0, 0),
        "a and c": (0, 0),
        "A": ("A", "A"),
        "A, F": ("A, F", "A, F"),
        "The right options are: A and C.": (None, 0),
        "B is wrong.\nAnswer: AC\n": (None, 0),
        "Options A, B and C are right": (None, "A, B, C"),
        "A firewall is no answer, but C is": (None, "C"),
        "A is right\nC is right": (None, "C"),
        "ac": (None, None),
        "dead": (None, None),
        "nothing": (None, None),
        "": (None, None),
    }
    found = {text: (TASK.parse(text, example), TASK.parse_last_line(text, example)) for text in completions}
    assert found == completions


def test_the_jaccard_index_of_a_completion() -> None:
    jaccard = TASK.figures["jaccard_generation"]
    indices = {"A, C": 1, "A": 1 / 2, "A, B": 1 / 3, "B": 0, "none": 0, "A, B, C": 2 / 3}
    assert {text: jaccard(text, "A, C") for text in indices} == indices

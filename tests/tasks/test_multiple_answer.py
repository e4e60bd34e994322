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


@pytest.mark.parametrize(
    ("answer", "answer_is"),
    [
        *(
            (answer, None)
            for answer in ("A,C", "AC", "c; a", "A and C", "A AND C", "a & c", "ac", "C / A", "A, and C", "A|C")
        ),
        *((answer, None) for answer in (["A", "C"], '["A", "C"]', "['c','a']")),
        *((answer, "index0") for answer in ([0, 2], "0,2", "[0, 2]", ["0", 2.0], "2 0")),
        ([1, 3], "index1"),
        *((answer, "text") for answer in (["SSH", "TLS"], "SSH, TLS", "SSH; TLS", "TLS|SSH")),
    ],
)
def test_several_right_answers_in_every_form(answer: object, answer_is: str | None) -> None:
    example = TASK.read(row(answer, topic="Protocols", **({"answer_is": answer_is} if answer_is else {})), "q:1")
    assert (example.answer, example.gold, example.topic) == ("A, C", 0, "Protocols")
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


@pytest.mark.parametrize(
    ("answer", "answer_is", "reason"),
    [
        ("A, E", None, "the solution is 'E', which names no option; allowed: one letter of A to D"),
        ([], None, "answer is an empty list; allowed: one right option or more"),
        ("A, A", None, "the answer names A, A; allowed: each option once"),
        ("", None, "the solution is '', which names no option"),
        ("[A", None, r"the solution is '\[A', which names no option"),
        ([0, 4], "index0", "is '4'; allowed: 0 to 3"),
        ("SSH, SMTP", "text", "is 'SMTP', which is the text of no option"),
        (None, None, "answer is null"),
    ],
)
def test_an_answer_that_names_no_option_is_refused(answer: object, answer_is: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TASK.read(row(answer, **({"answer_is": answer_is} if answer_is else {})), "q:1")


@pytest.mark.parametrize(
    ("completion", "strict", "last_line"),
    [
        ("A, C", 0, 0),
        ("**C, A.**", 0, 0),
        ("AC", 0, 0),
        ("a and c", 0, 0),
        ("A", "A", "A"),
        ("A, F", "A, F", "A, F"),
        ("The right options are: A and C.", None, 0),
        ("B is wrong.\nAnswer: AC\n", None, 0),
        ("Options A, B and C are right", None, "A, B, C"),
        ("A firewall is no answer, but C is", None, "C"),
        ("A is right\nC is right", None, "C"),
        ("ac", None, None),
        ("dead", None, None),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_a_completion_is_read_strictly_and_from_its_last_line(
    completion: str, strict: object, last_line: object
) -> None:
    example = TASK.read(row("A,C"), "q:1")
    assert TASK.parse(completion, example) == strict
    assert TASK.parse_last_line(completion, example) == last_line


def test_the_jaccard_index_of_a_completion() -> None:
    jaccard = TASK.figures["jaccard_generation"]
    found = [jaccard(text, "A, C") for text in ("A, C", "A", "A, B", "B", "none", "A, B, C")]
    assert found == [1, 1 / 2, 1 / 3, 0, 0, 2 / 3]

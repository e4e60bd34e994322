"""Classification: labels of a list and of a form, read strictly and from the last line; long and repetitive texts."""

import pytest

from cyberlm.config.schema import PromptConfig, Protocol
from cyberlm.tasks.classification import Classification

PROMPT = PromptConfig(name="text", protocol=Protocol.text, question="{question}", show_options=True)
CWE = Classification(PROMPT, "CVE: {text}", form=r"CWE-\d+")
TECHNIQUE = Classification(PROMPT, form=r"T\d{4}(?:\.\d{3})?")
FAMILY = Classification(PROMPT, "{text}\n{labels}?", labels=["Virus", "Trojan", "Worms"])


def test_a_label_of_a_form() -> None:
    example = CWE.read({"question": "XSS in a form", "answer": "CWE-79", "group": "CVE-2024-1"}, "q:1")
    assert (example.answer, example.gold, example.group) == ("CWE-79", 0, "CVE-2024-1")
    assert CWE.prompt(example) == "CVE: XSS in a form" and CWE.candidates(example) is None
    completions = {  # what is read strictly, and from the last line
        "CWE-79": (0, 0),
        "cwe-79.": (0, 0),
        "**CWE-79**": (0, 0),
        "CWE-787": ("CWE-787", "CWE-787"),
        "It is CWE-79.": (None, 0),
        "CWE-79 it is.\nCWE-20": (None, "CWE-20"),
        "CWE-79\n\n": (0, 0),
        "CWE-20 or CWE-79": (None, None),
        "CWE-79, that is CWE-79": (None, 0),
        "CWE-79x": (None, None),
        "cross-site scripting": (None, None),
        "": (None, None),
    }
    found = {text: (CWE.parse(text, example), CWE.parse_last_line(text, example)) for text in completions}
    assert found == completions


def test_a_technique_and_its_sub_technique_differ() -> None:
    example = TECHNIQUE.read({"question": "dumps LSASS", "answer": "T1003.001"}, "q:1")
    assert [TECHNIQUE.parse(text, example) for text in ("T1003.001.", "T1003")] == [0, "T1003"]
    assert TECHNIQUE.parse_last_line("So: T1003.001, LSASS Memory", example) == 0


def test_listed_labels_are_candidates() -> None:
    example = FAMILY.read({"question": "a  b", "answer": "trojan"}, "q:1")
    assert FAMILY.candidates(example) == example.options == ("Virus", "Trojan", "Worms") and example.gold == 1
    assert FAMILY.prompt(example) == "a b\nVirus, Trojan, Worms?"
    assert [FAMILY.parse(text, example) for text in ("worms", "Trojan.", "Trojans", "none")] == [2, 1, None, None]
    with pytest.raises(ValueError, match="answer is 'Spy'; allowed: Virus, Trojan"):
        FAMILY.read({"question": "x", "answer": "Spy"}, "q:1")
    with pytest.raises(ValueError, match="empty"):
        FAMILY.read({"question": " ", "answer": "Virus"}, "q:1")
    for settings in ({}, {"labels": ["a", "b"], "form": "a|b"}):
        with pytest.raises(TypeError, match=r"task\.labels=.* or task\.form="):
            Classification(PROMPT, **settings)


def test_labels_are_candidates_up_to_a_number_of_characters() -> None:
    for characters, scored in ((2, True), (40, True), (41, False)):
        labels = [f"{k:0{characters}d}" for k in range(100)]
        many = Classification(PROMPT, labels=labels)
        example = many.read({"question": "x", "answer": labels[99]}, "q:1")
        assert many.candidates(example) == (tuple(labels) if scored else None)
        assert (example.gold, example.letter) == ((99, "100") if scored else (0, "A"))
        assert example.answer == labels[99]


def test_repeats_are_counted_and_long_texts_keep_both_ends() -> None:
    task = Classification(PROMPT, labels=["a", "b"], max_words=3, run_lengths=True)
    example = task.read({"question": "7,7,7,1,2,3,3,9", "answer": "a"}, "q:1")
    assert example.question == "7x3 1 ... 9"
    assert example.notes == (
        "repeated calls written once, with their number",
        "text shortened to its first and last words (3)",
    )
    assert task.read({"question": "1,2,3", "answer": "b"}, "q:2").notes == ()

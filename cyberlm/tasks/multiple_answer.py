"""Multiple answer: a question with two to eight options, of which one or more are right."""

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cyberlm.config.schema import AnswerIs, PromptConfig
from cyberlm.tasks.classification import AROUND, Classification
from cyberlm.tasks.extraction import labels_of
from cyberlm.tasks.multiple_choice import GOLD_FIELDS, LETTERS, MultipleChoice
from cyberlm.tasks.task import Example, FreeAnswer

YES_NO = ("yes", "no")
APART = r"(?:\s*[,;|/&+]\s*|\s+)(?:(?:and|or)\s+)?"
"""Regular expression of what separates two letters."""
LETTER_SET = re.compile(rf"[A-H](?:{APART}[A-H])*", re.IGNORECASE)
TOGETHER = re.compile(r"[A-H]{2,8}")
ALONE = re.compile(r"(?<![\w'’-])(?:[B-H]|A(?!\s+(?!(?:and|or|is|are)\b)[a-z]))(?![\w'’-])")
"""A letter that is no part of a word, nor an article before one."""


class MultipleAnswer(FreeAnswer):
    """The answer is the set of the right options' letters, in order: `A, C`; it is right where the sets are equal.

    A completion is read as one such set. By likelihood each option is asked about alone (`each_option`): the set holds
    those of which `yes` is likelier than `no`.

    Args:
        instruction: Text of the prompt, with {text}: the question, and below it each option behind its letter.
        option_instruction: Text of the prompt on one option, with {text} and {letter}.

    Attributes:
        judge: Task of the questions on one option.
    """

    figures: Mapping[str, Callable[[str, str], float]]

    def __init__(
        self,
        prompt: PromptConfig,
        instruction: str = "{text}",
        option_instruction: str = "{text}\n{letter}: yes or no?",
    ) -> None:
        self.instruction, self.option_instruction = instruction, option_instruction
        self.judge = Classification(prompt, labels=YES_NO)
        self.one_right = MultipleChoice(prompt)
        self.figures = {"jaccard_generation": lambda text, right: jaccard(strict(text), labels_of(right))}

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of a row as multiple choice has them; its answer names one right option or several.

        Several are a list, or a text in which they are separated (`A,C`, `A and C`; of options' texts by `;`, `|` or
        commas) or, of letters, together (`AC`). Each is written as `answer_is` says.
        """
        name = next((name for name in row if name.lower() in GOLD_FIELDS), None)
        if name is None:
            raise ValueError(f"{GOLD_FIELDS[0]} is missing; allowed: one of {', '.join(GOLD_FIELDS)}")
        problem = ValueError(f"{name} is an empty list; allowed: one right option or more")
        for answers in _splittings(row[name], row.get("answer_is") or AnswerIs.letter):
            try:
                found = [self.one_right.read({**row, name: answer}, example_id) for answer in answers]
            except ValueError as error:
                problem = error
                continue
            if found:
                return _together(found)
        raise problem

    def parse(self, completion: str, example: Example) -> int | str | None:
        return _answer(strict(completion), example)

    def parse_last_line(self, completion: str, example: Example) -> int | str | None:
        return _answer(last_line(completion), example)

    def each_option(self, example: Example) -> list[Example]:
        """One question on each option, answered by `yes` or `no`."""
        right = labels_of(example.answer)
        return [
            replace(
                example,
                question=self.option_instruction.format(text=example.question, letter=letter),
                options=YES_NO,
                gold=int(letter not in right),
            )
            for letter in letters_of(example)
        ]


def letters_of(example: Example) -> str:
    """Letters of all options: each has a line of the question."""
    return LETTERS[: example.question.count("\n")]


def jaccard(given: frozenset[str], right: frozenset[str]) -> float:
    """Letters in common over all letters in either set; `right` is not empty."""
    return len(given & right) / len(given | right)


def strict(completion: str) -> frozenset[str]:
    """Letters of a completion that consists of them, but for the characters `AROUND` it; small only where apart."""
    text = completion.strip(AROUND)
    if TOGETHER.fullmatch(text):
        return frozenset(text)
    return frozenset(re.split(APART, text.upper(), flags=re.IGNORECASE)) if LETTER_SET.fullmatch(text) else frozenset()


def last_line(completion: str) -> frozenset[str]:
    """Capital letters that stand alone in the last line with any text, or the set behind its last colon."""
    line = (completion.strip().splitlines() or [""])[-1]
    return strict(line.rpartition(":")[2]) or frozenset(ALONE.findall(line))


def _answer(letters: frozenset[str], example: Example) -> int | str | None:
    answer = ", ".join(sorted(letters))
    return 0 if answer == example.answer else answer or None


def _together(found: Sequence[Example]) -> Example:
    """One example of those that one right option each would make."""
    first = found[0]
    letters = sorted({one.letter for one in found})
    if len(letters) < len(found):
        raise ValueError(f"the answer names {', '.join(one.letter for one in found)}; allowed: each option once")
    options = (f"{letter}) {text}" for letter, text in zip(LETTERS, first.options, strict=False))
    return replace(first, question="\n".join([first.question, *options]), options=(", ".join(letters),), gold=0)


def _splittings(value: object, answer_is: str) -> Iterator[list[Any]]:
    """Right answers apart, in each way that they may be written; the first that can be read counts."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value)
    if isinstance(value, list):
        yield value
        return
    yield [value]
    if not isinstance(value, str):
        return
    for mark in (";", r"\|", ",") if answer_is == AnswerIs.text else (APART,):
        if parts := [part for part in re.split(rf"\s*{mark}\s*", value, flags=re.IGNORECASE) if part]:
            yield parts
    if TOGETHER.fullmatch(value.upper()) and answer_is == AnswerIs.letter:
        yield list(value)

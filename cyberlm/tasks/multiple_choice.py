"""Multiple choice: a question with two to eight options, of which one is right."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from cyberlm.config.schema import AnswerIs, PromptConfig, Protocol
from cyberlm.runtime.errors import did_you_mean
from cyberlm.runtime.validation import describe_type, short_repr, validation_messages
from cyberlm.tasks.answers.parsing import parse_letter, parse_text
from cyberlm.tasks.task import Example

LETTERS = "ABCDEFGH"
"""Of options, in order: a question has 2 to 8, for answers are parsed by these letters."""
MAX_CHARACTERS = 250_000
"""Of one text."""
OPTIONS_FIELDS, GOLD_FIELDS = ("answers", "options", "choices"), ("solution", "answer")
FIELDS = ("question", *OPTIONS_FIELDS, *GOLD_FIELDS, "topic", "domain", "answer_is")
LABELLED = {"text", "label"}
LETTERS_STRIPPED = "option letters stripped"
_SEVERAL_LETTERS = re.compile(r"[A-H](\s*(,|;|/|&|\+|and|or)?\s*[A-H])+", re.IGNORECASE)


class MultipleChoice:
    """The answer is an option's letter or its text, as `prompt.protocol` says."""

    def __init__(self, prompt: PromptConfig) -> None:
        self.config = prompt

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make a question of a row: options as an object, as a list, or each in a field of its own letter.

        The answer is a letter, or what the field `answer_is` says. Where all options begin with their own letters,
        these are stripped.
        """
        try:
            notes: list[str] = []
            return QuestionRow.model_validate(_in_one_shape(row), context=notes).example(example_id, tuple(notes))
        except ValidationError as error:
            raise ValueError("; ".join(validation_messages(error))) from error

    def prompt(self, example: Example) -> str:
        lines = (
            self.config.option.format(letter=letter, text=text)
            for letter, text in zip(LETTERS, example.options, strict=False)
        )
        values = {"question": example.question}
        if self.config.show_options:
            values["options"] = "\n".join(lines)
        return self.config.question.format(**values)

    def target(self, example: Example) -> str:
        return self.candidates(example)[example.gold]

    def candidates(self, example: Example) -> Sequence[str]:
        return LETTERS[: len(example.options)] if self._by_letter else example.options

    def parse(self, completion: str, example: Example) -> int | None:
        return (parse_letter if self._by_letter else parse_text)(completion, example.options)

    @property
    def _by_letter(self) -> bool:
        return self.config.protocol is Protocol.letter


def _in_one_shape(row: Mapping[str, Any]) -> dict[str, Any]:
    """Put options that have a field each (`A`, `B`, ...) into one object, and refuse fields that nothing reads.

    Field names are read in any case, as spreadsheets have them.
    """
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    problems, unknown = [], []
    for name, value in row.items():
        letter, field = name.upper() in tuple(LETTERS), name.lower()
        key, target = (name.upper(), options) if letter else (field, fields)
        if not letter and field not in FIELDS:
            unknown.append(name)
        elif key in target:
            problems.append(f"field '{key}' is given twice")
        target[key] = value
    if unknown:
        found = f"{', '.join(map(short_repr, unknown[:8]))} {'is' if len(unknown) == 1 else 'are'} not known"
        hint = did_you_mean(unknown[0].lower(), FIELDS) if len(unknown) == 1 else ""
        allowed = ", ".join(field for field in FIELDS if field != "answer_is")
        problems.append(f"field{'s' * (len(unknown) > 1)} {found}; allowed: {allowed}. {hint}".rstrip(". "))
    if options and not fields.keys().isdisjoint(OPTIONS_FIELDS):
        problems.append(f"the field '{next(iter(options))}' is given beside a field of all options")
    elif options:
        fields[OPTIONS_FIELDS[0]] = options
    for names in (OPTIONS_FIELDS, GOLD_FIELDS):
        present = [name for name in names if name in fields]
        if len(present) != 1:
            found = " and ".join(present) + " are given side by side" if present else f"{names[0]} is missing"
            problems.append(f"{found}; allowed: one of {', '.join(names)}")
    if problems:
        raise ValueError("; ".join(problems))
    return _without_labels(fields)


def _without_labels(fields: dict[str, Any]) -> dict[str, Any]:
    """Options that are given as texts with labels, as a list, and the answer that is a label as its letter."""
    options, gold = (next(name for name in names if name in fields) for names in (OPTIONS_FIELDS, GOLD_FIELDS))
    value = fields[options]
    if isinstance(value, list) and value and all(isinstance(item, dict) and set(item) == LABELLED for item in value):
        value = {key: [item[key] for item in value] for key in LABELLED}
    if not (isinstance(value, dict) and set(value) == LABELLED and all(isinstance(v, list) for v in value.values())):
        return fields
    texts, labels = value["text"], value["label"]
    if len(texts) != len(labels) or len(set(map(str, labels))) < len(labels):
        raise ValueError(f"{options} has {len(texts)} texts and the labels {labels}; allowed: a label of its own each")
    letters = dict(zip(map(str, labels), LETTERS, strict=False))
    return fields | {options: texts, gold: letters.get(str(fields[gold]), fields[gold])}


def _by_letters(value: object) -> object:
    """Options under capital letters, in order."""
    if not isinstance(value, dict | list):
        raise ValueError(f"is {describe_type(value)}; allowed: an object of letters and texts, or a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"has {len(value)} options; allowed: 2 to {len(LETTERS)}")
    expected = LETTERS[: len(value)]
    if isinstance(value, list):
        return dict(zip(expected, value, strict=True))
    letters: dict[str, str] = {}
    for key in sorted(value, key=lambda key: (key.upper(), key)):
        if letters.setdefault(key.upper(), key) != key:
            first = letters[key.upper()]
            raise ValueError(f"names option {key.upper()} twice, as {short_repr(first)} and {short_repr(key)}")
    if "".join(letters) != expected or len(letters) != len(expected):
        found, wanted = ", ".join(map(short_repr, letters)), ", ".join(expected)
        raise ValueError(f"names its options {found}; allowed for {len(value)} options: {wanted}")
    return {letter: value[key] for letter, key in letters.items()}


def _without_own_letters(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Options without the letters that they begin with, where each begins with its own: `A) 80`, `B) 443`."""
    stripped = {letter: _without_letter(text, letter) for letter, text in value.items()}
    if None in stripped.values():
        return value
    if info.context is not None:
        info.context.append(LETTERS_STRIPPED)
    return stripped


def _without_letter(text: object, letter: str) -> str | None:
    text = text if isinstance(text, str) else ""
    found = re.match(rf"[(\[]?{letter}(?:[)\]:]|[.\-–](?=\s))\s*", text, re.IGNORECASE)
    return text[found.end() :] if found else None


def _all_different(options: dict[str, str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for letter, option in options.items():
        same = first.setdefault(unicodedata.normalize("NFC", option), letter)
        if same != letter:
            raise ValueError(f"gives {same} and {letter} the same text: {short_repr(option)}")
    return options


def _as_letter(value: object, info: ValidationInfo) -> object:
    """The right option's letter, of an answer that is written as `answer_is` says."""
    answer_is, options = info.data.get("answer_is"), info.data.get("options")
    if answer_is is AnswerIs.letter and (
        isinstance(value, list) or (isinstance(value, str) and _SEVERAL_LETTERS.fullmatch(value))
    ):
        found = short_repr(value) if isinstance(value, str) else "a list"
        raise ValueError(f"is {found}: several right answers; allowed: one letter, or task=multiple_answer")
    if answer_is in (None, AnswerIs.letter) or options is None:
        return value
    letters = list(options)
    if answer_is is AnswerIs.text:
        return _letter_of_text(value, options)
    first = int(answer_is is AnswerIs.index1)
    indices = {str(k): letter for k, letter in enumerate(letters, start=first)}
    number = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    if number not in indices:
        raise ValueError(f"is {short_repr(number)}; allowed: {first} to {len(letters) - 1 + first}")
    return indices[number]


def _letter_of_text(value: object, options: Mapping[str, str]) -> str:
    texts = {unicodedata.normalize("NFC", text): letter for letter, text in options.items()}
    if not isinstance(value, str):
        raise ValueError(f"is {describe_type(value)}; allowed: the text of an option")
    for letter, text in options.items():
        if _without_letter(value, letter) == text:
            return letter
    if unicodedata.normalize("NFC", value) not in texts:
        raise ValueError(f"is {short_repr(value)}, which is the text of no option")
    return texts[unicodedata.normalize("NFC", value)]


Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Topic = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class QuestionRow(BaseModel):
    """A row of a question file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: Text
    answer_is: AnswerIs = Field(AnswerIs.letter, strict=False)
    options: Annotated[
        dict[str, Text],
        BeforeValidator(_without_own_letters),
        BeforeValidator(_by_letters),  # runs first
        AfterValidator(_all_different),
    ] = Field(validation_alias=AliasChoices(*OPTIONS_FIELDS))
    gold: Annotated[str, BeforeValidator(_as_letter)] = Field(validation_alias=AliasChoices(*GOLD_FIELDS))
    domain: Topic = ""
    topic: Topic = ""

    def example(self, example_id: str, notes: tuple[str, ...]) -> Example:
        letter = self.gold.upper()
        if letter not in self.options:
            allowed = f"one letter of A to {list(self.options)[-1]}"
            raise ValueError(f"the solution is {short_repr(self.gold)}, which names no option; allowed: {allowed}")
        topic = ": ".join(part for part in (self.domain, self.topic) if part)
        return Example(example_id, self.question, tuple(self.options.values()), LETTERS.index(letter), topic, notes)

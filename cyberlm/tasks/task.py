"""A task: what is asked, what counts as right, how an answer is read.

Each task is one class in a file beside this one, and one YAML under conf/task. A task of your own is a class of the
same shape anywhere on PYTHONPATH, and a YAML in your own configuration folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import hydra.utils
from hydra.errors import InstantiationException

from cyberlm.config.schema import RootConfig
from cyberlm.runtime.errors import ConfigError, Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of options and classes in what is reported, in order: a task has at most so many, or its `most_candidates`."""


def option_name(option: int) -> str:
    """Name of option k in what is reported: its letter, and from the 27th on its number, counted from 1."""
    return LETTERS[option] if option < len(LETTERS) else str(option + 1)


def short_hash(text: str) -> str:
    """SHA-256 (first 16 hex digits) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that a model is asked.

    Attributes:
        id: Unique within its file: the file's name and the row's number, for example `CyberMetric-500-v1:17`.
        question: The text that is asked about, white space already normalised.
        options: The closed set of answers, option k under `option_name(k)`; the reference alone where answers are free.
        topic: Sub-topic, where the file states one.
        notes: What the task changed when it read the row, for the user: rows are counted by note.
        group: What the question comes from with others, a report for example: a split keeps it on one side.
        source: Name of the source in a mixture (`data.mix`); empty without one.
        turns: Role and text of each message before the answer, of a conversation; empty where `Task.prompt` is all.
    """

    id: str
    question: str
    options: tuple[str, ...]
    gold: int
    topic: str = ""
    notes: tuple[str, ...] = ()
    group: str = ""
    source: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def letter(self) -> str:
        """The right option's letter (`option_name`)."""
        return option_name(self.gold)

    @property
    def answer(self) -> str:
        """The right option's text."""
        return self.options[self.gold]

    @property
    def hash(self) -> str:
        """`short_hash` of the question, its options in order, the gold index, and a conversation's messages."""
        return short_hash(json.dumps([self.question, list(self.options), self.gold, *self.turns], ensure_ascii=False))


@runtime_checkable
class Task(Protocol):
    """Functions of a task that training and evaluation call.

    A task is made by its `_target_` with `prompt`, the group of that name, and its own settings from its YAML. That
    YAML names the metrics of the task too, and the one that chooses the weights: with `# @package _global_` it sets
    `trainer.monitor`, and takes other options of the groups `metrics` and `prompt`.

    A task may also have these attributes, which are read by `getattr` with a default: `figures`, by name functions of a
    completion and its target, whose means are compared between models; `most_candidates`, where its metrics know more
    than 26; `keeps_white_space`, where texts are not to be normalised.
    """

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of a file's row: a JSON object, or the cells of a CSV row by the names in the header.

        Raises:
            ValueError: The row cannot be used; the reader names its place.
        """
        ...

    def prompt(self, example: Example) -> str:
        """Render the user message."""
        ...

    def target(self, example: Example) -> str:
        """Render the right answer: what is trained on, and what ROUGE compares with."""
        ...

    def candidates(self, example: Example) -> Sequence[str] | None:
        """List the answers that are scored by likelihood, the right one at `example.gold`; None where answers are free.

        Of a free answer the target alone is scored.
        """
        ...

    def parse(self, completion: str, example: Example) -> int | str | None:
        """Read a generated answer: index of the candidate that it names, a free answer's text, or None for neither.

        Of a free answer, 0 where it equals the target: the answer is right.
        """
        ...


class FreeAnswer:
    """Parts that tasks without candidates have in common: the reference is the target, with nothing beside it.

    Attributes:
        instruction: Text of the prompt, with {text}: the question.
    """

    instruction = "{text}"

    def prompt(self, example: Example) -> str:
        return self.instruction.format(text=example.question)

    def target(self, example: Example) -> str:
        return example.answer

    def candidates(self, example: Example) -> Sequence[str] | None:
        return None


def make_task(config: RootConfig) -> Task:
    """Make the task that a configuration names, for its prompt.

    Raises:
        ConfigError: If its class cannot be imported or made, or lacks a part of `Task`.
    """
    entry = config.task
    try:
        task = hydra.utils.instantiate(dict(entry), _partial_=True, _convert_="all")(prompt=config.prompt)
    except (InstantiationException, TypeError) as error:
        what = " ".join(str(error.__cause__ or error).split())
        problem = Problem(what, "a class whose module is on PYTHONPATH" * isinstance(error, InstantiationException))
        raise ConfigError(f"The task {entry.get('_target_')} cannot be made:", [problem]) from error
    if not isinstance(task, Task):
        parts = ("read", "prompt", "target", "candidates", "parse")
        missing = [Problem(f"it has no {name}") for name in parts if not hasattr(task, name)]
        raise ConfigError(f"{entry['_target_']} is not a task:", missing, "cyberlm/tasks/task.py shows its parts.")
    return task

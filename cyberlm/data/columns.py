"""From a row of a file to an example: which column is which field, and how answers are written (`data.columns`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cyberlm.data.formats import ROW_SHAPE, RepeatedKeys, key_names
from cyberlm.runtime.validation import describe_type, short_repr
from cyberlm.tasks.task import LETTERS, Example, Task

ANSWER_IS = "answer_is"
"""Field that says how answers are written; a task gets it where it is set."""


@dataclass(frozen=True)
class Columns:
    """Columns of a file by the fields that a task reads.

    Attributes:
        of_field: A column's name, its 1-based number, or a list of columns, whose cells become a list. Empty: every
            column is a field of its own name.
        answer_is: The way in which answers are written; null for the task's own.
    """

    of_field: Mapping[str, Any] = field(default_factory=dict)
    answer_is: str | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Columns":
        given = {name: column for name, column in columns.items() if column is not None}
        return cls({name: column for name, column in given.items() if name != ANSWER_IS}, given.get(ANSWER_IS))

    @property
    def names(self) -> list[str | int]:
        """The columns that are read."""
        lists = (column if isinstance(column, list) else [column] for column in self.of_field.values())
        return [name for names in lists for name in names]

    @property
    def header(self) -> bool:
        """False where columns are named by number: the table has no header."""
        return not any(isinstance(name, int) for name in self.names)

    def fields(self, row: object) -> dict[str, Any]:
        """The fields of a row.

        Raises:
            ValueError: The row is no object, or lacks a column.
        """
        if not isinstance(row, dict):
            raise ValueError(f"it is {describe_type(row)}; allowed: {ROW_SHAPE}")
        missing = [short_repr(str(name)) for name in self.names if name not in row]
        if missing:
            raise ValueError(f"there is no column {', '.join(missing)}, which data.columns names")
        named = {
            name: [row[item] for item in column] if isinstance(column, list) else row[column]
            for name, column in self.of_field.items()
        }
        return (named or row) | ({ANSWER_IS: self.answer_is} if self.answer_is else {})


def make_example(row: object, number: int, columns: Columns, task: Task, name: str) -> Example:
    """The example of a normalised row; its id is the set's name, and the row's own id (`data.columns.id`) or number."""
    try:
        fields = columns.fields(row)
        own_id = fields.pop("id") if "id" in columns.of_field else number
        if not isinstance(own_id, str | int | float) or own_id == "":
            raise ValueError(f"id is {describe_type(own_id)}; allowed: a text or a number")
        if isinstance(own_id, float):
            own_id = str(own_id).removesuffix(".0")  # a JSON file's 17 is read as 17.0
        example = task.read(fields, f"{name}:{own_id}")
        _check_candidates(example, task)
        return example
    except KeyError as error:  # of a user's own task
        raise ValueError(f"there is no field {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def normalised(value: object, *, keeps_white_space: bool = False) -> object:
    """The same value with every run of white space (no-break spaces and line breaks too) turned into one space.

    Args:
        keeps_white_space: Only check that it could be read.
    """
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, RepeatedKeys):
        raise ValueError(f"an object gives {key_names(value)} more than once")
    if isinstance(value, str):
        return value if keeps_white_space else " ".join(value.split())
    if isinstance(value, list):
        return [normalised(item, keeps_white_space=keeps_white_space) for item in value]
    if isinstance(value, dict):
        return {key: normalised(item, keeps_white_space=keeps_white_space) for key, item in value.items()}
    return value


def _check_candidates(example: Example, task: Task) -> None:
    """Refuses an example that cannot be scored: reports name candidates by letter, and one of them is right."""
    candidates = task.candidates(example)
    if candidates is None:
        return
    most = getattr(task, "most_candidates", len(LETTERS))
    if not 2 <= len(candidates) <= most:
        raise ValueError(f"the task gives {len(candidates)} candidates; allowed: 2 to {most}")
    if not 0 <= example.gold < len(candidates):
        raise ValueError(f"the right one of {len(candidates)} candidates is number {example.gold}, counted from 0")

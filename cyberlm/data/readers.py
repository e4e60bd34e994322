"""Reads a file of rows and makes an example of each. The shapes of multiple choice are in docs/data.md."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyberlm.config.schema import OnBadRow
from cyberlm.data.columns import Columns, make_example, normalised
from cyberlm.data.formats import ROW_SHAPE, TABLES, open_rows
from cyberlm.data.proposal import proposal
from cyberlm.data.text_files import unreadable
from cyberlm.runtime.errors import DataError, Problem
from cyberlm.tasks.task import Example, Task

MAX_ROWS = 10**6
MAX_SHOWN = 3
"""Bad rows that are listed of a file without a good one."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file, with where they came from.

    Attributes:
        name: For example `CyberMetric-2000-v1` or `sample`.
        skipped: Bad rows left out (only under `data.on_bad_row=skip`), each with its place and reason.
        whitespace_normalised: Rows whose white space was normalised.
        unread: Columns that are there and that `data.columns` does not name.
        held_out: All of it is for the test.
    """

    name: str
    source: str
    sha256: str
    questions: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    whitespace_normalised: int = 0
    unread: tuple[str, ...] = ()
    held_out: bool = False

    @property
    def notes(self) -> dict[str, int]:
        """Changes that the task made to rows, with the number of rows."""
        return dict(Counter(note for question in self.questions for note in question.notes))


def read_questions(
    path: Path,
    name: str,
    on_bad_row: OnBadRow,
    task: Task,
    columns: Mapping[str, Any] | None = None,
    reader: str | None = None,
    subset: str | None = None,
    split: str | None = None,
) -> QuestionSet:
    """Reads all examples of a question file.

    Args:
        name: Name of the set, with which an example's id begins.
        on_bad_row: Whether bad rows are an error or are left out (`QuestionSet.skipped` lists them).
        reader: Format; by the ending of the file's name unless given.
        subset, split: Of a folder that the datasets library reads, where it holds several.

    Raises:
        DataError: The file cannot be read, has another shape, holds bad rows (all are listed), or no good one.
    """
    opened, mapping = open_rows(path, reader, subset, split), Columns.of(columns or {})
    if not mapping.header and not opened.is_table:
        raise unreadable(path, "data.columns gives numbers", f"numbers in {' and '.join(TABLES)} only, else names")
    questions: dict[str, Example] = {}
    bad, changed, unread = [], 0, dict[str, None]()
    try:
        for row in opened.rows(mapping.header):
            if row.number > MAX_ROWS:
                raise unreadable(path, f"it has more than {MAX_ROWS:,} rows", f"{MAX_ROWS:,} rows at most")
            try:
                fields = normalised(row.fields, keeps_white_space=getattr(task, "keeps_white_space", False))
                example = make_example(fields, row.number, mapping, task, name)
                if example.id in questions:
                    raise ValueError(f"another row has the id {example.id.removeprefix(f'{name}:')!r}")
            except ValueError as error:
                bad.append(f"{row.place}: {error}")
                continue
            questions[example.id] = example
            changed += fields != row.fields
            assert isinstance(fields, dict)
            unread.update(dict.fromkeys(map(str, fields)))
    except RecursionError as error:
        raise unreadable(path, "it nests lists or objects too deeply", ROW_SHAPE) from error
    if bad and (on_bad_row is OnBadRow.error or not questions):
        hint = "Put them right, or leave them out (they are counted) with data.on_bad_row=skip."
        raise _bad_rows(path, len(questions), bad, hint if questions else proposal(opened, task))
    if not questions:
        raise unreadable(path, "it holds no questions", "one row or more")
    return QuestionSet(
        name=name,
        source=str(path),
        sha256=opened.sha256,
        questions=tuple(questions.values()),
        skipped=tuple(bad),
        whitespace_normalised=changed,
        unread=tuple(name for name in unread if name not in set(map(str, mapping.names))) if mapping.of_field else (),
    )


def _bad_rows(path: Path, good: int, bad: list[str], hint: str) -> DataError:
    reasons = {row.partition(": ")[2] for row in bad}
    listed = bad if good or len(bad) <= MAX_SHOWN else [*bad[:MAX_SHOWN], f"and {len(bad) - MAX_SHOWN} more rows"]
    if len(bad) > 1 and not good and len(reasons) == 1:
        listed = [f"every row: {reasons.pop()}"]
    return DataError(f"{path}: {len(bad)} of {good + len(bad)} rows are bad:", map(Problem, listed), hint)

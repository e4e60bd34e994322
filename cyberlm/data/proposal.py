"""Proposes the overrides of `data.columns` that read a file of which no row could be read.

Mappings that names and values of the columns suggest are tried on its rows: what is proposed has read them.
"""

import contextlib
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cyberlm.config.schema import AnswerIs
from cyberlm.data.columns import ANSWER_IS, Columns, make_example, normalised
from cyberlm.data.formats import QuestionFile
from cyberlm.runtime.signals import quote_override
from cyberlm.runtime.validation import short_repr
from cyberlm.tasks.multiple_answer import MultipleAnswer
from cyberlm.tasks.multiple_choice import MultipleChoice
from cyberlm.tasks.task import Task

Fields = dict[Any, Any]
TRIED_ROWS = 40
MAX_TRIED = 4
"""Columns that are tried as the question, and as the answer."""
MAX_SHOWN = 30
QUESTION_WORDS = (("question",), ("query", "stem", "problem", "description", "sentence", "text", "input"))
ANSWER_WORDS = (("answer", "solution", "correct", "gold"), ("gt", "label", "target", "key", "class", "output"))
TOPIC_WORDS = ("topic", "domain", "category", "subject")
OF_AN_OPTION = re.compile(r"(.*?)[ _.-]?([a-h]|[0-8])", re.IGNORECASE)
"""Name of a column that holds one option: `Option A`, `choice_1`, `b`."""
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_][\w .-]*", re.IGNORECASE)
"""Names that Hydra reads as they are, in a list too."""


@dataclass(frozen=True)
class Trial:
    """A mapping with the number of rows, of `rows`, that it reads for a task."""

    task: Task
    columns: Columns
    read: int
    rows: int


def proposal(opened: QuestionFile, task: Task) -> str:
    """The columns and the first row of a file, and the overrides that would read it, where some do.

    Where several answers are right to a question, these name the task of that.
    """
    views = [_rows(opened, header) for header in ((True, False) if opened.is_table else (True,))]
    if not views[0]:
        return ""
    tasks = [task, *([MultipleAnswer(task.config)] if isinstance(task, MultipleChoice) else [])]
    trials = [trial for other in tasks for rows in views if (trial := _best(rows, other)) is not None]
    if not trials:
        typed = "data.columns.FIELD=COLUMN"
        if isinstance(task, MultipleChoice):
            typed = "data.columns.question=COLUMN 'data.columns.options=[COLUMN,COLUMN]' data.columns.answer=COLUMN"
        advice = "Name the columns that hold what the task reads, or another task (docs/data.md):"
        return f"{_first_row(views[0])}\n{advice}\n    {typed}"
    trial = max(trials, key=lambda trial: trial.read / trial.rows)
    rows = views[0] if trial.columns.header else views[1]
    bad = trial.rows - trial.read
    lines = [_first_row(rows), f"These overrides read {trial.read:,} of its {trial.rows:,} rows:"]
    overrides = [*_overrides(trial.columns), *(["data.on_bad_row=skip"] if bad else [])]
    overrides[:0] = [] if trial.task is task else ["task=multiple_answer"]
    lines.append("    " + " ".join(map(shlex.quote, overrides)))
    other = {"index0": "index1", "index1": "index0"}.get(str(trial.columns.answer_is))
    if other and _trial(rows, replace(trial.columns, answer_is=other), trial.task).read == trial.read:
        lines.append(f"All answers fit data.columns.{ANSWER_IS}={other} as well: look which one is right.")
    return "\n".join(lines)


def _rows(opened: QuestionFile, header: bool) -> list[Fields]:
    rows: list[object] = []
    for row in opened.rows(header):
        with contextlib.suppress(ValueError):
            rows.append(normalised(row.fields))
    return [fields for fields in rows if isinstance(fields, dict)]


def _trial(rows: Sequence[Fields], columns: Columns, task: Task) -> Trial:
    read = 0
    for number, row in enumerate(rows, start=1):
        with contextlib.suppress(ValueError):
            make_example(row, number, columns, task, "")
            read += 1
    return Trial(task, columns, read, len(rows))


def _best(rows: Sequence[Fields], task: Task) -> Trial | None:
    """The mapping that reads most rows; of equals the one that names suggest first."""
    if not rows:
        return None
    few = rows[:TRIED_ROWS]
    best: Trial | None = None
    for columns in _mappings(few, task):
        trial = _trial(few, columns, task)
        if trial.read > (best.read if best else 0):
            best = trial
            if trial.read == len(few):
                break
    return best and _trial(rows, _with_topic(best.columns, rows[0], task), task)


def _mappings(rows: Sequence[Fields], task: Task) -> Iterator[Columns]:
    names = list(rows[0])
    for name in names:
        if isinstance(rows[0][name], list) and any(isinstance(item, dict) for item in rows[0][name]):
            yield from (Columns.of({shape: name}) for shape in ("messages", "conversations"))
    texts = [name for name in names if all(isinstance(row.get(name), str) and row[name] for row in rows)]
    texts.sort(key=lambda name: -sum(len(row[name]) for row in rows))
    for question in _likely(texts, QUESTION_WORDS)[:MAX_TRIED]:
        rest = [name for name in names if name != question]
        for answer in _likely(rest[::-1], ANSWER_WORDS)[:MAX_TRIED]:
            found = list(_options([name for name in rest if name != answer], rows[0]))
            for options in found if isinstance(task, MultipleChoice | MultipleAnswer) else reversed(found):
                fields = {"question": question, "options": options, "answer": answer}
                for answer_is in (None, *AnswerIs) if options else (None,):
                    yield Columns.of(fields | {ANSWER_IS: answer_is and answer_is.name})


def _likely(names: Sequence[Any], words: Sequence[Sequence[str]]) -> list[Any]:
    """The names, those with the first words in them first."""

    def place(name: Any) -> int:
        return next((k for k, group in enumerate(words) if any(word in str(name).lower() for word in group)), 9)

    return sorted(names, key=place)


def _options(names: Sequence[Any], row: Fields) -> Iterator[Any]:
    """Columns that may hold the options; none for a task without."""
    yield from (name for name in names if isinstance(row[name], list | dict) and len(row[name]) > 1)
    if isinstance(names[0] if names else "", int):
        yield list(names)
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name in names:
        if found := OF_AN_OPTION.fullmatch(str(name)):
            groups[found[1].lower()][found[2].lower()] = name
    yield from ([group[key] for key in sorted(group)] for group in groups.values() if len(group) > 1)
    yield None


def _with_topic(columns: Columns, row: Fields, task: Task) -> Columns:
    topics = [name for name in row if str(name).lower() in TOPIC_WORDS and isinstance(row[name], str)]
    if not topics or topics[0] in columns.names:
        return columns
    richer = replace(columns, of_field={**columns.of_field, "topic": topics[0]})
    return richer if _trial([row], richer, task).read else columns


def _overrides(columns: Columns) -> Iterator[str]:
    for field, column in columns.of_field.items():
        value = f"[{','.join(map(_typed, column))}]" if isinstance(column, list) else _typed(column)
        yield f"data.columns.{field}={value}"
    if columns.answer_is:
        yield f"data.columns.{ANSWER_IS}={columns.answer_is}"


def _typed(name: str | int) -> str:
    return str(name) if isinstance(name, int) or PLAIN.fullmatch(name) else quote_override(name)


def _first_row(rows: Sequence[Fields]) -> str:
    items = list(rows[0].items())
    by_number = isinstance(items[0][0], int) if items else False
    title = "Its columns by number, with the first row:" if by_number else "Its columns, with the first row:"
    texts = [str(item).removesuffix(".0") if isinstance(item, float) else str(item) for _, item in items[:MAX_SHOWN]]
    lines = [f"    {str(name)[:60]}: {short_repr(text)}" for (name, _), text in zip(items, texts, strict=False)]
    more = [f"    and {len(items) - MAX_SHOWN} more"] if len(items) > MAX_SHOWN else []
    return "\n".join([title, *lines, *more])

"""Rules of the questions: of their source, and of the prompt."""

import string
from collections.abc import Iterator
from typing import Any

from cyberlm.config.schema import AnswerIs, DataConfig, PromptConfig, PromptStyle, Protocol
from cyberlm.runtime.errors import Problem

MULTIPLE_CHOICE = "cyberlm.tasks.multiple_choice.MultipleChoice"


def data_problems(data: DataConfig) -> Iterator[Problem]:
    """Every rule of `data` that is broken."""
    yield from _column_problems(data.columns)
    if data.address is None:
        yield from _belongs_to(data, "cybermetric", ("size", "test_size", "dir"))
        if data.path is None and not data.mix:
            what = f"data={data.name} without data.path"
            yield Problem(what, "your question file", f"data={data.name} data.path=questions.jsonl")
    else:
        yield from _pinned_problems(data, data.address)
    if data.test_split is not None and data.test_split == data.split and data.test_path is None:
        yield Problem(f"data.test_split={data.test_split} is the training split itself", "another split")
    held_out = 0 if data.test_size or data.test_path or data.test_split else data.test_fraction
    if data.validation_fraction + held_out >= 1:
        what = f"data.validation_fraction={data.validation_fraction:g} and data.test_fraction={held_out:g}"
        yield Problem(f"{what} leave nothing to train on", "a sum below 1")


def _column_problems(columns: dict[str, Any]) -> Iterator[Problem]:
    answer_is = columns.get("answer_is")
    if answer_is is not None and answer_is not in list(AnswerIs):
        yield Problem(f"data.columns.answer_is={answer_is}", ", ".join(AnswerIs))
    kinds = set()
    for name, column in columns.items():
        for item in column if isinstance(column, list) else [column]:
            if isinstance(item, bool | float | dict) or item == 0:
                allowed = "the name of a column, or its number from 1 on where the table has no header"
                yield Problem(f"data.columns.{name}={item}", allowed)
            kinds |= {type(item)} if name != "answer_is" and item is not None else set()
    if kinds == {int, str}:
        yield Problem(
            "data.columns has names and numbers", "numbers from 1 on for a table without a header, else names"
        )


def _pinned_problems(data: DataConfig, address: str) -> Iterator[Problem]:
    """Rules of a source whose files are pinned."""
    yield from _belongs_to(data, "file", ("path", "test_path", "test_split"))
    downloaded = address.startswith(("http://", "https://"))
    if not downloaded:
        yield from _belongs_to(data, "cybermetric", ("dir",))
    if not data.files:
        yield from _belongs_to(data, "cybermetric", ("size", "test_size"))
    sizes = ", ".join(map(str, data.files))
    for name, required in (("size", True), ("test_size", False)) if data.files else ():
        value = getattr(data, name)
        if value not in data.files and (required or value is not None):
            free = [size for size in data.files if name == "size" or size != data.size] or list(data.files)
            fix = f"data.{name}={2000 if 2000 in free else free[0]}"
            yield Problem(f"data.{name}={value}: {data.name} has no such file", sizes, fix)
    if data.test_size is not None and data.test_size == data.size:
        what = f"data.test_size={data.test_size} is the training file itself"
        yield Problem(what, "another size, or no data.test_size")
    named = _placeholders(address)
    if named is None:
        yield Problem(f"data.address={address}", "names in pairs of braces, such as {commit}")
    for entry in data.files.values() or [{}]:
        pinned = {"commit": data.commit, "sha256": data.sha256, **entry}
        for name in sorted((named or set()) | ({"sha256"} if downloaded else set())):
            if pinned.get(name) is None:
                yield Problem(f"data.address={address} without data.{name}", fix=f"data.{name}=...")


def _belongs_to(data: DataConfig, owner: str, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        value = getattr(data, name)
        if value is not None:
            yield Problem(
                f"data.{name}={value} with data={data.name}",
                f"data.{name} only with data={owner}, else data.{name}=null",
                f"data={owner} data.{name}={value}",
            )


def prompt_problems(prompt: PromptConfig, task: str) -> Iterator[Problem]:
    """Rules of the prompt for the task of this `_target_`.

    Other tasks than multiple choice render their questions themselves, without the templates; whether an answer is a
    letter is known of cyberlm's own alone.
    """
    wanted = {"question", "options"} if prompt.show_options else {"question"}
    for name, allowed in (("question", wanted), ("option", {"letter", "text"})):
        template = getattr(prompt, name)
        if task == MULTIPLE_CHOICE and _placeholders(template) != allowed:
            wants = " and ".join(f"{{{item}}}" for item in sorted(allowed))
            yield Problem(f"prompt.{name}={template!r}", f"a template with {wants} and no other placeholder")
    if prompt.protocol is Protocol.letter and not prompt.show_options:
        what = "prompt.protocol=letter prompt.show_options=false: a letter means nothing without the options"
        yield Problem(what, "prompt.show_options=true, or prompt=text", "prompt=text")
    if prompt.style is not PromptStyle.chat and not prompt.plain_cue.strip():
        yield Problem("prompt.plain_cue is empty", "the last words of a plain prompt", "'prompt.plain_cue=Answer:'")
    if prompt.protocol is Protocol.letter and task.startswith("cyberlm.") and task != MULTIPLE_CHOICE:
        yield Problem("prompt.protocol=letter: an answer of this task is not one letter", "text", "prompt=text")


def _placeholders(template: str) -> set[str] | None:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError:
        return None

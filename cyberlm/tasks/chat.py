"""Chat: conversations of any number of turns. All that the assistant says is trained on, and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

from cyberlm.config.schema import PromptConfig
from cyberlm.tasks.task import Example, FreeAnswer

SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Roles by ShareGPT's names for them."""
SHAPES = "messages, conversations, or instruction and output"
ROLES = ("system", "user", "assistant")


class Chat(FreeAnswer):
    """The last message of the assistant is the answer; the messages before it are the prompt.

    A conversation is a row with one of the fields
    - `messages`: a list of {"role", "content"},
    - `conversations`: ShareGPT's list of {"from", "value"},
    - `instruction`, `output`, and `input` if any: Alpaca's one turn.
    """

    keeps_white_space = True

    def __init__(self, prompt: PromptConfig) -> None: ...

    def read(self, row: Mapping[str, Any], example_id: str) -> Example:
        """Make an example of a conversation; messages behind the last answer are left out, and noted."""
        messages = list(_messages(row))
        last = max((k for k, (role, _) in enumerate(messages) if role == "assistant"), default=0)
        roles = [role for role, _ in messages[: last + 1]]
        taking_turns = ["user", "assistant"] * (len(roles) // 2)
        if not taking_turns or roles not in (taking_turns, ["system", *taking_turns]):
            found = ", ".join(role for role, _ in messages)
            raise ValueError(f"its roles are {found or 'none'}; allowed: user, assistant and so on, or system first")
        notes = ("messages behind the last answer left out",) if last + 1 < len(messages) else ()
        asked = "\n\n".join(text for role, text in messages[:last] if role == "user")
        topic, group = str(row.get("topic") or ""), str(row.get("group") or "")
        return Example(example_id, asked, (messages[last][1],), 0, topic, notes, group, turns=tuple(messages[:last]))

    def prompt(self, example: Example) -> str:
        """The last message of the user."""
        return example.turns[-1][1] if example.turns else example.question

    def parse(self, completion: str, example: Example) -> int | str | None:
        answer = completion.strip()
        return 0 if answer == example.answer else answer or None


def _messages(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Role and text of each message of a row, the text without white space around it: templates take that away."""
    shapes = [name for name in ("messages", "conversations", "instruction") if row.get(name) is not None]
    if len(shapes) != 1:
        raise ValueError(f"it has the fields {', '.join(shapes) or ', '.join(map(str, row))}; allowed: one of {SHAPES}")
    if shapes == ["instruction"]:
        yield "user", "\n\n".join(filter(None, (_text(row, "instruction"), _text(row, "input", optional=True))))
        yield "assistant", _text(row, "output")
        return
    role_key, text_key = ("role", "content") if shapes == ["messages"] else ("from", "value")
    messages = row[shapes[0]]
    if not isinstance(messages, list) or not all(isinstance(item, Mapping) for item in messages):
        raise ValueError(f'{shapes[0]} is no list of {{"{role_key}": ..., "{text_key}": ...}}')
    for number, item in enumerate(messages, start=1):
        role = item.get(role_key)
        known = SHAREGPT.get(role) if role_key == "from" else role if role in ROLES else None
        if known is None:
            names = ROLES if role_key == "role" else SHAREGPT
            raise ValueError(f"{role_key} of message {number} is {role!r}; allowed: {', '.join(names)}")
        yield known, _text(item, text_key, f" of message {number}")


def _text(row: Mapping[str, Any], name: str, place: str = "", *, optional: bool = False) -> str:
    text = row.get(name)
    if optional and text is None:
        return ""
    if not isinstance(text, str) or not (text.strip() or optional):
        raise ValueError(f"{name}{place} is {text!r}; allowed: a text")
    return text.strip()

"""Help of a command, made from its schema and the files of its groups: `--help`, and docs/configuration.md."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING

from cyberlm.config.bounds import nested_schema
from cyberlm.config.commands import SCHEMAS
from cyberlm.config.compose import conf_folder, group_files

FLAGS = {
    "-m": "a sweep: KEY=VALUE,VALUE,... gives a job for each combination",
    "--config-dir=FOLDER": "adds your own files of these groups: FOLDER/GROUP/OPTION.yaml",
    "--cfg job": "prints the whole configuration, and runs nothing",
    "--hydra-help": "help of Hydra, which reads this line",
}
GROUP_FLAGS = ("-m", "--config-dir=FOLDER")
"""Flags of commands that have groups."""
REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """One setting, as text.

    Attributes:
        kind: Its type, or the names that it may be.
        allowed: Its bounds; empty for none.
        default: As it is typed; `required` where every option of the group sets it.
    """

    name: str
    kind: str
    allowed: str
    default: str
    meaning: str

    @property
    def bounded_kind(self) -> str:
        return f"{self.kind}: {self.allowed}" if self.allowed else self.kind


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Every setting of a dataclass and of those that it holds, in their order."""
    kinds, meanings = get_type_hints(schema), _meanings(schema)
    for item in fields(schema):
        name, kind = f"{prefix}{item.name}", kinds[item.name]
        nested = nested_schema(kind)
        if nested is not None:
            yield from keys_of(nested, f"{name}.")
        else:
            default = typed_value(getattr(schema(), item.name))
            yield Key(name, _kind(kind), item.metadata.get("allowed", ""), default, meanings.get(item.name, ""))


def _meanings(schema: type) -> dict[str, str]:
    """The string below each field of a dataclass, inherited ones too."""
    found = {}
    for part in schema.__mro__[:-1]:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(node, ast.ClassDef)
        for item, below in pairwise(node.body):
            if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(item.target, ast.Name):
                found[item.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _kind(kind: Any) -> str:
    if kind is Any:
        return "any"
    if get_origin(kind) is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(kind.__members__)
    if NoneType in get_args(kind):
        return " or ".join("null" if part is NoneType else _kind(part) for part in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def typed_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value == MISSING:
        return REQUIRED
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed_value(item)}" for key, item in value.items()) + "}"
    return value.name if isinstance(value, Enum) else str(value) or "empty"


def groups_of(command: str) -> dict[str, list[str]]:
    """The groups of a command in their order, each with the options that are chosen by default."""
    groups = {}
    for entry in yaml.safe_load((conf_folder() / f"{command}.yaml").read_text("utf-8"))["defaults"]:
        for name, option in entry.items() if isinstance(entry, dict) else ():
            if not name.startswith("override "):
                groups[name] = [item for item in (option if isinstance(option, list) else [option]) if item]
    return groups


def description(file: Path) -> str:
    """The comment at the head of a file: what it is, on the first line."""
    lines = (line for line in file.read_text("utf-8").splitlines() if not line.startswith("# @package"))
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(head)


def help_text(command: str) -> str:
    """Lines to type, then a line for each option of each group, and for each key."""
    groups = {group: chosen for group, chosen in groups_of(command).items() if group != "hydra"}
    parts = [description(conf_folder() / f"{command}.yaml"), ""]
    parts += [f"{flag:<20} {what}" for flag, what in FLAGS.items() if groups or flag not in GROUP_FLAGS]
    if groups:
        parts.append("\nGROUP=OPTION (* by default):\n")
    for group, chosen in groups.items():
        parts.append(group)
        for option, file in group_files(group).items():
            mark = "*" if option in chosen else " "
            parts.append(f"  {mark} {option:<22} {description(file).partition(chr(10))[0]}")
    parts.append("\nKEY=VALUE (default):\n")
    for key in keys_of(SCHEMAS[command]):
        default = "from the file of its group" if key.default == REQUIRED and "." in key.name else key.default
        parts.append(f"{key.name} ({default}): {key.meaning} [{key.bounded_kind}]")
    return "\n".join(parts)

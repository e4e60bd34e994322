"""Writes docs/configuration.md from schema.py and commands.py of cyberlm/config and the YAML files under conf/.

python docs/make_configuration.py           writes the page
python docs/make_configuration.py --check   exits with 1 where the page is not what would be written
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
SCHEMAS = [ROOT / "cyberlm" / "config" / name for name in ("schema.py", "commands.py")]
CONF = ROOT / "conf"
COMMANDS = {
    "train": "train.py",
    "evaluate": "evaluate.py",
    "export": "cyberlm export",
    "chat": "cyberlm chat",
    "serve": "cyberlm serve",
}
"""Each command, and how it is called on the page."""

ROOT_CLASSES = {
    "RootConfig": "train.py and evaluate.py",
    "TrainConfig": "train.py only",
    "EvaluateConfig": "evaluate.py only",
    "ExportConfig": "cyberlm export",
    "OpenConfig": "cyberlm chat and cyberlm serve",
    "ChatConfig": "cyberlm chat only",
    "ServeConfig": "cyberlm serve only",
}
"""Heading of each dataclass that stands at the top of a configuration."""

INTRODUCTION = """\
# Configuration

Written by `python docs/make_configuration.py` from `schema.py` and `commands.py` of `cyberlm/config/` and from `conf/`;
change those, not this page.

`GROUP=OPTION` chooses one of the files under `conf/GROUP/`; `KEY=VALUE` sets one value, whatever the file says:

```
python train.py model=llama32_1b_instruct method=qlora method.lora.rank=32
python train.py --cfg job                  # prints the whole configuration, and runs nothing
python evaluate.py --cfg job
python -m cyberlm export run=outputs/RUN to=merged --cfg job
```

A key that does not exist and a value of the wrong type are errors that name the key, and the nearest one that exists.
Rules across keys are in `cyberlm/config/checks.py`; all that are broken are shown at once, before anything is loaded.
"""

GROUPS = """\
## Groups

A group file that has no comment line is described by the values it sets.
"""

KEYS = """\
## Keys

*Default* is that of the schema. The file of the chosen option may set another: `--cfg job` shows what holds.
*required* means that there is none; every option of the group sets it.
"""


class Field(NamedTuple):
    name: str
    annotation: ast.expr
    default: str
    meaning: str


class Schema(NamedTuple):
    """What schema.py says: members of each enum, fields and docstring of each dataclass."""

    enums: dict[str, list[str]]
    classes: dict[str, list[Field]]
    meanings: dict[str, str]


# ------------------------------------------------------------------------------------------------------ schema


def read_schema(source: str) -> Schema:
    schema = Schema({}, {}, {})
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        if any(isinstance(base, ast.Name) and base.id == "Enum" for base in node.bases):
            values = (item.value for item in node.body if isinstance(item, ast.Assign))
            schema.enums[node.name] = [str(value.value) for value in values if isinstance(value, ast.Constant)]
        elif any(isinstance(item, ast.Name) and item.id == "dataclass" for item in node.decorator_list):
            schema.classes[node.name] = list(_fields(node, source))
            schema.meanings[node.name] = ast.get_docstring(node) or ""
    return schema


def _fields(node: ast.ClassDef, source: str) -> Iterator[Field]:
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield Field(item.target.id, item.annotation, _default(item.value, source), _string(after))


def _string(node: ast.stmt | None) -> str:
    """The text of a string that stands alone, as below a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _default(node: ast.expr | None, source: str) -> str:
    """A default as it is typed on the command line."""
    if node is None or (isinstance(node, ast.Name) and node.id == "MISSING"):
        return "*required*"
    if isinstance(node, ast.Attribute):  # of an enum
        return f"`{node.attr}`"
    if isinstance(node, ast.Call):  # field(default_factory=dict)
        factory = next(item.value for item in node.keywords if item.arg == "default_factory")
        return {"dict": "`{}`", "list": "`[]`"}.get(ast.unparse(factory), "as below")  # a dataclass has a table
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return f"`{node.value}`" if node.value else "empty"
        if node.value is None or isinstance(node.value, bool):
            return f"`{_typed(node.value)}`"
    return f"`{ast.get_source_segment(source, node)}`"  # a number as it is written there


def _type(annotation: ast.expr, schema: Schema) -> str:
    if isinstance(annotation, ast.BinOp):
        return f"{_type(annotation.left, schema)} or {_type(annotation.right, schema)}"
    if isinstance(annotation, ast.Constant):
        return "null"
    name = ast.unparse(annotation)
    if name in schema.enums:
        return ", ".join(f"`{member}`" for member in schema.enums[name])
    if name in schema.classes:
        return "keys"
    return {"Any": "any", "dict[str, Any]": "entries with `_target_`"}.get(name, name)


def _nested(annotation: ast.expr, schema: Schema) -> str | None:
    """Name of the dataclass that a field holds, if it holds one."""
    names = (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))
    return next((name for name in names if name in schema.classes), None)


# ------------------------------------------------------------------------------------------------------- tables


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _key_sections(schema: Schema) -> Iterator[str]:
    """The tables of the top dataclasses, each followed by those of the groups it holds, unless they stand above."""
    told: set[str] = set()
    for name, heading in ROOT_CLASSES.items():
        if name in schema.classes:
            yield from _key_section(name, heading, "", schema, told)


def _key_section(name: str, heading: str, prefix: str, schema: Schema, told: set[str]) -> Iterator[str]:
    told.add(f"{prefix}{name}")
    rows, inner = [], []
    for field in schema.classes[name]:
        key = f"{prefix}{field.name}"
        held = _nested(field.annotation, schema)
        if held and f"{key}.{held}" not in told:
            inner.append((held, key))
        meaning = field.meaning or (f"[below](#{key.replace('.', '')})" if held else "")
        rows.append((f"`{key}`", _type(field.annotation, schema), field.default, meaning))
    title = f"### {heading}\n"
    if schema.meanings[name]:
        title += f"\n{schema.meanings[name]}\n"
    yield f"{title}\n{_table(('Key', 'Type', 'Default', 'Meaning'), rows)}"
    for held, key in inner:
        yield from _key_section(held, key, f"{key}.", schema, told)


# ------------------------------------------------------------------------------------------------- config groups


def _chosen(command: str) -> dict[str, list[str]]:
    """The groups of a command in the order of its defaults list, with the options chosen by default."""
    groups: dict[str, list[str]] = {}
    for entry in yaml.safe_load((CONF / f"{command}.yaml").read_text("utf-8"))["defaults"]:
        if isinstance(entry, dict):
            for name, option in entry.items():
                options = option if isinstance(option, list) else [option]
                if not name.startswith("override "):
                    groups[name.removeprefix("optional ")] = [item for item in options if item is not None]
    return groups


def _group_table() -> str:
    chosen = {command: _chosen(command) for command in COMMANDS}
    ordered = list(dict.fromkeys(name for groups in chosen.values() for name in groups))
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    if folders != set(ordered):
        raise SystemExit(f"conf/ and the defaults lists differ in {', '.join(sorted(folders ^ set(ordered)))}")
    rows = []
    for group in ordered:
        for file in sorted((CONF / group).glob("*.yaml")):
            defaults = [shown for command, shown in COMMANDS.items() if file.stem in chosen[command].get(group, [])]
            rows.append((f"`{group}`", f"`{file.stem}`", _description(file), ", ".join(defaults)))
    table = _table(("Group", "Option", "What it is", "Default of"), rows)
    for command, shown in COMMANDS.items():
        taken = ", ".join(f"`{group}`" for group in chosen[command] if group != "hydra")
        table += f"\n{shown} takes {taken}.\n" if taken else ""
    return table


def _description(file: Path) -> str:
    """The first comment line of a file, or the values it sets where it has none."""
    text = file.read_text("utf-8")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        comment = line.removeprefix("#").strip()
        if comment and not comment.startswith("@package"):
            return comment
    values = [f"`{key}={value}`" for key, value in _leaves(yaml.safe_load(text) or {}) if key != "name"]
    return "Sets " + ", ".join(values) if values else "No values of its own"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values as they would be typed; web addresses and defaults lists are left out."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults" and not str(value).startswith("http"):
            yield f"{prefix}{key}", _typed(value)


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def page() -> str:
    """The whole page."""
    schema = read_schema("\n".join(file.read_text("utf-8") for file in SCHEMAS))
    return "\n".join([INTRODUCTION, GROUPS, _group_table(), KEYS, *_key_sections(schema)])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted = page()
    if not arguments:
        PAGE.write_text(wanted, "utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text("utf-8") != wanted:
        print("docs/configuration.md is stale. Type: python docs/make_configuration.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

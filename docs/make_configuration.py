"""Writes docs/configuration.md from the schemas in cyberlm/config/ and the YAML files under conf/.

python docs/make_configuration.py           writes the page
python docs/make_configuration.py --check   exits with 1 where the page is not what would be written
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from cyberlm.config.commands import SCHEMAS
from cyberlm.config.compose import group_files
from cyberlm.config.help import Key, description, groups_of, keys_of

PAGE = Path(__file__).resolve().parent / "configuration.md"
INTRODUCTION = """\
# Configuration

Written by `python docs/make_configuration.py` from the schemas in `cyberlm/config/` and from `conf/`; change those, not
this page. `python train.py --help` prints the same, with the options of your own folder.

`GROUP=OPTION` chooses one of the files under `conf/GROUP/`; `KEY=VALUE` sets one value, whatever the file says:

```
python train.py model=llama32_1b_instruct method=qlora method.lora.rank=32
python train.py --cfg job                  # prints the whole configuration, and runs nothing
python train.py --config-dir=my_conf method=mine    # my_conf/method/mine.yaml
```

A key that does not exist and a value of the wrong type are errors that name the key, and the nearest one that exists.
Rules across keys are in `cyberlm/config/rules.py`; all that are broken are shown at once, before anything is loaded.
"""
KEYS = """\
## Keys

*Default* is that of the schema. The file of the chosen option may set another: `--cfg job` shows what holds.
*required*: there is none; every option of the group sets it.
"""


def shown(command: str) -> str:
    return f"{command}.py" if command in ("train", "evaluate") else f"cyberlm {command}"


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def group_sections() -> Iterator[str]:
    groups = {command: groups_of(command) for command in SCHEMAS}
    rows = []
    for group in dict.fromkeys(name for chosen in groups.values() for name in chosen if name != "hydra"):
        for option, file in group_files(group).items():
            users = [shown(command) for command, chosen in groups.items() if option in chosen.get(group, [])]
            rows.append((f"`{group}`", f"`{option}`", description(file).partition("\n")[0], ", ".join(users)))
    yield "## Groups\n"
    yield table(("Group", "Option", "What it is", "Default of"), rows)
    for command in ("train", "evaluate"):
        yield f"{shown(command)} takes {', '.join(f'`{group}`' for group in groups[command] if group != 'hydra')}.\n"


def key_sections() -> Iterator[str]:
    """A table of the keys of each command that are of no group, then those of groups that were not listed yet."""
    listed: set[str] = set()
    for command, schema in SCHEMAS.items():
        sections: dict[str, list[Key]] = {"": []}
        for key in keys_of(schema):
            sections.setdefault(key.name.rpartition(".")[0], []).append(key)
        for prefix, keys in sections.items():
            if prefix not in listed:
                rows = [(f"`{key.name}`", key.bounded_kind, f"`{key.default}`", key.meaning) for key in keys]
                yield f"### {prefix or shown(command)}\n\n{table(('Key', 'Type', 'Default', 'Meaning'), rows)}"
        listed |= sections.keys() - {""}


def page() -> str:
    return "\n".join([INTRODUCTION, *group_sections(), KEYS, *key_sections()])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.is_file() or PAGE.read_text("utf-8") != page():
        print("docs/configuration.md is stale. Type: python docs/make_configuration.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

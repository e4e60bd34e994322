"""The order of docs/architecture.md: a room imports only from rooms below it; functions and modules stay short.

`python tests/test_architecture.py` prints every arrow between rooms.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyberlm"
ROOMS = ("runtime", "config", "models", "tasks", "data", "evaluation", "training", "export", "runs", "__main__")
"""From the lowest to the highest; each may import those before it."""
APART = {"models", "tasks"}
"""Rooms of one height: neither imports the other."""
MAX_ARROWS = 60
MAX_BODY_LINES = 60
MAX_MODULE_LINES = 400

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    return ".".join(["cyberlm", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


MODULE_NAMES = {module_name(path) for path in MODULES}


def imported_modules(source: str) -> Iterator[str]:
    """Modules of cyberlm that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cyberlm")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            if (node.module or "").split(".")[0] == "cyberlm":
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULE_NAMES
                yield from inner or {str(node.module)}


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def breaches(room: str, source: str) -> list[str]:
    targets = sorted({room_of(module) for module in imported_modules(source)} - {room, ""})
    return [
        f"{room} imports {target}"
        for target in targets
        if target not in ROOMS[: ROOMS.index(room)] or {room, target} == APART
    ]


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    pairs = ((room_of(module_name(p)), room_of(module)) for p in MODULES for module in imported_modules(p.read_text()))
    return {(room, target) for room, target in pairs if room != target and room and target}


def test_the_top_and_the_page_hold_the_rooms_alone() -> None:
    held = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert held - {"__init__", "conf"} == set(ROOMS)
    # in their order
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"^\| `(\w+)/?` \|", page, re.MULTILINE)
    assert [name for name in named if name in ROOMS] == list(reversed(ROOMS))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_imports_downwards_and_is_short(path: Path) -> None:
    """A docstring begins with what a reader would search for."""
    source = path.read_text("utf-8")
    assert breaches(room_of(module_name(path)), source) == []
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    assert {node.name: body_lines(node) for node in functions if body_lines(node) > MAX_BODY_LINES} == {}
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    assert re.findall(r'"""(?:What|Whether|Where|Which)\b.*', source) == []


def test_arrows_are_few_and_no_module_imports_itself_by_way_of_others() -> None:
    tuple(TopologicalSorter({module_name(path): imported_modules(path.read_text()) for path in MODULES}).static_order())
    assert len(arrows()) <= MAX_ARROWS


def test_the_check_itself() -> None:
    for room, source, found in (
        ("data", "from cyberlm.tasks.task import Question\nimport torch\nimport cyberlmx", []),
        ("data", "from cyberlm.data.splits import Split\nfrom cyberlm import __version__", []),
        ("data", "import cyberlm.runs.train", ["data imports runs"]),
        ("tasks", "def f():\n    from cyberlm.models.loading import load_base", ["tasks imports models"]),
    ):
        assert breaches(room, source) == found
    function = ast.parse(
        'def f(a,\n      b):\n    """One.\n\n    Two.\n    """\n    a()\n    return (\n        b\n    )'
    ).body[0]
    assert body_lines(function) == 4


def body_lines(function: Function) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


if __name__ == "__main__":
    for room in reversed(ROOMS):
        print(f"{room}: {', '.join(sorted(target for found, target in arrows() if found == room))}")
    print(f"{len(arrows())} arrows between {len(ROOMS)} rooms")

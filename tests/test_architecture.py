"""docs/architecture.md, held to: a part imports only from floors below its own, functions and modules stay short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyberlm"
ENTRIES = {"__main__", "recompute", "export", "chat", "serve"}
"""What is typed after `python -m`: above the floors, imported by nothing."""
FLOORS = {
    0: {
        *{"errors", "config", "records", "progress", "cache", "similarity", "shares", "prefixes", "kernels"},
        *{"redaction", "signals"},
    },
    1: {
        *{"prompts", "answers", "losses", "scoring", "metrics", "statistics", "floors", "leaks", "models", "optim"},
        *{"results", "report", "cards", "loggers", "agreement", "checkpoints"},
    },
    2: {"launch", "callbacks", "data", "module", "evaluation", "evidence", "sweeps", "streaming", "planning"},
    3: {"runs"},
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts}
MOST_BODY_LINES = 60
MOST_MODULE_LINES = 400

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]
PARTS = {Path(name).parts[0].removesuffix(".py") for name in NAMES} - {"__init__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of cyberlm, those inside functions too; a part of `` is cyberlm/__init__.py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cyberlm":
                    yield node.lineno, alias.name.partition(".")[2].split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path).split(".")
            if module[0] != "cyberlm":
                continue
            if len(module) > 1:
                yield node.lineno, module[1]
            else:
                for alias in node.names:
                    yield node.lineno, alias.name if alias.name in PARTS else ""


def absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = ("cyberlm", *path.relative_to(PACKAGE).parent.parts)
    return ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])


def breaches(path: Path, source: str) -> list[str]:
    part = part_of(path)
    found = []
    for line, target in imported_parts(ast.parse(source), path):
        if target in ("", part) or part in ENTRIES:
            continue
        if part == "__init__":
            found.append(f"line {line}: cyberlm/__init__.py imports {target}; it holds the version alone")
        elif FLOOR[part] == 0 and target != "errors":
            found.append(f"line {line}: {part} imports {target}; on floor 0 only errors may be imported")
        elif FLOOR[part] and FLOOR.get(target, 9) >= FLOOR[part]:
            found.append(f"line {line}: {part} ({FLOOR[part]}) imports {target} ({FLOOR.get(target)})")
    return found


def test_every_part_has_a_floor() -> None:
    assert set(FLOOR) == PARTS - ENTRIES, "put the part on a floor, here and in docs/architecture.md"


def test_page_tells_the_same_floors() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| (`\w+/?`(?:, `\w+/?`)*) \|", page, re.MULTILINE)
    assert {part: int(floor) for floor, cell in rows for part in re.findall(r"`(\w+)/?`", cell)} == FLOOR


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_go_down(path: Path) -> None:
    assert breaches(path, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("metrics.py", "from cyberlm.records import Question", []),
        ("metrics.py", "from cyberlm.config.schema import OptionScore", []),
        ("metrics.py", "from cyberlm import __version__", []),
        ("metrics.py", "import torch\nimport cyberlmx", []),
        ("metrics.py", "import cyberlm.prompts", ["line 1: metrics (1) imports prompts (1)"]),
        ("metrics.py", "from cyberlm import runs, errors", ["line 1: metrics (1) imports runs (3)"]),
        (
            "metrics.py",
            "def f():\n    from cyberlm.data.files import read",
            ["line 2: metrics (1) imports data (2)"],
        ),
        ("metrics.py", "from .module import Tuner", ["line 1: metrics (1) imports module (2)"]),
        ("metrics.py", "from . import module, errors", ["line 1: metrics (1) imports module (2)"]),
        ("models/bases.py", "from .tiny import tiny_model\nfrom cyberlm.models import adapters", []),
        ("models/bases.py", "from ..prompts import Prompt", ["line 1: models (1) imports prompts (1)"]),
        ("config/checks.py", "from cyberlm.errors import Problem", []),
        (
            "records.py",
            "from cyberlm.config import Dtype",
            ["line 1: records imports config; on floor 0 only errors may be imported"],
        ),
        (
            "errors.py",
            "from cyberlm.config import Dtype",
            ["line 1: errors imports config; on floor 0 only errors may be imported"],
        ),
        (
            "__init__.py",
            "from cyberlm.runs import train",
            ["line 1: cyberlm/__init__.py imports runs; it holds the version alone"],
        ),
        ("__main__.py", "from cyberlm.runs import train", []),
    ],
)
def test_the_check_itself(name: str, source: str, found: list[str]) -> None:
    assert breaches(PACKAGE / name, source) == found


def body_lines(function: Function) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_functions_and_modules_are_short(path: Path) -> None:
    source = path.read_text("utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    long = {node.name: body_lines(node) for node in functions if body_lines(node) > MOST_BODY_LINES}
    assert long == {}
    assert len(source.splitlines()) <= MOST_MODULE_LINES


def test_body_lines_leave_the_docstring_out() -> None:
    function = ast.parse(
        'def f(a,\n      b):\n    """One.\n\n    Two.\n    """\n    a()\n    return (\n        b\n    )'
    ).body[0]
    assert isinstance(function, Function)
    assert body_lines(function) == 4

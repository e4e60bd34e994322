"""The pages under docs/: the generated one is fresh, and no link leads nowhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """docs/make_configuration.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_page_is_fresh(maker, capsys):
    code = maker.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_stale_page_is_found(maker, tmp_path, monkeypatch, capsys):
    page = tmp_path / "configuration.md"
    monkeypatch.setattr(maker, "PAGE", page)
    assert maker.main(["--check"]) == 1  # missing
    page.write_text(maker.page() + "one line more\n", "utf-8")
    assert maker.main(["--check"]) == 1
    assert "python docs/make_configuration.py" in capsys.readouterr().err
    assert maker.main([]) == 0
    assert maker.main(["--check"]) == 0


SOURCE = '''
from enum import Enum

class Way(Enum):
    up = "up"
    down = "down"

@dataclass
class InnerConfig:
    """Of the inside."""

    rate: float = 2e-4
    """Steps a second | minute."""
    names: Any = "all"

@dataclass
class TrainConfig:
    inner: InnerConfig | None = None
    way: Way = Way.up
    """Where to."""
    name: str = MISSING
    off: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
'''

TABLES = """\
### Top

| Key | Type | Default | Meaning |
|---|---|---|---|
| `inner` | keys or null | `null` | [below](#inner) |
| `way` | `up`, `down` | `up` | Where to. |
| `name` | str | *required* |  |
| `off` | bool | `false` |  |
| `extra` | entries with `_target_` | `{}` |  |

### inner

Of the inside.

| Key | Type | Default | Meaning |
|---|---|---|---|
| `inner.rate` | float | `2e-4` | Steps a second \\| minute. |
| `inner.names` | any | `all` |  |
"""


def test_tables_of_a_schema(maker, monkeypatch):
    monkeypatch.setattr(maker, "ROOT_CLASSES", {"TrainConfig": "Top"})
    assert "\n".join(maker._key_sections(maker.read_schema(SOURCE))) == TABLES


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("# @package _global_\n# What it is.\n# More.\nname: x\n", "What it is."),
        (
            "name: x\n# Too late.\nflag: true\nat: {step: 1, end: null}\n",
            "Sets `flag=true`, `at.step=1`, `at.end=null`",
        ),
        ("name: x\nurl: https://example.org\n", "No values of its own"),
        ("{}\n", "No values of its own"),
    ],
)
def test_description_of_a_group_file(maker, tmp_path, text, description):
    file = tmp_path / "x.yaml"
    file.write_text(text, "utf-8")
    assert maker._description(file) == description


def relative_links(text: str) -> list[str]:
    """Targets of links and images that are neither web addresses nor places on the same page; code is left out."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)", prose, flags=re.MULTILINE)
    found = [inline or reference for inline, reference in targets]
    return [target.split("#")[0] for target in found if not re.match(r"#|[a-z]+:", target)]


def test_relative_links_are_found():
    text = (
        "[a](b.md#c) ![d](e.png 'title') [f](https://g) [h](#i) [`j`](k/l.py)\n[m]: n.md\n`[o](p)`\n```\n[q](r)\n```\n"
    )
    assert relative_links(text) == ["b.md", "e.png", "k/l.py", "n.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = [link for link in relative_links(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"

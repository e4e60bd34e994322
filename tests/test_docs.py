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
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_page_is_fresh_and_a_stale_one_is_found(maker, tmp_path, monkeypatch, capsys):
    code = maker.main(["--check"])
    assert code == 0, capsys.readouterr().err
    page = tmp_path / "configuration.md"
    monkeypatch.setattr(maker, "PAGE", page)
    assert maker.main(["--check"]) == 1  # missing
    page.write_text(maker.page() + "one line more\n", "utf-8")
    assert maker.main(["--check"]) == 1
    assert "python docs/make_configuration.py" in capsys.readouterr().err
    assert maker.main([]) == maker.main(["--check"]) == 0


def relative_links(text: str) -> list[str]:
    """Targets of links and images that are not web addresses; code is left out."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)", prose, flags=re.MULTILINE)
    found = [inline or reference for inline, reference in targets]
    return [target for target in found if not re.match("[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Places on a page, named as GitHub does."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    odd = "[a](b.md#c) ![d](e.png 't') [f](https://g) [h](#i) [`j`](k/l.py)\n[m]: n.md\n`[o](p)`\n```\n[q](r)\n```\n"
    assert relative_links(odd) == ["b.md#c", "e.png", "#i", "k/l.py", "n.md"]
    missing = []
    for page in PAGES:
        for link in relative_links(page.read_text("utf-8")):
            name, _, place = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (place and target.suffix == ".md" and place not in anchors(target)):
                missing.append(f"{page.name}: {link}")
    assert missing == []


def test_architecture_names_the_line_where_each_thing_is():
    """Links such as [`step_loss`](../cyberlm/training/losses.py#L84) lead to the line of that definition."""
    page = ROOT / "docs" / "architecture.md"
    links = re.findall(r"\[`(\w+)`\]\(\.\./(cyberlm/[\w/]+\.py)#L(\d+)\)", page.read_text("utf-8"))
    assert len(links) >= 10
    wrong = []
    for name, path, number in links:
        lines = (ROOT / path).read_text("utf-8").splitlines()
        found = [at for at, line in enumerate(lines, 1) if re.match(rf"\s*(def|class) {name}\b", line)]
        if int(number) not in found:
            wrong.append(f"{path}#L{number} is not {name}: it is in line {found or 'none'}")
    assert not wrong

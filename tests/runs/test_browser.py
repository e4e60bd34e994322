"""Pages opened in a real browser: no error, sorted by a click, as wide as a phone, and no script but their own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_support import Browser, chromium
from debian import install
from omegaconf import OmegaConf
from pages_support import a_study, page
from support import evaluation_of

from cyberlm.evaluation.pages.figures import to_svg
from cyberlm.evaluation.pages.study_page import study_figures, study_page
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.leaderboard import show_leaderboard

pytestmark = pytest.mark.slow

PHONE = 400
KINDS = ("run", "evaluation", "sweep", "study", "script")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    install("chromium", program="chromium")
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, finished_run: Callable[..., Path], lora_run: Path, sft_run: Path
) -> dict[str, Path]:
    """A page of each kind; `script` is that of a run whose questions, topics and names are scripts."""
    folder = tmp_path_factory.mktemp("pages")
    evaluate(evaluation_of(f"runs=[{lora_run},{sft_run}]", "evaluation.max_new_tokens=4"), folder / "evaluation")
    for job, rank in enumerate((4, 2)):
        run = finished_run("method=lora", f"method.lora.rank={rank}")
        shutil.copytree(run, folder / "sweep" / str(job))
        (folder / "sweep" / str(job) / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save([f"method.lora.rank={rank}"], folder / "sweep" / str(job) / ".hydra" / "overrides.yaml")
    show_leaderboard(folder / "sweep")
    study = a_study()
    drawn = {name: to_svg(figure, name) for name, figure in study_figures(study).items()}
    (folder / "study.html").write_text(study_page(study, drawn), "utf-8")
    (folder / "script.html").write_text(page(), "utf-8")
    return {
        "run": lora_run / "report.html",
        "evaluation": folder / "evaluation" / "report.html",
        "sweep": folder / "sweep" / "report.html",
        "study": folder / "study.html",
        "script": folder / "script.html",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_without_an_error(kind: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[kind])
    assert browser.evaluate("document.title") not in ("", "owned")
    assert browser.evaluate("document.querySelectorAll('svg').length") > 0
    assert browser.evaluate("document.images.length") == 0
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0  # nothing was fetched
    assert browser.problems == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_no_wider_than_a_phone(kind: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[kind], width=PHONE)
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    small = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"
    assert browser.evaluate(f"Math.min(...{small}.filter(height => height > 0))") >= 7


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_seen_on_light_and_on_dark_pages(kind: str, browser: Browser, pages: dict[str, Path]) -> None:
    found = []
    for scheme in ("light", "dark"):
        browser.open(pages[kind], scheme=scheme)
        ink = browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        found.append((browser.evaluate("getComputedStyle(document.body).backgroundColor"), ink))
        assert ink == browser.evaluate("getComputedStyle(document.body).color")
    (light, dark_ink), (dark, light_ink) = found
    assert light != dark and dark_ink != light_ink


@pytest.mark.parametrize(
    ("kind", "part", "column"),
    [("run", "#results", 2), ("evaluation", "#results", 3), ("sweep", "main", 4), ("study", "#runs", 4)],
)
def test_a_click_sorts_a_table(kind: str, part: str, column: int, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[kind])
    table = f"[...document.querySelector('{part} table').tBodies[0].rows].map(row => row.cells[{column - 1}])"
    values = f"{table}.map(cell => parseFloat(cell.dataset.value ?? cell.textContent))"
    button = f"{part} table th:nth-child({column}) button"
    for order, sign in (("ascending", 1), ("descending", -1)):
        browser.click(button)
        assert browser.evaluate(f"document.querySelector('{button}').parentElement.ariaSort") == order
        found = [value for value in browser.evaluate(values) if value is not None]  # NaN is null: a cell without one
        assert found == sorted(found, key=lambda value: sign * value) and len(found) > 1
    assert browser.problems == []


def test_a_row_of_a_sweep_leads_to_its_run(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"])
    browser.click("td a")
    browser.wait_for("Page.loadEventFired")
    assert browser.evaluate("document.querySelector('.kind').textContent") == "Training run"
    assert browser.problems == []


def test_a_script_that_came_into_a_page_would_not_run(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    text = pages["script"].read_text("utf-8")
    script = "<script>document.title = 'owned'</script>"
    (tmp_path / "safe.html").write_text(text.replace("<h1>", f"{script}<h1>"), "utf-8")
    browser.open(tmp_path / "safe.html")
    assert browser.evaluate("document.title") != "owned"
    assert any("Content Security Policy" in problem for problem in browser.problems)  # the browser says so
    policy = text.index("<meta http-equiv")
    bare = text[:policy] + text[text.index(">", policy) + 1 :]
    (tmp_path / "bare.html").write_text(bare.replace("<h1>", f"{script}<h1>"), "utf-8")
    browser.open(tmp_path / "bare.html")
    assert browser.evaluate("document.title") == "owned"  # so that the test sees what it looks for

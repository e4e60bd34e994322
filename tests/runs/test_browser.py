"""Pages opened in a real browser: no error, sorted by a click, as wide as a phone, and no script but their own."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
HARNESS = """<!doctype html><meta charset="utf-8"><body>
<iframe srcdoc="{page}" width="{width}" height="800" style="border: 0; color-scheme: {scheme}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const view = frame.contentWindow, page = view.document;
  const look = () => {{ {script} }};
  document.body.textContent = "FOUND" + JSON.stringify(look()) + "END";
}};
</script>"""
"""Shows a page in a frame, under its own content security policy, and runs a script beside it."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, list[str]]]:
    """Opens a page in Chromium; returns what a script finds in `view` and `page`, and what the console shows."""
    install("chromium", program="chromium")
    folder = tmp_path_factory.mktemp("chromium")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")

    def opened(text: str, script: str, width: int = 1100, scheme: str = "light") -> tuple[Any, list[str]]:
        (folder / "harness.html").write_text(
            HARNESS.format(page=html.escape(text), width=width, scheme=scheme, script=script), "utf-8"
        )
        line = ["chromium", *options, f"--user-data-dir={folder}", "--dump-dom", (folder / "harness.html").as_uri()]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        found = re.search("FOUND(.*)END</body>", done.stdout, re.DOTALL)
        assert found, done.stdout + done.stderr
        shown = [item for item in done.stderr.splitlines() if ":CONSOLE:" in item]
        return json.loads(html.unescape(found.group(1))), shown

    return opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory, finished_run: Callable[..., Path], lora_run: Path, sft_run: Path) -> dict[str, str]:
    """A page of each kind; `script` is that of a run whose questions, topics and names are scripts."""
    folder = tmp_path_factory.mktemp("pages")
    evaluate(evaluation_of(f"runs=[{lora_run},{sft_run}]", "evaluation.max_new_tokens=4"), folder / "evaluation")
    for job, rank in enumerate((4, 2)):
        run = shutil.copytree(finished_run("method=lora", f"method.lora.rank={rank}"), folder / "sweep" / str(job))
        (run / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save([f"method.lora.rank={rank}"], run / ".hydra" / "overrides.yaml")
    show_leaderboard(folder / "sweep")
    study = a_study()
    drawn = {name: to_svg(figure, name) for name, figure in study_figures(study).items()}
    reports = {"run": lora_run, "evaluation": folder / "evaluation", "sweep": folder / "sweep"}
    written = {kind: (run / "report.html").read_text("utf-8") for kind, run in reports.items()}
    return written | {"study": study_page(study, drawn), "script": page()}


LOOK = """
page.querySelectorAll("details").forEach(part => part.open = true);
const heights = [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height);
return {
  title: page.title,
  images: page.images.length,
  fetched: view.performance.getEntriesByType("resource").length,
  width: page.documentElement.scrollWidth,
  smallest: Math.min(...heights.filter(height => height > 0)),
  colours: [view.getComputedStyle(page.body).backgroundColor, view.getComputedStyle(page.body).color],
  ink: view.getComputedStyle(page.querySelector("svg text")).fill,
};"""


@pytest.mark.parametrize("kind", ["run", "evaluation", "sweep", "study", "script"])
def test_a_page_opens_without_an_error_light_dark_and_on_a_phone(kind: str, opened, pages: dict[str, str]) -> None:
    (light, said), (dark, _) = (opened(pages[kind], LOOK, PHONE, scheme) for scheme in ("light", "dark"))
    assert said == []
    assert light["title"] not in ("", "owned")
    assert (light["images"], light["fetched"]) == (0, 0)
    assert light["width"] <= PHONE and light["smallest"] >= 7
    assert all(first != second for first, second in zip(light["colours"], dark["colours"], strict=True))
    assert (light["ink"], dark["ink"]) == (light["colours"][1], dark["colours"][1])


SORT = """
const table = page.querySelector("PART table"), button = table.querySelector("th:nth-child(COLUMN) button");
return ["ascending", "descending"].map(() => {
  button.click();
  const cells = [...table.tBodies[0].rows].map(row => row.cells[COLUMN - 1]);
  return [button.parentElement.ariaSort, cells.map(cell => parseFloat(cell.dataset.value ?? cell.textContent))];
});"""


@pytest.mark.parametrize(
    ("kind", "part", "column"),
    [("run", "#results", 2), ("evaluation", "#results", 3), ("sweep", "main", 4), ("study", "#runs", 4)],
)
def test_a_click_sorts_a_table(kind: str, part: str, column: int, opened, pages: dict[str, str]) -> None:
    found, said = opened(pages[kind], SORT.replace("PART", part).replace("COLUMN", str(column)))
    assert said == []
    for (order, cells), (expected, sign) in zip(found, (("ascending", 1), ("descending", -1)), strict=True):
        values = [value for value in cells if value is not None]  # NaN is null: a cell without one
        assert order == expected
        assert values == sorted(values, key=lambda value, sign=sign: sign * value) and len(values) > 1


def test_a_script_that_came_into_a_page_would_not_run(opened, pages: dict[str, str]) -> None:
    safe = pages["script"].replace("<h1>", "<script>document.title = 'owned'</script><h1>")
    title, said = opened(safe, "return page.title")
    assert title != "owned" and any("Content Security Policy" in line for line in said)  # the browser says so
    bare = re.sub("<meta http-equiv[^>]*>", "", safe, count=1)
    assert opened(bare, "return page.title")[0] == "owned"  # so that the test sees what it looks for

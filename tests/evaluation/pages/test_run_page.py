"""Pages and figures: what they show, and that texts of questions are only ever text."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pages_support import SCRIPT, Reader, page, prediction
from results_support import PAIR, named, results, share
from support import config_of

from cyberlm.evaluation.charts import by_topic, reliability
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.pages import figures
from cyberlm.evaluation.pages.learning_curves import panels_of, read_curves
from cyberlm.evaluation.pages.run_page import Origin, run_page
from cyberlm.evaluation.statistics import wilson


def test_a_page_is_whole_needs_no_network_and_runs_no_text() -> None:
    """Texts of questions, topics and names stay text."""
    text = page(topic=f"{SCRIPT} $x_1$")
    read = Reader(text)
    assert read.open == []  # every tag was closed, in order
    assert read.tags.count("script") == 1 and "img" not in read.tags
    assert read.text.count("document.title = 'owned'") > 20
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|https?://(?!www\.w3\.org)[^\s\"<]+", text) == []
    assert "default-src 'none'" in text


def test_every_metric_and_the_questions_that_tell_the_most_are_shown() -> None:
    text = " ".join(Reader(page()).text.split())
    metrics = [metric for own in results().metrics.values() for metric in own.values() if metric.place != "note"]
    for metric in metrics:
        assert (metric.label or metric.name) in text
        assert metric.value is None or replace(metric, interval=None).text() in text
    for shown in (
        "95%: 30.0% to 45.3%, 56 of 150",
        "ROUGE-2 is undefined.",
        "Base: The model answers A to 90.0% of the questions.",
        "Tuned against base: +2.7 points of accuracy by likelihood (95% -1.2 to +6.5)",
        "tuned minus base. 95%: -1.2 to +6.5",
        "4,884,480 (3.504%)",
        "python train.py data=sample",
        "seed10",  # a setting, here and by default
    ):
        assert shown in text
    mine = {"base": named(Metric("my_metric", 1.5, label="<i>mine</i>")), "tuned": {}}
    text = Reader(page(metrics=mine, comparisons=(), cost=None)).text
    assert "<i>mine</i>" in text and "1.5000" in text
    # questions that changed, and those that stayed wrong
    text = Reader(page()).text
    assert text.index("Gained (6)") < text.index("Lost (2)") < text.index("Confidently wrong (1)")
    shown = re.findall(r"q:\d", text[text.index("Gained (6)") :])
    assert shown[-1] == "q:9"  # wrong before and after
    assert shown[:6] == ["q:3", "q:4", "q:5", "q:6", "q:7", "q:8"]  # the right option's probability moved ever less


def test_many_models_with_long_names_fit() -> None:
    names = [f"2026-11-27_0{number}-00-00_smollm2_135m_instruct_lora" for number in range(8)]
    pairs = tuple(replace(PAIR, second=name) for name in names) * 2
    metrics = {name: results().metrics["base"] for name in ("base", "tuned", *names)}
    text = page(more=names, comparisons=pairs, metrics=metrics)
    assert "The first 12 of 16 pairs." in text and "Of the first 6 models" in text
    drawn = text[text.index('id="figures"') : text.index('id="evidence"')]
    assert all((name in drawn) == (number < 4) for number, name in enumerate(names))  # in legends, whole


def test_ids_stand_for_questions_that_must_not_be_passed_on() -> None:
    text = Reader(page("CC-BY-NC-4.0")).text
    assert "q:3" in text and "number 3?" not in text and "three" not in text
    assert text.count("document.title") == 1  # the folder's name; no completion, which may cite an option
    assert "licence of the questions (CC-BY-NC-4.0)" in text


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        *((f"data.licence='{name}'", True) for name in ("Apache-2.0", "CC BY-SA 4.0", "cc0-1.0", "BSD-3-Clause")),
        *((f"data.licence='{name}'", False) for name in ("none stated", "unknown", "CC BY-NC 4.0")),
        *(("data.mix=[sample,mmlu_computer_security]", True), ("data.mix=[sample,cti_mcq]", False)),
    ],
)
def test_text_is_shown_where_each_licence_is_free(setting: str, shown: bool) -> None:
    assert EvalSet(config_of(setting), ()).shows_text == shown


def test_runs_without_test_questions_or_without_a_pair_have_a_page() -> None:
    found = results(metrics={}, models={}, comparisons=(), differences=())
    text = Reader(run_page(found, EvalSet(config_of(), ()), {}, Origin("run", "python train.py"))).text
    assert "option nll on the validation questions" in text and "Results on the test" not in text
    text = Reader(page(metrics={"base": results().metrics["base"]}, comparisons=())).text
    assert "Confidently wrong" in text and "Gained (" not in text


def test_points_of_a_reliability_diagram() -> None:
    confidence = np.repeat([0.9, 0.3], [40, 20])
    correct = np.arange(60) < 50
    (low, few), (high, first), *rest = reliability(confidence, correct)
    assert (low, few.value, few.n) == (pytest.approx(0.3), 0.5, 20)
    assert few.interval == pytest.approx(wilson(0.5, 20))
    assert (high, first.value, first.n) == (pytest.approx(0.9), 1.0, 40) and not rest  # equals share a bin
    assert len(reliability(confidence[:10], correct[:10])) == 1  # few: one bin


def test_accuracy_by_topic_puts_topics_of_one_domain_together() -> None:
    topics = ["Cloud: A", "Web", "Cloud: B", "", "Cloud"]
    rows = [replace(prediction(k, 0), topic=topic) for k, topic in enumerate(topics)]
    shares = by_topic(rows, np.array([True, True, False, True, False]))
    assert [(m.name, m.value, m.n) for m in shares] == [("Cloud", 1 / 3, 3), ("Web", 1.0, 1)]
    assert by_topic([prediction(0, 0)], np.array([True])) == []


def test_learning_curves_are_read_by_column(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/nll,mine,val/accuracy\n0,0,3.5,,,\n0,1,nan,2.5,7,0.25\n0,2,2.5,,8,\n", "utf-8"
    )
    curves = read_curves(tmp_path)
    validation = {"val/nll": ([1], [2.5]), "val/accuracy": ([1], [0.25])}
    assert curves == {"train/loss": ([0, 2], [3.5, 2.5]), "mine": ([1, 2], [7, 8]), **validation}
    panels = panels_of(curves)
    assert list(panels["loss, nats a token"]) == ["train/loss", "val/nll"]
    assert list(panels) == ["loss, nats a token", "accuracy on the validation questions", "mine"]


DRAWN = {
    "forest": lambda: figures.forest([("a $b_1$ <i>", 0.1, -0.1, 0.3)], "points", band=0.02),
    "curves": lambda: figures.curves({"loss": {"x": (list(range(100)), list(range(100))), "y": ([1.0], [2.0])}}),
    "reliability": lambda: figures.reliability({"<i>": reliability(np.linspace(0.2, 1, 60), np.arange(60) % 2 == 0)}),
    "letters": lambda: figures.letters({"base": np.eye(4, dtype=np.int64), "tuned": np.ones((4, 4), np.int64)}),
    "shares": lambda: figures.shares({"密码学 " * 12: {"base": share("x", 1, 2, 0.1, 0.9)}}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_take_the_ink_of_the_page(name: str, tmp_path: Path) -> None:
    text = figures.write_figure(DRAWN[name](), tmp_path, name, "a <title>")
    root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("aria-label") == "a <title>" and root.get("width") == "442"
    assert "currentColor" in text and figures.INK not in text and not re.search(r"#(?:fff|000)[^0-9a-f]", text)
    assert text == figures.write_figure(DRAWN[name](), tmp_path, name, "a <title>")  # the same bytes again
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert figures.INK in (tmp_path / f"{name}.svg").read_text("utf-8")

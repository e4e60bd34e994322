"""Pages of sweeps."""

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from pages_support import SCRIPT, Reader, a_sweep

from cyberlm.evaluation.pages.figures import INK, to_svg
from cyberlm.evaluation.pages.sweep_page import heat_map, parallel, sweep_page


def test_each_job_leads_to_its_page() -> None:
    text = sweep_page(a_sweep())
    read = Reader(text)
    assert read.open == [] and read.tags.count("script") == 1 and "img" not in read.tags
    assert re.findall(r'<td><a href="([^"]*)"', text) == [f"{job}/report.html" for job in (5, 4, 3, 2, 1, 0)]
    words = " ".join(read.text.split())
    for shown in ("7 jobs", "6 of 7", f"failed: {SCRIPT}", "1.0000val option nll of the best, job 5", "cyberlm train"):
        assert shown in words
    rows = [{**row, "state": "failed", "val option nll": ""} for row in a_sweep().rows]
    text = Reader(sweep_page(replace(a_sweep(), rows=rows, figure=None))).text
    assert "0 of 7" in text and "Parallel coordinates" not in text


def test_every_two_swept_settings_have_a_heat_map() -> None:
    titles = re.findall(r"<figure><h3>(.*?)</h3>", sweep_page(a_sweep()))
    assert titles == ["Parallel coordinates", "rank × alpha"]
    rows = [{**row, "optim.learning_rate": str(k % 2)} for k, row in enumerate(a_sweep().rows)]
    three = replace(a_sweep(), rows=rows, swept=[*a_sweep().swept, "optim.learning_rate"])
    titles = re.findall(r"<figure><h3>(.*?)</h3>", sweep_page(three))
    assert titles[1:] == ["rank × alpha", "rank × learning rate", "alpha × learning rate"]


def test_cells_of_a_heat_map_are_means_of_their_jobs() -> None:
    ranks, alphas = zip(*itertools.product(["16", "2", "16"], ["8", "x"]), strict=True)
    values = np.array([1.0, 2.0, 3.0, 4.0, 2.0, 6.0])  # 16: 8 has 1 and 2, x has 2 and 6; 2: 3 and 4
    text = to_svg(heat_map(ranks, alphas, ("lora.rank", "a"), values, lower_is_better=True), "map")
    root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["2", "16", "rank", "8", "x", "a", "3", "1.5", "4", "4"]  # numbers by value, then texts
    holed = heat_map(["1", "2"], ["a", "b"], ("x", "y"), np.array([1.0, 2.0]), lower_is_better=False)
    assert to_svg(holed, "map").count("–") == 2


@pytest.mark.parametrize("settings", [{"rank": ["2", "2"]}, {"rate": ["1e-5", "1e-2"], "method": ["lora", SCRIPT]}])
def test_parallel_coordinates_of_any_settings(settings: dict[str, list[str]]) -> None:
    drawn = parallel(settings, "val", np.array([1.0, 1.0]), lower_is_better=True)
    text = to_svg(drawn, "lines")
    assert INK not in text and "<script" not in text
    many = {"rate": [str(10.0 ** -(k / 10)) for k in range(40)]}
    assert to_svg(parallel(many, "val", np.linspace(0, 1, 40), lower_is_better=False), "lines")

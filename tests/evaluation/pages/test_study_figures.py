"""The figures of a study: what they show, and that they are left out where there is nothing to show."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from study_support import made_up_study

from cyberlm.evaluation.pages.study_page import FIGURES, colours, study_figures, write_study_figures

STUDY = made_up_study()


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return study_figures(STUDY)


def test_every_figure_is_written_as_svg_and_png(tmp_path: Path) -> None:
    found = write_study_figures(STUDY, tmp_path)
    assert list(found) == list(FIGURES)
    for name, svg in found.items():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"


def test_differences_are_in_points_beside_the_margin(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["differences"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("sft − base", "lora − base", "qlora − base"),
        *("lora − sft", "qlora − sft"),
    ]
    pair = STUDY.comparison("qlora", "against reference", "generation")
    assert pair is not None
    limits = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [4, 4]]
    assert list(limits[0]) == pytest.approx([100 * pair.ci_lo, 100 * pair.ci_hi])
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-2, 2))


def test_a_dot_a_seed_against_cost(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["cost_memory"].axes
    dots = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    accuracies = [job.figures["generation"] for job in STUDY.jobs if job.method == "sft"]
    assert dots["sft"] == ([5.0] * 3, accuracies)
    assert set(dots) == {"sft", "lora", "qlora", "base"}


def test_floors_are_lines_and_bars_add_up(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["accuracy"].axes
    assert {text.get_text() for text in axes.texts} == set(STUDY.floors)
    (bars,) = drawn["format_and_knowledge"].axes
    ends = [patch.get_x() + patch.get_width() for patch in bars.patches[-len(STUDY.rows) :]]
    assert ends == pytest.approx([1.0] * len(STUDY.rows))


def test_learning_curve_is_the_mean_in_a_band(drawn: dict[str, Figure]) -> None:
    nll, _ = drawn["learning_curves"].axes
    line = next(line for line in nll.lines if line.get_label() == "lora")
    assert list(line.get_xdata()) == [20, 40, 60]
    assert list(line.get_ydata()) == pytest.approx([1.38, 1.3, 1.27])
    band = nll.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.26, 1.39))


def test_what_was_not_measured_is_left_out() -> None:
    bare = replace(STUDY, comparisons=(), curves=(), jobs=(), rows=())
    assert study_figures(bare) == {}


def test_bases_are_grey_and_methods_are_not() -> None:
    found = colours(STUDY)
    assert found["base"] == found["base nf4"]
    assert len(set(found.values())) == 4

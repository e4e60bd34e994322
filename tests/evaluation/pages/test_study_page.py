"""A study's page, figures and table: what they show, and that nothing is shown where there is nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pages_support import Reader, a_study
from study_support import made_up_study

from cyberlm.evaluation.pages.figures import to_svg
from cyberlm.evaluation.pages.study_page import colours, study_figures, study_page
from cyberlm.evaluation.pages.table import as_latex, table_columns, write_table

STUDY = made_up_study()


def test_figures_of_a_study() -> None:
    drawn = study_figures(STUDY)
    (axes,) = drawn["differences"].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["sft − base", "lora − base", "qlora − base", "lora − sft", "qlora − sft"]
    pair = STUDY.comparison("qlora", "against reference", "generation")
    assert pair is not None
    limits = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [4, 4]]
    assert list(limits[0]) == pytest.approx([100 * pair.ci_lo, 100 * pair.ci_hi])
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-2, 2))  # the margin

    (axes,) = drawn["cost_memory"].axes
    dots = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert set(dots) == {"sft", "lora", "qlora", "base"}
    assert dots["sft"] == ([5.0] * 3, [job.figures["generation"] for job in STUDY.jobs if job.method == "sft"])

    (axes,) = drawn["accuracy"].axes
    assert {text.get_text() for text in axes.texts} == set(STUDY.floors)
    (bars,) = drawn["format_and_knowledge"].axes
    ends = [patch.get_x() + patch.get_width() for patch in bars.patches[-len(STUDY.rows) :]]
    assert ends == pytest.approx([1.0] * len(STUDY.rows))

    nll, _ = drawn["learning_curves"].axes
    line = next(line for line in nll.lines if line.get_label() == "lora")
    assert list(line.get_xdata()) == [20, 40, 60]
    assert list(line.get_ydata()) == pytest.approx([1.38, 1.3, 1.27])  # the mean in a band
    band = nll.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.26, 1.39))

    found = colours(STUDY)
    assert found["base"] == found["base nf4"] and len(set(found.values())) == 4


def test_what_was_not_measured_is_left_out() -> None:
    assert study_figures(replace(STUDY, comparisons=(), curves=(), jobs=(), rows=())) == {}
    rows = tuple(replace(row, published=None, figures={"likelihood": row.figures["likelihood"]}) for row in STUDY.rows)
    comparisons = tuple(pair for pair in STUDY.comparisons if pair.outcome == "likelihood")
    columns = table_columns(replace(STUDY, rows=rows, comparisons=comparisons))
    assert not {"ROUGE-1", "published accuracy, %", "accuracy, generation, %"} & columns.keys()
    assert "accuracy, likelihood, %" in columns


def test_the_page_of_a_study() -> None:
    study = a_study()
    drawn = {name: to_svg(figure, name) for name, figure in study_figures(study).items()}
    text = study_page(study, drawn)
    read = Reader(text)
    assert read.open == [] and read.tags.count("script") == 1 and "img" not in read.tags
    words = " ".join(read.text.split())
    reasons = (claim.reason for claim in study.claims)
    assert all(shown in words for shown in (*study.findings, *study.power, *study.notes, *reasons, study.command))
    lora = next(row for row in study.rows if row.name == "lora").figures["generation"]
    assert f"{lora.value:.1%}lora: accuracy by generation. 95%: {lora.ci_lo:.1%} to {lora.ci_hi:.1%}" in words
    pair = study.comparison("lora", "against base", "generation")
    assert pair is not None and f"{100 * pair.ci_lo:+.1f} to {100 * pair.ci_hi:+.1f}" in words
    assert "lora minus base" in words and f"{100 * pair.difference:+.1f}" in words and "not tested" in words
    links = [f"{leads.folder}/report.html" for leads in (*study.tuning, *study.jobs[:-1])]
    assert re.findall(r'<td><a href="([^"]*)"', text) == links
    assert text.count("<figure>") == len(drawn) == 6


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_a_column_a_model_and_a_row_a_figure(tmp_path: Path) -> None:
    write_table(STUDY, tmp_path)
    head, rule, *lines = (tmp_path / "table.md").read_text("utf-8").splitlines()
    assert cells(head) == ["", "base", "base nf4", "sft", "lora", "qlora"]
    assert rule == "|---" + "|---:" * 5 + "|"
    rows = {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("|")}
    assert all(len(row) == 5 for row in rows.values())
    sft = next(row for row in STUDY.rows if row.name == "sft").figures["generation"]
    shown = f"{100 * sft.value:.1f} ({100 * sft.ci_lo:.1f} to {100 * sft.ci_hi:.1f})"
    assert rows["accuracy, generation, %"][2] == shown
    pair = STUDY.comparison("lora", "against reference", "generation")
    *bases, lora, _ = rows["minus sft, generation, points"]
    assert pair is not None and lora.startswith(f"{100 * pair.difference:+.1f} (") and bases == ["–"] * 3
    assert rows["published accuracy, %"] == ["–", "–", "–", "–", "84.3"]
    assert rows["peak memory, GiB"] == ["–", "–", "3.00", "3.00", "3.00"]
    assert rows["wall time, training"][2] == "4:10"
    assert lines[-1] == "- Made by: python train.py study=paper -m"
    # LaTeX escapes
    text = (tmp_path / "table.tex").read_text("utf-8")
    assert r"\begin{tabular}{lrrrrr}" in text and r"\bottomrule" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table_columns(STUDY))
    assert {len(re.findall("(?<!\\\\)&", row)) for row in rows} == {5}
    assert r"accuracy, generation, \% & " in text
    assert "$<$ 0.001" in text
    assert r"a\_b" in as_latex({"model": ["a_b"], "seeds": ["1"]}, [])

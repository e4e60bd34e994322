"""The study's table in Markdown and LaTeX."""

import re
from dataclasses import replace
from pathlib import Path

from study_support import made_up_study

from cyberlm.evaluation.pages.table import as_latex, table_columns, write_table

STUDY = made_up_study()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_has_a_column_a_model_and_a_row_a_figure(tmp_path: Path) -> None:
    write_table(STUDY, tmp_path)
    head, rule, *lines = (tmp_path / "table.md").read_text("utf-8").splitlines()
    assert cells(head) == ["", "base", "base nf4", "sft", "lora", "qlora"]
    assert rule == "|---" + "|---:" * 5 + "|"
    rows = {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("|")}
    assert all(len(row) == 5 for row in rows.values())
    sft = next(row for row in STUDY.rows if row.name == "sft").figures["generation"]
    assert sft.ci_lo is not None and sft.ci_hi is not None
    shown = f"{100 * sft.value:.1f} ({100 * sft.ci_lo:.1f} to {100 * sft.ci_hi:.1f})"
    assert rows["accuracy, generation, %"][2] == shown
    pair = STUDY.comparison("lora", "against reference", "generation")
    assert pair is not None
    assert rows["minus sft, generation, points"][3].startswith(f"{100 * pair.difference:+.1f} (")
    assert rows["minus sft, generation, points"][:3] == ["–"] * 3
    assert rows["published accuracy, %"] == ["–", "–", "–", "–", "84.3"]
    assert rows["peak memory, GiB"] == ["–", "–", "3.00", "3.00", "3.00"]
    assert rows["wall time, training"][2] == "4:10"
    assert lines[-1] == "- Made by: python train.py study=paper -m"


def test_latex_escapes_and_counts_its_columns(tmp_path: Path) -> None:
    write_table(STUDY, tmp_path)
    text = (tmp_path / "table.tex").read_text("utf-8")
    assert r"\begin{tabular}{lrrrrr}" in text and r"\bottomrule" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table_columns(STUDY))
    assert {len(re.findall("(?<!\\\\)&", row)) for row in rows} == {5}
    assert r"accuracy, generation, \% & " in text
    assert "$<$ 0.001" in text
    assert r"a\_b" in as_latex({"model": ["a_b"], "seeds": ["1"]}, [])


def test_figures_that_no_model_has_are_left_out() -> None:
    rows = tuple(replace(row, published=None, figures={"likelihood": row.figures["likelihood"]}) for row in STUDY.rows)
    comparisons = tuple(pair for pair in STUDY.comparisons if pair.outcome == "likelihood")
    columns = table_columns(replace(STUDY, rows=rows, comparisons=comparisons))
    assert "ROUGE-1" not in columns and "published accuracy, %" not in columns
    assert "accuracy, generation, %" not in columns and "accuracy, likelihood, %" in columns

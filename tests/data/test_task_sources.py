"""Sources of other tasks than multiple choice: where their files are at hand, all rows are read."""

import os
from pathlib import Path
from statistics import mean

import pytest
from support import compose

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.data.sources import load_sources
from cyberlm.runtime.errors import DataError
from cyberlm.tasks.cvss_vector import base_score
from cyberlm.tasks.task import make_task

FOLDER = Path(os.environ.get("CYBERLM_DATA_DIR", ".")).resolve().parent
"""Folder of folders: `tram`, `cti_bench`, `mal_api` beside that of CyberMetric."""


def read(source: str, *overrides: str):
    config = build_config(compose(f"data={source}", "logger=none", *overrides, command="evaluate"), EvaluateConfig)
    return load_sources(config.data, make_task(config))[0]


@pytest.mark.parametrize(
    ("source", "folder", "rows", "classes", "groups"),
    [
        ("cti_rcm", "cti_bench", 1000, 104, 1000),
        ("cti_rcm_2021", "cti_bench", 1000, 97, 1000),
        ("tram", "tram", 5089, 50, 149),
        ("mal_api", "mal_api", 808, 8, 1),
        ("cti_ate", "cti_bench", 60, 60, 60),
    ],
)
def test_all_rows_are_read(source: str, folder: str, rows: int, classes: int, groups: int) -> None:
    if not (FOLDER / folder).is_dir():
        pytest.skip(f"no folder {folder} beside CYBERLM_DATA_DIR")
    questions = read(source, f"data.dir={FOLDER / folder}").questions
    counts = len(questions), len({q.answer for q in questions}), len({q.group for q in questions})
    assert counts == (rows, classes, groups)
    assert max(len(q.question.split()) for q in questions) <= (101 if source == "mal_api" else 1000)


def test_answers_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "calls.txt").write_text("7,7,1\n3,4\n")
    (tmp_path / "types.txt").write_text("Virus\nWorms\n")
    given = [f"data.address=file://{tmp_path}/calls.txt", "data.sha256=null", "data.answer_sha256=null"]
    found = read("mal_api", *given, f"data.answer_address=file://{tmp_path}/types.txt")
    assert [(q.question, q.answer, q.id) for q in found.questions] == [
        ("7x2 1", "Virus", "calls:1"),
        ("3 4", "Worms", "calls:2"),
    ]
    assert found.source.endswith("calls.txt")
    assert found.notes == {"repeated calls written once, with their number": 1}
    (tmp_path / "types.txt").write_text("Virus\n")
    with pytest.raises(DataError, match="2 and 1 lines"):
        read("mal_api", *given, f"data.answer_address=file://{tmp_path}/types.txt")


def test_always_7_5_deviates_by_1_54_on_cti_vsp() -> None:
    if not (FOLDER / "cti_bench").is_dir():
        pytest.skip("no folder cti_bench beside CYBERLM_DATA_DIR")
    questions = read("cti_vsp", f"data.dir={FOLDER / 'cti_bench'}").questions
    assert len(questions) == 1000
    assert round(mean(abs(7.5 - base_score(question.answer)) for question in questions), 2) == 1.54

"""Question files: every documented shape reads the same, everything else is refused with its place and reason."""

import csv
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support import MULTIPLE_CHOICE

from cyberlm.config.schema import OnBadRow
from cyberlm.data import readers, text_files
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.runtime.errors import DataError
from cyberlm.tasks.task import Example

DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")
GOOD = {"question": "Which port does HTTPS use?", "answers": {"A": "80", "B": "443", "C": "22"}, "solution": "B"}
READ = Example("q:1", "Which port does HTTPS use?", ("80", "443", "22"), 1)


def read(path: Path, on_bad_row: OnBadRow = OnBadRow.error) -> QuestionSet:
    return read_questions(path, "q", on_bad_row, MULTIPLE_CHOICE)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return caught.value.screen(max_problems=1000)


# --- shapes that are taken ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.json", json.dumps({"questions": [GOOD]})),
        ("q.json", json.dumps([GOOD])),
        ("q.JSON", json.dumps([GOOD])),
        ("q.jsonl", json.dumps(GOOD)),
        ("q.jsonl", "\r\n" + json.dumps(GOOD) + "\r\n\r\n"),
        ("q.json", json.dumps([GOOD | {"answers": {"c": "22", "a": "80", "b": "443"}, "solution": "b"}])),
        ("q.csv", "question,A,B,C,solution\nWhich port does HTTPS use?,80,443,22,B\n"),
        ("q.csv", 'Question,a,b,c,ANSWER\r\n"Which port does HTTPS use?",80,443,22,b\r\n'),
        ("q.csv", "solution,C,A,B,question,topic\nB,22,80,443,Which port does HTTPS use?,\n\n"),
        ("q.csv", "\ufeffquestion,A,B,C,solution\nWhich port does HTTPS use?,80,443,22,B\n"),
        ("q.jsonl", "\ufeff" + json.dumps(GOOD)),
        ("q.tsv", "question\tA\tB\tC\tsolution\nWhich port does HTTPS use?\t80\t443\t22\tB\n"),
    ],
)
def test_every_shape_reads_the_same(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    found = read(path)
    assert found == QuestionSet("q", str(path), hashlib.sha256(content.encode()).hexdigest(), (READ,))


@pytest.mark.parametrize("field", ["answers", "options", "choices"])
@pytest.mark.parametrize("gold", ["solution", "answer"])
def test_options_as_a_list_under_each_name(tmp_path: Path, field: str, gold: str) -> None:
    row = {"question": READ.question, field: list(READ.options), gold: "b"}
    assert read(write(tmp_path, "q.jsonl", json.dumps(row))).questions == (READ,)


@pytest.mark.parametrize(
    ("row", "read_as"),
    [
        (GOOD | {"domain": "Network", "topic": "Ports"}, {"topic": "Network: Ports"}),
        (GOOD | {"topic": "Ports"}, {"topic": "Ports"}),
        (GOOD | {"domain": "Network"}, {"topic": "Network"}),
        (GOOD | {"answers": ["yes", "no"]}, {"options": ("yes", "no")}),
        (GOOD | {"answers": list("stuvwxyz"), "solution": "H"}, {"options": tuple("stuvwxyz"), "gold": 7}),
        (GOOD | {"answers": {"A": "chmod -r", "B": "chmod -R"}}, {"options": ("chmod -r", "chmod -R")}),
    ],
)
def test_a_row_is_read(tmp_path: Path, row: dict[str, object], read_as: dict[str, object]) -> None:
    assert read(write(tmp_path, "q.json", json.dumps([row]))).questions == (replace(READ, **read_as),)


def test_unicode_is_kept_and_white_space_is_normalised_and_counted(tmp_path: Path) -> None:
    rows = [
        {
            "question": " Qué\u00a0 “port”\n\tist\u2011das? ",
            "answers": {"A": "ﬁ\u200b", "B": "café"},
            "solution": " A ",
        },
        GOOD,
    ]
    found = read(write(tmp_path, "q.json", json.dumps(rows, ensure_ascii=False)))
    assert found.questions[0].question == "Qué “port” ist\u2011das?"
    assert found.questions[0].options == ("ﬁ\u200b", "café")
    assert found.whitespace_normalised == 1


def test_csv_cells_may_hold_separators_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, "q.csv", 'question,A,B,solution\n"a, ""b""\nc?",1,2,A\nd?,1,1,B\n')
    assert "row 2 (line 4): answers gives A and B the same text: '1'" in refusal(path)
    assert read(path, OnBadRow.skip).questions[0].question == 'a, "b" c?'


def test_the_csv_field_limit_is_raised_while_reading_and_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    found = read(write(tmp_path, "q.csv", f"question,A,B,solution\n{'x' * 200_000},1,2,A\n"))
    assert len(found.questions[0].question) == 200_000
    assert csv.field_size_limit() == before


def test_a_json_file_may_stand_on_one_long_line(tmp_path: Path) -> None:
    rows = [GOOD | {"question": f"{i}?"} for i in range(12_000)]
    found = read(write(tmp_path, "q.json", json.dumps({"questions": rows})))
    assert len(found.questions) == 12_000
    assert found.questions[-1].id == "q:12000"


# --- bad rows ---

BAD_ROWS = [
    ("a text", "it is text; allowed: {"),
    (None, "it is null; allowed: {"),
    (GOOD | {"solutoin": "A"}, "Did you mean 'solution'?"),
    ({key: GOOD[key] for key in ("answers", "solution")}, "question is missing"),
    (GOOD | {"question": None}, "question is null, not text"),
    (GOOD | {"question": 7}, "question is the number 7, not text"),
    (GOOD | {"question": float("nan")}, "question is NaN, not text"),
    (GOOD | {"question": " \u00a0\n"}, "question is empty"),
    (GOOD | {"question": "half \ud83d"}, "question holds half of a surrogate pair"),
    (
        {key: GOOD[key] for key in ("question", "solution")},
        "answers is missing; allowed: one of answers, options, choices",
    ),
    (GOOD | {"options": ["80", "443"]}, "answers and options are given side by side"),
    (GOOD | {"answers": "80, 443"}, "answers is text; allowed: an object of letters and texts, or a list of texts"),
    (GOOD | {"answers": {"A": "80"}}, "answers has 1 options; allowed: 2 to 8"),
    (GOOD | {"answers": [str(i) for i in range(9)]}, "answers has 9 options; allowed: 2 to 8"),
    (GOOD | {"answers": {"A": "80", "C": "443"}}, "answers names its options 'A', 'C'; allowed for 2 options: A, B"),
    (GOOD | {"answers": {"a": None, **GOOD["answers"]}}, "answers names option A twice, as 'A' and 'a'"),
    (GOOD | {"answers": {"1": "80", "2": "443"}}, "answers names its options '1', '2'"),
    (GOOD | {"answers": {"A": "80", "B": ""}}, "answers.B is empty"),
    (GOOD | {"answers": {"A": 80, "B": "443"}}, "answers.A is the number 80, not text"),
    (GOOD | {"answers": ["80", True]}, "answers.B is true, not text"),
    (GOOD | {"answers": ["80", " 80 "]}, "answers gives A and B the same text: '80'"),
    (GOOD | {"answers": ["caf\u00e9", "cafe\u0301"]}, "answers gives A and B the same text"),
    ({key: GOOD[key] for key in ("question", "answers")}, "solution is missing; allowed: one of solution, answer"),
    (GOOD | {"answer": "B"}, "solution and answer are given side by side"),
    (GOOD | {"solution": "D"}, "solution is 'D', which names no option; allowed: one letter of A to C"),
    (GOOD | {"solution": ""}, "solution is '', which names no option"),
    (GOOD | {"solution": "B)"}, "solution is 'B)', which names no option"),
    (GOOD | {"solution": 1}, "solution is the number 1, not text"),
    (
        GOOD | {"solution": "A,C"},
        "solution is 'A,C': several right answers; allowed: one letter, or task=multiple_answer",
    ),
    (
        GOOD | {"solution": "a and c"},
        "solution is 'a and c': several right answers; allowed: one letter, or task=multiple_answer",
    ),
    (
        GOOD | {"solution": ["B"]},
        "solution is a list: several right answers; allowed: one letter, or task=multiple_answer",
    ),
    (GOOD | {"topic": 3}, "topic is the number 3, not text"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_refused_with_its_place_and_reason(tmp_path: Path, row: object, reason: str) -> None:
    jsonl = refusal(write(tmp_path, "q.jsonl", f"{json.dumps(GOOD)}\n\n{json.dumps(row)}\n"))
    assert "1 of 2 rows are bad" in jsonl
    assert "- row 2 (line 3): " in jsonl
    assert reason in jsonl
    in_json = refusal(write(tmp_path, "q.json", json.dumps({"questions": [GOOD, row]}, indent=1)))
    assert "- row 2 (line 12): " in in_json
    assert reason in in_json


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "x"', "it is not one JSON object: Expecting ',' delimiter: column 17"),
        ("question: x", "it is not one JSON object: Expecting value: column 1"),
        (json.dumps(GOOD) * 2, "it is not one JSON object: Extra data"),
        (json.dumps(GOOD)[:-1] + ', "solution": "A"}', "an object gives 'solution' more than once"),
        (
            '{"question": "x?", "answers": {"A": "1", "B": "2", "A": "3"}, "solution": "A"}',
            "an object gives 'A' more than once",
        ),
        (
            '{"question": "x?", "answers": ["1", "2"], "solution": [{"a": 1, "a": 2}]}',
            "an object gives 'a' more than once",
        ),
        ('{"question": ' + "9" * 5000 + ', "answers": ["1", "2"], "solution": "A"}', "question is the number inf"),
        ('{"question": -Infinity, "answers": ["1", "2"], "solution": "A"}', "question is the number -inf"),
    ],
)
def test_a_bad_json_line_is_a_bad_row(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, "q.jsonl", f"{json.dumps(GOOD)}\n{line}\n")
    assert f"row 2 (line 2): {reason}" in refusal(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x?,1,2,3", "it has 4 cells, the header has 5"),
        ("x?,1,2,3,A,", "it has 6 cells, the header has 5"),
        (" ", "it has 1 cells, the header has 5"),
        ("x?,1,2,,A", "answers.C is empty"),
        (",1,2,3,A", "question is empty"),
        ("x?,1,2,3,D", "the solution is 'D', which names no option; allowed: one letter of A to C"),
        ('x?,1,2,3,"A,B"', "solution is 'A,B': several right answers; allowed: one letter, or task=multiple_answer"),
    ],
)
def test_a_bad_csv_row(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, "q.csv", f"question,A,B,C,solution\n\n{line}\ny?,1,2,3,A\n")
    assert f"row 1 (line 3): {reason}" in refusal(path)


def test_all_bad_rows_are_listed_and_can_be_skipped(tmp_path: Path) -> None:
    rows = [GOOD] + [row for row, _ in BAD_ROWS] + [GOOD]
    path = write(tmp_path, "q.jsonl", "\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(caught.value.problems) == len(BAD_ROWS)
    assert "data.on_bad_row=skip" in caught.value.hint
    found = read(path, OnBadRow.skip)
    assert [question.id for question in found.questions] == ["q:1", f"q:{len(rows)}"], "ids do not move"
    assert found.skipped == tuple(problem.what for problem in caught.value.problems)
    with pytest.raises(DataError, match="1 of 1 rows are bad"):  # nothing would be left
        read(write(tmp_path, "q.jsonl", '{"question": ""}\n'), OnBadRow.skip)


def test_a_row_at_which_a_task_stumbles_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MULTIPLE_CHOICE, "read", lambda row, name: row["question"] + 1)
    shown = refusal(write(tmp_path, "q.jsonl", f"\n{json.dumps(GOOD)}\n"))
    assert "row 1 (line 2): can only concatenate str" in shown


def test_a_message_cannot_drive_the_terminal(tmp_path: Path) -> None:
    row = GOOD | {"solution": "\x1b[2J" + "x" * 500}
    screen = refusal(write(tmp_path, "q.json", json.dumps([row])))
    assert "\x1b" not in screen
    assert max(map(len, screen.splitlines())) < 200


# --- files that cannot be read at all ---


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("q.txt", "x", "its name ends in '.txt'"),
        ("q.json", "", "it is empty"),
        ("q.csv", " \n\n", "it is empty"),
        ("q.json", "[]", "it holds no questions"),
        ("q.csv", "question,A,B,solution\n", "it holds no questions"),
        ("q.json", '"text"', "its top level is text"),
        ("q.json", "{}", "its top level is an empty object"),
        ("q.json", '{"data": [], "version": 1}', "its top level is an object with the keys 'data', 'version'"),
        (
            "q.json",
            '{"questions": [], "version": 1}',
            "its top level is an object with the keys 'questions', 'version'",
        ),
        ("q.json", '{"questions": {}}', "its top level is an object with the keys 'questions'"),
        ("q.json", '{"questions": [], "questions": []}', "its top level is an object that gives 'questions' more than"),
        ("q.json", '{"questions": [\n{"question": "x', "Unterminated string starting at: line 2 column 14"),
        ("q.json", '{"questions": [\n{"question": "x"},\n', ": line 3 column 1; the file breaks off there"),
        ("q.json", json.dumps({"questions": [GOOD]}, indent=1)[:-9], "the file breaks off there"),
        ("q.json", json.dumps(GOOD) + "\n" + json.dumps(GOOD), "it holds JSON Lines, one object a line"),
        ("q.json", b"[\n\n\xff]", "it is not UTF-8 text: byte offset 3 (line 3) is 0xff"),
        ("q.csv", "question,A,B,solution\nx?,1,2,A\n".encode("utf-16"), "it is not UTF-8 text: byte offset 0"),
        ("q.jsonl", '{"a":' * 100_000, "nests lists or objects too deeply"),
        ("q.json", '{"questions": [' + "[" * 100_000 + "]" * 100_000 + "]}", "nests lists or objects too deeply"),
        ("q.jsonl", "x" * 1_000_001, "line 1 has 1.0 MB"),
        ("q.csv", "question,A,B,solution\n" + "x" * 1_200_000 + ",1,2,A", "line 2 has 1.2 MB"),
        ("q.csv", 'question,A,B,solution\n"x?,1,2,A\ny?,1,2,A\n', "the row that begins on line 2 is malformed"),
        ("q.csv", 'question,A,B,solution\n"' + "x\n" * 600_000, "the row that begins on line 2 is malformed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    assert reason in refusal(write(tmp_path, name, content))


@pytest.mark.parametrize("depth", [10, 500, 900, 980, 990, 1000, 1100, 2000])
def test_no_depth_of_nesting_escapes_as_a_traceback(tmp_path: Path, depth: int) -> None:
    row = f'{{"question": {"[" * depth}{"]" * depth}, "answers": ["1", "2"], "solution": "A"}}'
    for name, content in [("q.json", f"[{row}]"), ("q.jsonl", row)]:
        assert refusal(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("question;A;B;solution", "field 'question;A;B;solution' is not known"),
        ("A,B,solution", "question is missing"),
        ("question,A,B", "solution is missing; allowed: one of solution, answer"),
        ("question,A,B,solution,answer", "solution and answer are given side by side"),
        ("question,A,solution", "answers has 1 options; allowed: 2 to 8"),
        ("question,solution", "answers is missing; allowed: one of answers, options, choices"),
        ("question,A,C,solution", "answers names its options 'A', 'C'"),
        ("question,A,a,B,solution", "field 'A' is given twice"),
        ("question,A,A,B,solution", "the header names 'A' twice"),
        ("question,A,B,I,solution", "field 'I' is not known"),
        ("question,A,B,solution,notes", "field 'notes' is not known; allowed: question"),
        ("question,A,answers,solution", "the field 'A' is given beside a field of all options"),
    ],
)
def test_a_header_that_cannot_be_used_is_told_once(tmp_path: Path, header: str, reason: str) -> None:
    row = ",".join("a" * (k + 1) for k in range(header.count(",") + 1))
    screen = refusal(write(tmp_path, "q.csv", f"{header}\n{row}\n{row}\n"))
    assert screen.count(reason) == 1 and ("every row: " in screen or "header" in screen)


def test_a_missing_file_a_folder_and_a_file_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    assert "it is a folder" in refusal(tmp_path / "folder.json")
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 10**6)
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(3 * 10**6)
    assert "it has 3 MB" in refusal(tmp_path / "large.json")


def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROWS", 2)
    row = '{"question": "a", "options": ["b", "c"], "answer": "A"}\n'
    (tmp_path / "q.jsonl").write_text(row * 2)
    assert len(read(tmp_path / "q.jsonl").questions) == 2
    (tmp_path / "q.jsonl").write_text(row * 3)
    assert "it has more than 2 rows" in refusal(tmp_path / "q.jsonl")


# --- the real files ---


@pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")
@pytest.mark.parametrize(("size", "normalised"), [(80, 0), (500, 0), (2000, 8)])
def test_cybermetric_reads_without_a_bad_row(size: int, normalised: int) -> None:
    name = f"CyberMetric-{size}-v1"
    found = read_questions(Path(str(DATA_DIR)) / f"{name}.json", name, OnBadRow.error, MULTIPLE_CHOICE)
    assert len(found.questions) == size
    assert [sum(question.letter == letter for question in found.questions) for letter in "ABCD"] == [size // 4] * 4
    assert found.whitespace_normalised == normalised
    assert found.questions[16].id == f"CyberMetric-{size}-v1:17"


# --- the documentation ---


@pytest.mark.parametrize(("ending", "rows"), [("json", 1), ("jsonl", 2), ("csv", 2)])
def test_the_examples_in_the_documentation_are_read(tmp_path: Path, ending: str, rows: int) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    example = page.split(f"```{ending}\n")[1].split("```")[0]
    found = read(write(tmp_path, f"q.{ending}", example)).questions
    assert len(found) == rows
    assert {question.letter for question in found} == {"B"}


# --- content under another name ---


LINES = "".join(json.dumps(GOOD | {"question": f"Question {k}?"}) + "\n" for k in range(3))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "told", "typed"),
    [
        ("q.json", LINES, "it holds JSON Lines", "mv 'q.json' 'q.jsonl'"),
        ("q.json", "\ufeff\n" + LINES, "it holds JSON Lines", "mv 'q.json' 'q.jsonl'"),
        ("q.jsonl", json.dumps([GOOD]), "it holds one JSON list", "mv 'q.jsonl' 'q.json'"),
        ("q.jsonl", json.dumps([GOOD], indent=1), "it holds one JSON list", "mv 'q.jsonl' 'q.json'"),
        *(
            (f"q.{end}", POINTER, "q.{} is a Git LFS pointer", "git lfs pull")
            for end in ("json", "jsonl", "csv", "tsv")
        ),
    ],
)
def test_a_file_under_a_wrong_name_is_told_its_right_one(
    name: str, content: str, told: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = refusal(write(Path(), name, content))
    assert told.format(name.removeprefix("q.")) in shown and f"type:    {typed}" in shown


def test_a_plain_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert "it is a folder" in refusal(tmp_path / "plain")

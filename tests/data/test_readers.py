"""Question files: every documented shape reads the same, everything else is refused with its place and reason."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import MULTIPLE_CHOICE

from cyberlm.config.schema import OnBadRow
from cyberlm.data import readers, text_files
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.runtime.errors import DataError
from cyberlm.tasks.task import Example

GOOD = {"question": "Which port does HTTPS use?", "answers": {"A": "80", "B": "443", "C": "22"}, "solution": "B"}
READ = Example("q:1", "Which port does HTTPS use?", ("80", "443", "22"), 1)


def read(
    path: Path, columns: Mapping[str, Any] | None = None, on_bad_row: OnBadRow = OnBadRow.error, **settings: Any
) -> QuestionSet:
    return read_questions(path, "q", on_bad_row, MULTIPLE_CHOICE, columns, **settings)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, columns: Mapping[str, Any] | None = None, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, columns, **settings)
    return caught.value.screen()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.json", json.dumps({"questions": [GOOD]})),
        ("q.JSON", json.dumps([GOOD])),
        ("q.jsonl", "\r\n" + json.dumps(GOOD) + "\r\n\r\n"),
        ("q.json", json.dumps([GOOD | {"answers": {"c": "22", "a": "80", "b": "443"}, "solution": "b"}])),
        ("q.json", json.dumps([{"question": READ.question, "options": READ.options, "solution": "B"}])),
        ("q.json", json.dumps([{"question": READ.question, "choices": READ.options, "answer": "b"}])),
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


def test_fields_of_a_row() -> None:
    for row, read_as in (
        (GOOD | {"domain": "Network", "topic": "Ports"}, {"topic": "Network: Ports"}),
        (GOOD | {"topic": "Ports"}, {"topic": "Ports"}),
        (GOOD | {"domain": "Network"}, {"topic": "Network"}),
        (GOOD | {"answers": list("stuvwxyz"), "solution": "H"}, {"options": tuple("stuvwxyz"), "gold": 7}),
        (GOOD | {"answers": {"A": "chmod -r", "B": "chmod -R"}}, {"options": ("chmod -r", "chmod -R")}),
    ):
        assert MULTIPLE_CHOICE.read(row, "q:1") == replace(READ, **read_as)


def test_unicode_is_kept_and_white_space_is_normalised_and_counted(tmp_path: Path) -> None:
    odd = {"question": " Qué\u00a0 “port”\n\tist\u2011das? ", "answers": ["ﬁ\u200b", "café"], "solution": " A "}
    found = read(write(tmp_path, "q.json", json.dumps([odd, GOOD], ensure_ascii=False)))
    assert found.questions[0].question == "Qué “port” ist\u2011das?"
    assert found.questions[0].options == ("ﬁ\u200b", "café")
    assert found.whitespace_normalised == 1


def test_csv_cells_may_hold_separators_quotes_line_breaks_and_long_texts(tmp_path: Path) -> None:
    before = csv.field_size_limit(1000)
    content = f'question,A,B,solution\n"a, ""b""\nc?",1,2,A\nd?,1,1,B\n{"x" * 200_000},1,2,A\n'
    path = write(tmp_path, "q.csv", content)
    assert "row 2 (line 4): answers gives A and B the same text: '1'" in refusal(path)
    assert [item.question for item in read(path, on_bad_row=OnBadRow.skip).questions] == ['a, "b" c?', "x" * 200_000]
    assert csv.field_size_limit(before) == 1000


def test_a_json_file_may_stand_on_one_long_line(tmp_path: Path) -> None:
    rows = [GOOD | {"question": f"{i}?"} for i in range(12_000)]
    found = read(write(tmp_path, "q.json", json.dumps({"questions": rows})))
    assert len(found.questions) == 12_000
    assert found.questions[-1].id == "q:12000"


BAD_ROWS = [
    ("a text", "it is text; allowed: {"),
    (None, "it is null; allowed: {"),
    (GOOD | {"solutoin": "A"}, "Did you mean 'solution'?"),
    ({"answers": ["1", "2"], "solution": "A"}, "question is missing"),
    (GOOD | {"question": None}, "question is null, not text"),
    (GOOD | {"question": float("nan")}, "question is NaN, not text"),
    (GOOD | {"question": " \u00a0\n"}, "question is empty"),
    (GOOD | {"question": "half \ud83d"}, "question holds half of a surrogate pair"),
    ({"question": "x", "solution": "A"}, "answers is missing; allowed: one of answers, options, choices"),
    (GOOD | {"options": ["80", "443"]}, "answers and options are given side by side"),
    (GOOD | {"answers": "80, 443"}, "answers is text; allowed: an object of letters and texts, or a list of texts"),
    (GOOD | {"answers": {"A": "80"}}, "answers has 1 options; allowed: 2 to 8"),
    (GOOD | {"answers": [str(i) for i in range(9)]}, "answers has 9 options; allowed: 2 to 8"),
    (GOOD | {"answers": {"A": "80", "C": "443"}}, "answers names its options 'A', 'C'; allowed for 2 options: A, B"),
    (GOOD | {"answers": {"a": None, **GOOD["answers"]}}, "answers names option A twice, as 'A' and 'a'"),
    (GOOD | {"answers": {"A": "80", "B": ""}}, "answers.B is empty"),
    (GOOD | {"answers": ["80", True]}, "answers.B is true, not text"),
    (GOOD | {"answers": ["80", " 80 "]}, "answers gives A and B the same text: '80'"),
    (GOOD | {"answers": ["caf\u00e9", "cafe\u0301"]}, "answers gives A and B the same text"),
    ({"question": "x", "answers": ["1", "2"]}, "solution is missing; allowed: one of solution, answer"),
    (GOOD | {"answer": "B"}, "solution and answer are given side by side"),
    (GOOD | {"solution": "D"}, "solution is 'D', which names no option; allowed: one letter of A to C"),
    (GOOD | {"solution": "B)"}, "solution is 'B)', which names no option"),
    (GOOD | {"solution": 1}, "solution is the number 1, not text"),
    (GOOD | {"solution": "A,C"}, "solution is 'A,C': several right answers; allowed: one letter, or task=multiple_"),
    (GOOD | {"solution": "a and c"}, "solution is 'a and c': several right answers"),
    (GOOD | {"solution": ["B"]}, "solution is a list: several right answers; allowed: one letter, or task=multiple_"),
    (GOOD | {"topic": 3}, "topic is the number 3, not text"),
]


def test_bad_rows_are_told_with_their_places_and_reasons_and_can_be_skipped(tmp_path: Path) -> None:
    rows = [GOOD, *(row for row, _ in BAD_ROWS), GOOD]
    path = write(tmp_path, "q.jsonl", "\n\n".join(map(json.dumps, rows)))
    in_json = write(tmp_path, "q.json", json.dumps({"questions": [GOOD, BAD_ROWS[2][0]]}, indent=1))
    assert "- row 2 (line 12): " in refusal(in_json) and BAD_ROWS[2][1] in refusal(in_json)
    with pytest.raises(DataError) as caught:
        read(path)
    told = [problem.what for problem in caught.value.problems]
    for number, (what, (_, reason)) in enumerate(zip(told, BAD_ROWS, strict=True), start=2):
        assert what.startswith(f"row {number} (line {2 * number - 1}): ") and reason in what
    assert f"{len(BAD_ROWS)} of {len(rows)} rows are bad" in caught.value.screen()
    assert "data.on_bad_row=skip" in caught.value.hint
    found = read(path, on_bad_row=OnBadRow.skip)
    assert [question.id for question in found.questions] == ["q:1", f"q:{len(rows)}"], "ids do not move"
    assert found.skipped == tuple(told)
    with pytest.raises(DataError, match="1 of 1 rows are bad"):  # nothing would be left
        read(write(tmp_path, "q.jsonl", '{"question": ""}\n'), on_bad_row=OnBadRow.skip)


def test_bad_lines_of_json_and_csv(tmp_path: Path) -> None:
    for line, reason in (
        ('{"question": "x"', "it is not one JSON object: Expecting ',' delimiter: column 17"),
        ("question: x", "it is not one JSON object: Expecting value: column 1"),
        (json.dumps(GOOD) * 2, "it is not one JSON object: Extra data"),
        (json.dumps(GOOD)[:-1] + ', "solution": "A"}', "an object gives 'solution' more than once"),
        ('{"question": "x?", "solution": [{"a": 1, "a": 2}]}', "an object gives 'a' more than once"),
        ('{"question": ' + "9" * 5000 + ', "answers": ["1", "2"], "solution": "A"}', "question is the number inf"),
        ('{"question": -Infinity, "answers": ["1", "2"], "solution": "A"}', "question is the number -inf"),
    ):
        path = write(tmp_path, "q.jsonl", f"{json.dumps(GOOD)}\n{line}\n")
        assert f"row 2 (line 2): {reason}" in refusal(path)
    for line, reason in (
        ("x?,1,2,3", "it has 4 cells, the header has 5"),
        ("x?,1,2,3,A,", "it has 6 cells, the header has 5"),
        (" ", "it has 1 cells, the header has 5"),
        ("x?,1,2,,A", "answers.C is empty"),
        (",1,2,3,A", "question is empty"),
        ("x?,1,2,3,D", "the solution is 'D', which names no option; allowed: one letter of A to C"),
        ('x?,1,2,3,"A,B"', "solution is 'A,B': several right answers; allowed: one letter, or task=multiple_answer"),
    ):
        path = write(tmp_path, "q.csv", f"question,A,B,C,solution\n\n{line}\ny?,1,2,3,A\n")
        assert f"row 1 (line 3): {reason}" in refusal(path)


def test_a_row_at_which_a_task_stumbles_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MULTIPLE_CHOICE, "read", lambda row, name: row["question"] + 1)
    shown = refusal(write(tmp_path, "q.jsonl", f"\n{json.dumps(GOOD)}\n"))
    assert "row 1 (line 2): can only concatenate str" in shown


def test_a_message_cannot_drive_the_terminal(tmp_path: Path) -> None:
    row = GOOD | {"solution": "\x1b[2J" + "x" * 500}
    screen = refusal(write(tmp_path, "q.json", json.dumps([row])))
    assert "\x1b" not in screen
    assert max(map(len, screen.splitlines())) < 200


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("q.txt", "x", "its name ends in '.txt'"),
        ("q.csv", " \n\n", "it is empty"),
        ("q.json", "[]", "it holds no questions"),
        ("q.csv", "question,A,B,solution\n", "it holds no questions"),
        ("q.json", '"text"', "its top level is text"),
        ("q.json", "{}", "its top level is an empty object"),
        ("q.json", '{"questions": [], "version": 1}', "top level is an object with the keys 'questions', 'version'"),
        ("q.json", '{"questions": {}}', "its top level is an object with the keys 'questions'"),
        ("q.json", '{"questions": [], "questions": []}', "its top level is an object that gives 'questions' more than"),
        ("q.json", '{"questions": [\n{"question": "x', "Unterminated string starting at: line 2 column 14"),
        ("q.json", '{"questions": [\n{"question": "x"},\n', ": line 3 column 1; the file breaks off there"),
        ("q.json", b"[\n\n\xff]", "it is not UTF-8 text: byte offset 3 (line 3) is 0xff"),
        ("q.csv", "question,A,B,solution\nx?,1,2,A\n".encode("utf-16"), "it is not UTF-8 text: byte offset 0"),
        ("q.jsonl", '{"a":' * 100_000, "nests lists or objects too deeply"),
        ("q.json", '{"questions": [' + "[" * 100_000 + "]" * 100_000 + "]}", "nests lists or objects too deeply"),
        ("q.jsonl", "x" * 1_000_001, "line 1 has 1.0 MB"),
        ("q.csv", "question,A,B,solution\n" + "x" * 1_200_000 + ",1,2,A", "line 2 has 1.2 MB"),
        ("q.csv", 'question,A,B,solution\n"x?,1,2,A\ny?,1,2,A\n', "the row that begins on line 2 is malformed"),
        ("q.csv", "question;A;B;solution\nx?;1;2;A\n", "its first row is one cell with ';' in it"),
        ("q.csv", 'question,A,B,solution\n"' + "x\n" * 600_000, "the row that begins on line 2 is malformed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    assert reason in refusal(write(tmp_path, name, content))


@pytest.mark.parametrize("depth", [10, 900, 990, 2000])
def test_no_depth_of_nesting_escapes_as_a_traceback(tmp_path: Path, depth: int) -> None:
    row = f'{{"question": {"[" * depth}{"]" * depth}, "answers": ["1", "2"], "solution": "A"}}'
    for name, content in [("q.json", f"[{row}]"), ("q.jsonl", row)]:
        assert refusal(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("A,B,solution", "question is missing"),
        ("question,A,B", "solution is missing; allowed: one of solution, answer"),
        ("question,solution", "answers is missing; allowed: one of answers, options, choices"),
        ("question,A,C,solution", "answers names its options 'A', 'C'"),
        ("question,A,a,B,solution", "field 'A' is given twice"),
        ("question,A,A,B,solution", "the header names 'A' twice"),
        ("question,A,B,I,solution", "field 'I' is not known; allowed: question"),
        ("question,A,answers,solution", "the field 'A' is given beside a field of all options"),
    ],
)
def test_a_header_that_cannot_be_used_is_told_once(tmp_path: Path, header: str, reason: str) -> None:
    row = ",".join("a" * (k + 1) for k in range(header.count(",") + 1))
    screen = refusal(write(tmp_path, "q.csv", f"{header}\n{row}\n{row}\n"))
    assert screen.count(reason) == 1 and ("every row: " in screen or "header" in screen)


def test_a_missing_file_a_folder_and_one_too_large_or_with_too_many_rows(tmp_path: Path, monkeypatch) -> None:
    assert "No such file" in refusal(tmp_path / "none.json")
    for name in ("folder.json", "plain"):
        (tmp_path / name).mkdir()
        assert "it is a folder" in refusal(tmp_path / name)
    monkeypatch.setattr(readers, "MAX_ROWS", 2)
    assert len(read(write(tmp_path, "q.jsonl", f"{json.dumps(GOOD)}\n" * 2)).questions) == 2
    assert "it has more than 2 rows" in refusal(write(tmp_path, "q.jsonl", f"{json.dumps(GOOD)}\n" * 3))
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 10**6)
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(3 * 10**6)
    assert "it has 3 MB" in refusal(tmp_path / "large.json")


def test_the_examples_in_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    for ending, rows in (("json", 1), ("jsonl", 2), ("csv", 2)):
        example = page.split(f"```{ending}\n")[1].split("```")[0]
        found = read(write(tmp_path, f"q.{ending}", example)).questions
        assert [question.letter for question in found] == ["B"] * rows


def test_content_of_another_kind_is_told_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = json.dumps(GOOD) + "\n" + json.dumps(GOOD)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name, content, told, typed in (
        ("q.json", lines, "it holds JSON Lines, one object a line", "mv 'q.json' 'q.jsonl'"),
        ("q.json", "\ufeff\n" + lines, "it holds JSON Lines", "mv 'q.json' 'q.jsonl'"),
        ("q.jsonl", json.dumps([GOOD]), "it holds one JSON list", "mv 'q.jsonl' 'q.json'"),
        ("q.jsonl", json.dumps([GOOD], indent=1), "it holds one JSON list", "mv 'q.jsonl' 'q.json'"),
        ("q.json", pointer, "q.json is a Git LFS pointer", "git lfs pull"),
        ("q.jsonl", pointer, "q.jsonl is a Git LFS pointer", "git lfs pull"),
        ("q.csv", pointer, "q.csv is a Git LFS pointer", "git lfs pull"),
    ):
        shown = refusal(write(Path(), name, content))
        assert told in shown and f"type:    {typed}" in shown

"""Files of any shape: `data.columns` says which column is which, and what would read a file is proposed."""

import gzip
import io
import json
import shlex
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from support import MULTIPLE_CHOICE, config_of
from test_readers import read, refusal, write

from cyberlm.data import text_files
from cyberlm.data.readers import read_questions
from cyberlm.data.sources import load_sources
from cyberlm.tasks.task import Example, make_task

PORTS = Example("q:1", "Which port does HTTPS use?", ("80", "443", "22"), 1)
CTI = {"question": "Question", "options": ["Option A", "Option B", "Option C"], "answer": "GT"}
NUMBERED = {"question": 1, "options": [2, 3, 4], "answer": 5}


CSV = "URL,Question,Option A,Option B,Option C,Prompt,GT\nx,Which port does HTTPS use?,80,443,22,y,b\n"
ROW = {"Question": PORTS.question, "Option A": "80", "Option B": "443", "Option C": "22", "GT": "B", "URL": "x"}


def parquet(*contents: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(contents)), stream)
    return stream.getvalue()


FORMATS = {
    "q.csv": CSV,
    "q.tsv": CSV.replace(",", "\t"),
    "q.json": json.dumps([ROW]),
    "q.jsonl": json.dumps(ROW),
    "q.parquet": parquet(ROW),
    "q.csv.gz": gzip.compress(CSV.encode()),
    "q.jsonl.gz": gzip.compress(json.dumps(ROW).encode()[:9]) + gzip.compress(json.dumps(ROW).encode()[9:]),
    "q.JSON.GZ": gzip.compress(json.dumps([ROW]).encode()),
    "q.parquet.gz": gzip.compress(parquet(ROW)),
}


# with names for ids: gzip writes the time into the bytes, and all workers must collect the same tests
@pytest.mark.parametrize(("name", "content"), FORMATS.items(), ids=FORMATS)
def test_every_format_is_read_by_its_columns(name: str, content: str | bytes, tmp_path: Path) -> None:
    found = read(write(tmp_path, name, content), CTI)
    assert found.questions == (PORTS,)
    assert "URL" in found.unread and set(found.unread) <= {"URL", "Prompt"}


def test_a_table_without_a_header_is_read_by_number(tmp_path: Path) -> None:
    path = write(tmp_path, "q.csv", 'Which port does HTTPS use?,80,443,22,B\n"Is it\n""on""?",no,yes,"a, b",c\n')
    found = read(path, NUMBERED)
    assert [(item.question, item.letter) for item in found.questions] == [(PORTS.question, "B"), ('Is it "on"?', "C")]
    assert found.unread == ()
    short = write(tmp_path, "short.csv", "Which port does HTTPS use?,80,443,22,B\nWhich?,80,B\n")
    assert "row 2 (line 2): it has 3 cells, the first row has 5" in refusal(short, NUMBERED)
    assert "there is no column '7'" in refusal(path, NUMBERED | {"answer": 7})
    assert "numbers in .csv and .tsv only" in refusal(write(tmp_path, "q.json", json.dumps([ROW])), NUMBERED)


def test_what_is_packed_or_binary_is_refused_where_it_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, table = gzip.compress(CSV.encode()), parquet(ROW)
    assert "its gzip stream breaks off" in refusal(write(tmp_path, "q.csv.gz", packed[:-9]), CTI)
    broken = packed[:20] + b"\xff" * 9 + packed[29:]
    assert "it cannot be unpacked" in refusal(write(tmp_path, "q.csv.gz", broken), CTI)
    assert "it is not Parquet" in refusal(write(tmp_path, "q.parquet", table[:-30]), CTI)
    assert "it is not Parquet" in refusal(write(tmp_path, "q.parquet", CSV), CTI)
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 1000)
    bomb = write(tmp_path, "q.csv.gz", gzip.compress(CSV.encode() + b" " * 2000))
    assert "it unpacks to more than" in refusal(bomb, CTI)


def test_a_folder_of_the_datasets_library_is_read_by_split(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=datasets.Dataset.from_list([ROW] * 2), test=datasets.Dataset.from_list([ROW]))
    both.save_to_disk(str(tmp_path / "both"))
    both["test"].save_to_disk(str(tmp_path / "one"))
    one = read(tmp_path / "one", CTI)
    assert one.questions == (PORTS,) and one.sha256 == read(tmp_path / "one", CTI).sha256
    assert len(read(tmp_path / "both", CTI, split="train").questions) == 2
    screen = refusal(tmp_path / "both", CTI)
    assert "it holds 2 splits" in screen and "allowed: train, test" in screen and "data.split=train" in screen
    assert "it has no split 'dev'" in refusal(tmp_path / "both", CTI, split="dev")
    assert "data.split=test of a file" in refusal(write(tmp_path, "q.csv", CSV), CTI, split="test")


def test_options_and_answers_in_every_form(tmp_path: Path) -> None:
    plain, labelled = ["80", "443", "22"], ["A: 80", "B: 443", "C: 22"]
    for options, answer, answer_is in (
        (plain, "b", None),
        ({"A": "80", "B": "443", "C": "22"}, "B", None),
        ({"text": plain, "label": ["A", "B", "C"]}, "B", None),
        ({"text": plain, "label": ["1", "2", "3"]}, "2", None),
        ([{"text": text, "label": letter} for text, letter in zip(plain, "ABC", strict=True)], "B", None),
        (plain, 1, "index0"),
        (plain, "1", "index0"),
        (plain, 2, "index1"),
        (plain, "443", "text"),
        (labelled, "B", None),
        (labelled, "B: 443", "text"),
        (["(a) 80", "(b) 443", "(c) 22"], "443", "text"),
        (["A. 80", "B. 443", "C. 22"], "B", None),
    ):
        path = write(tmp_path, "q.jsonl", json.dumps({"q": PORTS.question, "choices": options, "key": answer}))
        columns = {"question": "q", "options": "choices", "answer": "key", "answer_is": answer_is}
        (found,) = read(path, columns).questions
        assert (found.options, found.gold) == (PORTS.options, 1)


def test_option_letters_are_stripped_only_where_each_option_has_its_own_and_counted(tmp_path: Path) -> None:
    options = [["A) x", "B) y"], ["A) x", "C) y"], ["A.1", "B.2"], ["A-frame", "B-tree"], ["a. x", "b. y"]]
    content = "\n".join(json.dumps({"question": f"{k}?", "options": o, "answer": "A"}) for k, o in enumerate(options))
    found = read(write(tmp_path, "q.jsonl", content))
    assert [list(item.options) for item in found.questions] == [["x", "y"], *options[1:4], ["x", "y"]]
    assert found.notes == {"option letters stripped": 2}
    same = json.dumps({"question": "x?", "options": ["A) x", "B) x"], "answer": "A"})
    assert "gives A and B the same text: 'x'" in refusal(write(tmp_path, "same.jsonl", same))


def test_an_answer_that_does_not_fit_its_form_is_refused(tmp_path: Path) -> None:
    for answer, answer_is, reason in (
        (3, "index0", "is '3'; allowed: 0 to 2"),
        (0, "index1", "is '0'; allowed: 1 to 3"),
        (1.5, "index0", "is '1.5'; allowed: 0 to 2"),
        (True, "index0", "is 'True'; allowed: 0 to 2"),
        ("8080", "text", "is '8080', which is the text of no option"),
        (443, "text", "is the number 443; allowed: the text of an option"),
        (1, None, "is the number 1, not text"),
    ):
        row = json.dumps({"question": "x?", "options": ["80", "443", "22"], "answer": answer})
        assert reason in refusal(write(tmp_path, "q.jsonl", row), {"answer_is": answer_is})


def test_ids_of_the_file_are_kept_and_none_is_given_twice(tmp_path: Path) -> None:
    lines = [json.dumps(ROW | {"URL": url}) for url in ("x-1", "x-2", "x-1")]
    columns = CTI | {"id": "URL"}
    found = read(write(tmp_path, "q.jsonl", "\n".join(lines[:2])), columns)
    assert [item.id for item in found.questions] == ["q:x-1", "q:x-2"]
    assert "row 3 (line 3): another row has the id 'x-1'" in refusal(
        write(tmp_path, "q.jsonl", "\n".join(lines)), columns
    )
    numbers = "\n".join(json.dumps(ROW | {"URL": 10**7 + k}) for k in range(2))
    assert read(write(tmp_path, "q.jsonl", numbers), columns).questions[1].id == "q:10000001"
    assert "id is null" in refusal(write(tmp_path, "q.jsonl", json.dumps(ROW | {"URL": None})), columns)


HEADERLESS = "".join(f"Which is number {k} of them?,{k},x{k},y{k},{'ABC'[k % 3]}\n" for k in range(6))
LETTERED = [
    {"id": str(k), "question": f"Which is number {k}?", "choices": choices, "answer": choices[k % 3], "topics": ["t"]}
    for k, choices in enumerate([f"A: {k}", f"B: x{k}", f"C: y{k}"] for k in range(6))
]
INDEXED = [{"frage, (neu)": f"No.{k}?", "o1": "x", "o2": "y", "o3": "z", "cop": k % 3, "domain": "d"} for k in range(6)]
CTI_TSV = "URL\tQuestion\tOption A\tOption B\tOption C\tPrompt\tGT\n" + "".join(
    f"http://x/{k}\tWhich is {k}?\t{k}\tx{k}\t{'' if k == 4 else 'y'}\tWhich is {k}? A) B) C)\t{'ABc'[k % 3]}\n"
    for k in range(6)
)


@pytest.mark.parametrize(
    ("name", "content", "proposed", "count"),
    [
        (
            *("cti.tsv", CTI_TSV),
            "data.columns.question=Question 'data.columns.options=[Option A,Option B,Option C]' data.columns.answer=GT "
            "data.on_bad_row=skip",
            5,
        ),
        ("mmlu.csv", HEADERLESS, "data.columns.question=1 'data.columns.options=[2,3,4]' data.columns.answer=5", 6),
        (
            *("lettered.json", json.dumps(LETTERED)),
            "data.columns.question=question data.columns.options=choices data.columns.answer=answer "
            "data.columns.answer_is=text",
            6,
        ),
        (
            *("indexed.jsonl", "\n".join(map(json.dumps, INDEXED))),
            """'data.columns.question='"'"'frage, (neu)'"'"'' 'data.columns.options=[o1,o2,o3]' """
            "data.columns.answer=cop data.columns.topic=domain data.columns.answer_is=index0",
            6,
        ),
    ],
)
def test_what_would_read_a_file_is_proposed_and_reads_it(
    name: str, content: str, proposed: str, count: int, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    screen = refusal(path)
    assert f"These overrides read {count} of its 6 rows:\n    {proposed}" in screen
    assert "with the first row:\n    " in screen and len(screen.splitlines()) < 24
    config = config_of("data=file", f"data.path={path}", *shlex.split(proposed))
    (found,) = load_sources(config.data, MULTIPLE_CHOICE)
    assert len(found.questions) == count and len({item.gold for item in found.questions}) == 3


@pytest.mark.parametrize("answers", [("A", "B,C"), (["A"], ["B", "C"]), ("B", "AC")])
def test_several_right_answers_propose_their_task(answers: tuple[Any, Any], tmp_path: Path) -> None:
    lines = [json.dumps({"q": f"Number {k}?", "o": ["x", "y", "z"], "key": answers[k % 2]}) for k in range(6)]
    path = write(tmp_path, "q.jsonl", "\n".join(lines))
    typed = "task=multiple_answer data.columns.question=q data.columns.options=o data.columns.answer=key"
    assert f"These overrides read 6 of its 6 rows:\n    {typed}\n" in refusal(path) + "\n"
    config = config_of("data=file", f"data.path={path}", "prompt=text", *typed.split())
    (found,) = load_sources(config.data, make_task(config))
    assert len({item.answer for item in found.questions}) == 2


def test_what_a_proposal_leaves_to_the_reader(tmp_path: Path) -> None:
    """Indices that may count from 0 or 1; columns that nothing reads; a column that is not there."""
    lines = (json.dumps({"q": f"Number {k}?", "options": ["x", "y", "z"], "key": 1 + k % 2}) for k in range(6))
    screen = refusal(write(tmp_path, "q.jsonl", "\n".join(lines)))
    assert "data.columns.answer_is=index0\n" in screen and "data.columns.answer_is=index1 as well" in screen
    screen = refusal(write(tmp_path, "q.csv", "name,age\nalice,3\nbob,4\n"))
    assert "    name: 'alice'" in screen and "'data.columns.options=[COLUMN,COLUMN]'" in screen
    missing = refusal(write(tmp_path, "q.csv", CSV), CTI | {"answer": "Key"})
    assert "there is no column 'Key'" in missing and "data.columns.answer=GT" in missing


def test_named_sources_read_files_of_their_shape(tmp_path: Path) -> None:
    header = "URL\tQuestion\tOption A\tOption B\tOption C\tOption D\tPrompt\tGT\n"
    cti = write(tmp_path, "cti-mcq.tsv", header + "u\tWhich?\tw\tx\ty\tz\tp\tb\nu\tWhy?\tw\tx\t\tz\tp\tA\n")
    mmlu = write(tmp_path, "computer_security_test.csv", "Which?,w,x,y,z,B\nWhy?,w,x,y,z,D\n")
    for name, path, letters, skipped in (("cti_mcq", cti, "B", 1), ("mmlu_computer_security", mmlu, "BD", 0)):
        settings = config_of(f"data={name}").data
        found = read_questions(path, name, settings.on_bad_row, MULTIPLE_CHOICE, settings.columns)
        assert "".join(item.letter for item in found.questions) == letters and len(found.skipped) == skipped
        assert settings.licence != "unknown"

"""Sources of questions. Downloads go to a local server; nothing here touches the network. All rows of files at hand."""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from omegaconf import OmegaConf
from support import MULTIPLE_CHOICE, config_of, evaluation_of

from cyberlm.config.compose import conf_folder
from cyberlm.config.schema import DataConfig, OnBadRow
from cyberlm.data.readers import QuestionSet
from cyberlm.data.sources import SAMPLE, load_sources
from cyberlm.runtime import cache as cache_module
from cyberlm.runtime.errors import ConfigError, DataError
from cyberlm.tasks.cvss_vector import base_score
from cyberlm.tasks.task import make_task

DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")
needs_files = pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")

ROW = {"question": "Which port does HTTPS use?", "answers": {"A": "80", "B": "443"}, "solution": "B"}
CONTENT = json.dumps(
    {"questions": [ROW | {"question": f"Which port does service {i} use?"} for i in range(2000)]}
).encode()
FILE = "CyberMetric-2000-v1.json"


def cybermetric(**settings: Any) -> DataConfig:
    pinned = OmegaConf.to_container(OmegaConf.load(conf_folder() / "data" / "cybermetric.yaml"))
    return DataConfig(**(pinned | {"dir": None} | settings))


def load(config: DataConfig) -> tuple[QuestionSet, QuestionSet | None]:
    main, *held_out = load_sources(config, MULTIPLE_CHOICE)
    return main, held_out[0] if held_out else None


def refusal(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        load(config)
    return caught.value.screen()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server:
    """Serves `content` at every path. `announced` is the Content-Length it claims (None for none)."""

    def __init__(self) -> None:
        self.content, self.announced, self.status = CONTENT, len(CONTENT), 200
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                self.send_response(outer.status)
                if outer.announced is not None:
                    self.send_header("Content-Length", str(outer.announced))
                self.end_headers()
                self.wfile.write(outer.content)

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def source(self, **settings: Any) -> DataConfig:
        files = {2000: {"file": FILE, "commit": "2f5818b", "sha256": sha256(CONTENT)}}
        return cybermetric(address=f"{self.address}/{{commit}}/{{file}}", files=files, **settings)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "new" / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def cached() -> list[str]:
    return [path.name for path in Path(os.environ["CYBERLM_CACHE_DIR"]).iterdir()]


def test_a_file_is_downloaded_once_and_read_from_the_cache_after(server, tmp_path, monkeypatch, capsys) -> None:
    main, held_out = load(server.source())
    assert held_out is None
    assert (main.name, len(main.questions)) == ("CyberMetric-2000-v1", 2000)
    assert main.source == f"{server.address}/2f5818b/{FILE}"
    assert main.sha256 == sha256(CONTENT)
    assert main.questions[6].id == "CyberMetric-2000-v1:7"
    assert f"Downloading {FILE}: {len(CONTENT)}/{len(CONTENT)} bytes" in capsys.readouterr().out
    assert load(server.source()) == (main, None)
    assert server.paths == [f"/2f5818b/{FILE}"]
    assert cached() == [FILE], "no partial file stays behind"
    monkeypatch.delenv("CYBERLM_CACHE_DIR")
    monkeypatch.setattr(cache_module, "user_cache_path", lambda name: tmp_path / name)
    load(server.source())
    assert (tmp_path / "cyberlm" / FILE).read_bytes() == CONTENT, "without a variable the cache is the user's"


def test_a_torn_download_leaves_nothing_and_the_next_run_starts_afresh(server: Server) -> None:
    server.content = CONTENT[:-100]
    assert f"the connection closed after {len(CONTENT) - 100} of {len(CONTENT)} bytes" in refusal(server.source())
    assert cached() == []
    server.announced = None  # a torn download of unknown length is found by its hash
    assert sha256(CONTENT[:-100]) in refusal(server.source())
    assert cached() == []
    server.content = CONTENT
    assert len(load(server.source())[0].questions) == 2000, "a server need not say the length"


def test_another_hash_is_refused_with_both_in_a_download_and_in_the_cache(server: Server) -> None:
    server.content = CONTENT.replace(b'"B"}', b'"A"}', 1)
    screen = refusal(server.source())
    assert f"What {server.address}/2f5818b/{FILE} sent is not the CyberMetric-2000-v1" in screen
    assert f"its sha256 is {sha256(server.content)}" in screen
    assert f"allowed: {sha256(CONTENT)}" in screen
    assert cached() == []
    path = Path(os.environ["CYBERLM_CACHE_DIR"]) / FILE
    path.write_bytes(CONTENT + b"\n")
    screen = refusal(server.source())
    assert f"its sha256 is {sha256(path.read_bytes())}" in screen
    assert f"rm '{path}'" in screen
    assert path.is_file(), "the user removes it"


def test_no_network_gives_the_address_and_every_way_out(server: Server, tmp_path: Path) -> None:
    screen = refusal(server.source(dir=str(tmp_path)))
    assert f"there is no {FILE} in it" in screen
    assert f"curl -fLo '{tmp_path}/{FILE}' {server.address}" in screen
    assert server.paths == [], "a folder without the file is refused, and nothing is downloaded"
    server.status = 404
    assert "HTTP Error 404: Not Found" in refusal(server.source())
    server.address = "http://127.0.0.1:9"
    screen = refusal(server.source())
    assert f"http://127.0.0.1:9/2f5818b/{FILE}" in screen
    for way in ("data.dir=FOLDER", "CYBERLM_DATA_DIR=FOLDER", "CYBERLM_CACHE_DIR", "python train.py data=sample"):
        assert way in screen


@needs_files
def test_the_real_files_pass_and_one_changed_byte_is_refused_with_both_hashes(tmp_path: Path) -> None:
    main, held_out = load(cybermetric(dir=DATA_DIR, test_size=500))
    assert held_out is not None
    assert (len(main.questions), len(held_out.questions), main.whitespace_normalised) == (2000, 500, 8)
    assert [sum(item.letter == letter for item in main.questions) for letter in "ABCD"] == [500] * 4
    assert main.source == f"{DATA_DIR}/CyberMetric-2000-v1.json"
    path = Path(shutil.copy(f"{DATA_DIR}/CyberMetric-80-v1.json", tmp_path))
    path.chmod(0o644)
    changed = path.read_bytes().replace(b'"solution": "B"', b'"solution": "C"', 1)
    path.write_bytes(changed)
    screen = refusal(cybermetric(size=80, dir=str(tmp_path)))
    assert sha256(changed) in screen
    assert cybermetric().files[80]["sha256"] in screen


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_local_file_is_read_in_place_by_its_hash_its_reader_and_its_columns(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "cti.txt"
    path.write_text("URL\tQuestion\tOption A\tOption B\tGT\nhttp://x\tWhich port?\t80\t443\tb\n")
    columns = {"question": "Question", "options": ["Option A", "Option B"], "answer": "GT"}
    pinned = DataConfig(name="cti", address=f"{scheme}{path}", sha256=sha256(path.read_bytes()), columns=columns)
    main, _ = load(dataclasses.replace(pinned, reader="tsv"))
    assert (main.name, main.source) == ("cti", str(path))
    (found,) = main.questions
    assert (found.question, found.options, found.letter) == ("Which port?", ("80", "443"), "B")
    assert "its name ends in '.txt'" in refusal(pinned)
    other = dataclasses.replace(pinned, reader="tsv", columns=columns | {"answer": "Key"})
    assert "there is no column 'Key', which data.columns names" in refusal(other)
    assert "that is pinned by its sha256" in refusal(dataclasses.replace(pinned, sha256="0" * 64))


def test_what_a_source_does_not_pin_is_asked_for_before_anything_is_read() -> None:
    for typed, problem in (
        ("+data.files={1:{file:x}} data.size=2", "data.size=2: sample has no such file"),
        ("data.address='https://x/{commit}/q.json' data.sha256=abc", "without data.commit"),
        ("data.address=https://x/q.json data.sha256=null", "without data.sha256"),
        ("data.address='x{y'", "data.address=x{y"),
    ):
        with pytest.raises(ConfigError, match=problem):
            config_of("data=sample", *typed.split())


def test_your_own_file_alone_and_with_a_test_file(tmp_path: Path) -> None:
    train, test, same_name = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "held" / "train.json"
    same_name.parent.mkdir()
    for path in (train, test, same_name):
        path.write_text(json.dumps([ROW]) if path.suffix == ".json" else json.dumps(ROW))
    config = DataConfig(name="mcq", path=str(train))
    main, held_out = load(config)
    assert (main.name, main.source, held_out) == ("train", str(train), None)
    for path, name in [(test, "test"), (same_name, "train-test")]:
        main, held_out = load(dataclasses.replace(config, test_path=str(path)))
        assert held_out is not None
        assert (main.questions[0].id, held_out.questions[0].id) == ("train:1", f"{name}:1")
    test.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"solution": "C"}))
    assert "row 2" in refusal(dataclasses.replace(config, path=str(test)))
    main, _ = load(dataclasses.replace(config, path=str(test), on_bad_row=OnBadRow.skip))
    assert (len(main.questions), len(main.skipped)) == (1, 1)


def test_a_file_of_a_package_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for config in (SAMPLE, config_of("data=sample").data):
        main, held_out = load(config)
        assert (main.name, main.source, len(main.questions)) == ("sample", "cyberlm/data/sample.json", 360)
        assert held_out is None
    for address, words in (("nowhere/x.json", "No module named 'nowhere'"), ("cyberlm/data/gone.json", "No such file")):
        assert words in refusal(DataConfig(name="mine", address=f"package://{address}"))


FOLDER = Path(DATA_DIR or ".").resolve().parent
"""Folder of folders: `tram`, `cti_bench`, `mal_api` beside that of CyberMetric."""


def read_task(source: str, *overrides: str, folder: str = ""):
    """Questions of a source; its test is skipped where `folder` is given and is not beside CYBERLM_DATA_DIR."""
    if folder and not (FOLDER / folder).is_dir():
        pytest.skip(f"no folder {folder} beside CYBERLM_DATA_DIR")
    given = (f"data.dir={FOLDER / folder}",) if folder else ()
    config = evaluation_of(f"data={source}", *given, *overrides)
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
    questions = read_task(source, folder=folder).questions
    counts = len(questions), len({q.answer for q in questions}), len({q.group for q in questions})
    assert counts == (rows, classes, groups)
    assert max(len(q.question.split()) for q in questions) <= (101 if source == "mal_api" else 1000)


def test_answers_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "calls.txt").write_text("7,7,1\n3,4\n")
    (tmp_path / "types.txt").write_text("Virus\nWorms\n")
    given = [f"data.address=file://{tmp_path}/calls.txt", "data.sha256=null", "data.answer_sha256=null"]
    found = read_task("mal_api", *given, f"data.answer_address=file://{tmp_path}/types.txt")
    assert [(q.question, q.answer) for q in found.questions] == [("7x2 1", "Virus"), ("3 4", "Worms")]
    assert found.questions[1].id == "calls:2"
    assert found.source.endswith("calls.txt")
    assert found.notes == {"repeated calls written once, with their number": 1}
    (tmp_path / "types.txt").write_text("Virus\n")
    with pytest.raises(DataError, match="2 and 1 lines"):
        read_task("mal_api", *given, f"data.answer_address=file://{tmp_path}/types.txt")


def test_always_7_5_deviates_by_1_54_on_cti_vsp() -> None:
    questions = read_task("cti_vsp", folder="cti_bench").questions
    assert len(questions) == 1000
    assert round(mean(abs(7.5 - base_score(question.answer)) for question in questions), 2) == 1.54

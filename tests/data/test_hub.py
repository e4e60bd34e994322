"""Datasets of the hub and folders of data files. The hub's own cache is made by hand; nothing touches the network."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import MULTIPLE_CHOICE, TINY, compose, config_of

from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.data import hub
from cyberlm.data.readers import QuestionSet
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import read_manifest
from cyberlm.runs.resume import check_settings, keep_commits
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, DataError
from cyberlm.runtime.files import read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: secqa_v1
  data_files:
  - {split: dev, path: data/secqa_v1_dev.csv}
  - {split: test, path: data/secqa_v1_test.csv}
- config_name: secqa_v2
  data_files:
  - {split: test, path: data/secqa_v2_test.csv}
---
"""
HEADER = "Question,A,B,C,D,Answer,Explanation\n"


def csv(name: str, count: int) -> str:
    rows = (
        f"Which is {name} number {k} of {k * 7}?,x{k},y{k},z{k},w{k},{'ABCD'[k % 4]},it is so" for k in range(count)
    )
    return HEADER + "\n".join(rows) + "\n"


def repository(folder: Path) -> Path:
    """Writes the files of a dataset repository in the shape of SecQA's."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for name, count in (("secqa_v1_dev", 5), ("secqa_v1_test", 40), ("secqa_v2_test", 20)):
        (folder / "data" / f"{name}.csv").write_text(csv(name, count))
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the repository zefang-liu/secqa at one commit."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stored = tmp_path / "hub" / "datasets--zefang-liu--secqa"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(COMMIT)
    return repository(stored / "snapshots" / COMMIT)


def load(*overrides: str) -> tuple[QuestionSet, ...]:
    return load_sources(config_of(*overrides).data, MULTIPLE_CHOICE)


def refusal(*overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        load(*overrides)
    return caught.value.screen()


def test_a_dataset_of_the_hub_is_read_by_subset_and_split(cached: Path, tmp_path: Path) -> None:
    config = config_of("data=secqa").data
    (main,) = load_sources(config, MULTIPLE_CHOICE)
    assert (main.name, len(main.questions)) == ("secqa", 40)
    assert main.source == f"https://huggingface.co/datasets/zefang-liu/secqa/tree/{COMMIT}"
    assert main.unread == ("Explanation",) and main.questions[6].answer == "z6"
    assert config.commit == COMMIT, "a run is pinned to what it has read"
    (harder,) = load("data=secqa", "data.subset=secqa_v2", f"data.commit={COMMIT}")
    assert len(harder.questions) == 20 and harder.sha256 == main.sha256
    columns = ("data.columns.question=Question", "data.columns.options=[A,B,C,D]", "data.columns.answer=Answer")
    own = ("data=file", "data.path=zefang-liu/secqa", "data.subset=secqa_v1", *columns)
    train_set, test_set = load(*own, "data.split=test", "data.test_split=dev")
    assert (train_set.name, test_set.name, len(test_set.questions)) == ("secqa", "secqa-test", 5)
    (tmp_path / "mine.csv").write_text(csv("mine", 6))
    held_out = load("data=secqa", f"data.test_path={tmp_path / 'mine.csv'}")
    assert [len(file.questions) for file in held_out] == [40, 6]


def test_a_local_copy_of_a_repository_is_the_same_and_runs_no_code(cached: Path, tmp_path: Path) -> None:
    folder = repository(tmp_path / "secqa")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (copy,) = load("data=secqa", f"data.path={folder}")
    (main,) = load("data=secqa")
    assert (copy.questions, copy.sha256) == (main.questions, main.sha256)
    (folder / "secqa.py").write_text("raise SystemExit")
    assert "scripts are no longer supported" in refusal("data=secqa", f"data.path={folder}")


def test_a_folder_without_a_card_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    rows = [{"question": f"Is {k} a prime?", "options": ["yes", "no"], "answer": "A"} for k in range(3)]
    for name, count in (("train", 3), ("test", 1)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows[:count])))
    train_set, test_set = load("data=file", f"data.path={tmp_path}", "data.split=train", "data.test_split=test")
    assert (len(train_set.questions), len(test_set.questions)) == (3, 1)
    (tmp_path / "train.jsonl").write_text('{"question": "x"')
    assert "the datasets library cannot load it" in refusal("data=file", f"data.path={tmp_path}", "data.split=train")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("subset=null", ("it holds 2 subsets", "secqa_v1, secqa_v2", "data.subset=secqa_v1")),
        ("subset=secqa", ("it has no subset 'secqa'", "secqa_v1, secqa_v2")),
        ("split=null", ("it holds 2 splits", "dev, test", "data.split=dev")),
        ("split=train", ("it has no split 'train'", "dev, test")),
        ("test_split=test", ("data.test_split=test is the training split itself",)),
        ("columns.answer=Solution", ("there is no column 'Solution'",)),
        ("commit=v9", ("zefang-liu/secqa at v9", "not in the local cache, and HF_HUB_OFFLINE is set")),
        ("path=nobody/nothing", ("nobody/nothing", "HF_HUB_OFFLINE is set", "data=file data.path=FOLDER")),
        ("path=a/b/c", ("data.path=a/b/c: there is no such file", "a hub id (owner/name)")),
        ("path=a/b.jsonl.gz", ("data.path=a/b.jsonl.gz: there is no such file",)),
    ],
)
def test_what_cannot_be_had_is_told_on_one_screen(override: str, told: tuple[str, ...], cached: Path) -> None:
    screen = refusal("data=secqa", f"data.{override}")
    assert all(text in screen for text in told), screen
    assert len(screen.splitlines()) < 24


def test_without_a_network_the_cache_is_read_and_said(cached: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    folder, commit = hub.dataset_folder("zefang-liu/secqa", None, "CC BY-NC-SA 4.0")
    assert (folder, commit) == (cached, COMMIT)
    assert f"commit {COMMIT} of the local cache is read, as the Hugging Face hub cannot" in capsys.readouterr().out
    with pytest.raises(DataError, match="nobody/nothing") as caught:
        hub.dataset_folder("nobody/nothing", None, "unknown")
    assert "the Hugging Face hub cannot be reached" in caught.value.screen()


def test_a_run_records_the_commit_and_goes_on_with_it(cached: Path, tmp_path: Path) -> None:
    few = ("evaluation.generate=false", "evaluation.base=false", "data=secqa", "prompt.system=")
    config = build_config(compose(*TINY, *few), TrainConfig)
    train(config, tmp_path / "run")
    assert read_json(tmp_path / "run" / "provenance.json")["data_commit"] == COMMIT
    assert COMMIT in (tmp_path / "run" / "config.yaml").read_text()
    assert COMMIT in read_manifest(tmp_path / "run" / "split_manifest.json")["sources"][0]["source"]
    again = build_config(compose(*TINY, *few), TrainConfig)
    assert again.data.commit is None
    keep_commits(again, tmp_path / "run")
    check_settings(again, tmp_path / "run")  # the same command goes on
    assert again.data.commit == COMMIT

"""Folders of runs and sweeps: names that are not taken, one owner, nothing written over."""

import datetime
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from forks import side_by_side
from omegaconf import OmegaConf
from typed import type_line

from cyberlm.runs import run_folder

NOON = SimpleNamespace(datetime=SimpleNamespace(now=lambda: datetime.datetime(2026, 1, 2, 12)))


def test_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "datetime", NOON)
    monkeypatch.chdir(tmp_path)
    for expected in ("tiny_lora", "tiny_lora_2", "tiny_lora_3"):
        folder = Path(run_folder.run_folder(None, "tiny", "lora"))
        assert folder == Path("outputs") / f"2026-01-02_12-00-00_{expected}"
        folder.mkdir(parents=True)
    assert run_folder.run_folder("outputs/before", "tiny", "lora") == "outputs/before"
    for run, runs, expected in ((None, [], "tiny"), ("outputs/x", [], "x"), (None, ["x", "y"], "2_models")):
        assert run_folder.evaluation_folder("tiny", run, runs).endswith(f"_evaluate_{expected}")


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing makes up a name, the same in every process; the folder is claimed later."""
    monkeypatch.setattr(run_folder, "datetime", NOON)
    monkeypatch.chdir(tmp_path)
    run_folder.register_resolvers()

    def claim(wait: Callable[[], object]) -> str:
        config = OmegaConf.create({"hydra": {"run": {"dir": "${run_folder:null,same}"}}})
        assert config.hydra.run.dir.endswith("_same")
        wait()
        return run_folder.claim_folder(config, "hydra.run.dir", lambda folder: None).name.partition("same")[2]

    assert side_by_side(4, claim) == ["", "_2", "_3", "_4"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("hydra.run.dir=used", "used holds results already, which are not written over.\n  - there is results.json"),
        ("hydra.run.dir=kept", "kept holds results already, which are not written over.\n  - there is checkpoints/b"),
        ("-m seed=1,2 hydra.sweep.dir=swept", "swept holds results already, which are not written over."),
        (f"hydra.run.dir={'x' * 300}", f"The run's folder cannot be made or written to:\n  - {'x' * 300}: File name"),
        ("-m seed=1,2 hydra.sweep.dir=/proc/x", "The run's folder cannot be made or written to:\n  - /proc/x"),
        ("hydra.job.chdir=true", "A run does not change its working directory:\n  - hydra.job.chdir=true"),
        ("-m seed=1,2 hydra.sweep.subdir=x", "All jobs of the sweep would write into one folder:\n  - hydra.sweep.sub"),
    ],
)
def test_folder_that_cannot_be_used(tmp_path: Path, line: str, shown: str) -> None:
    for name in ("used/results.json", "kept/checkpoints/best.ckpt", "swept/0/results.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    before = set(tmp_path.rglob("*"))
    ended = type_line(tmp_path, "train", "model=tiny_random", *shlex.split(line))
    assert ended.code == 1 and ended.err.startswith(shown)
    assert set(tmp_path.rglob("*")) == before


def test_a_sweep_is_alone_in_its_folder(tmp_path: Path) -> None:
    def other(_: Callable[[], object]) -> str:
        return type_line(tmp_path, "train", "-m", "seed=1,2", "hydra.sweep.dir=sweep").err

    with run_folder.locked_folder(tmp_path / "sweep"):
        (shown,) = side_by_side(1, other)
    assert "is in use by another process" in shown

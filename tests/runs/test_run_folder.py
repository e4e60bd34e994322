"""Folders of runs and sweeps: names that are not taken, one owner, nothing written over."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
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
    assert run_folder.evaluation_folder("tiny", None, []).endswith("_evaluate_tiny")
    assert run_folder.evaluation_folder("tiny", "outputs/x", []).endswith("_evaluate_x")
    assert run_folder.evaluation_folder("tiny", None, ["x", "y"]).endswith("_evaluate_2_models")


CLAIM = """
import datetime, sys
from types import SimpleNamespace
from omegaconf import OmegaConf
from cyberlm.runs import run_folder
noon = datetime.datetime(2026, 1, 2, 12)
run_folder.datetime = SimpleNamespace(datetime=SimpleNamespace(now=lambda: noon))
run_folder.register_resolvers()
config = OmegaConf.create({"hydra": {"run": {"dir": "${run_folder:null,same}"}}})
config.hydra.run.dir  # composing has made up a name: the same in every process
print("ready", flush=True)
sys.stdin.readline()
print(run_folder.claim_folder(config, "hydra.run.dir", lambda folder: None).name)
"""


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    line = [sys.executable, "-c", CLAIM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(line, cwd=tmp_path, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = sorted(process.communicate(timeout=60)[0].strip().partition("same")[2] for process in processes)
    assert found == ["", "_2", "_3", "_4"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("hydra.run.dir=used", "used holds results already, which are not written over.\n  - there is results.json"),
        ("hydra.run.dir=kept", "kept holds results already, which are not written over.\n  - there is checkpoints/b"),
        ("-m seed=1,2 hydra.sweep.dir=swept", "swept holds results already, which are not written over."),
        (f"hydra.run.dir={'x' * 300}", f"The run's folder cannot be made or written to:\n  - {'x' * 300}: File name"),
        (f"-m seed=1,2 hydra.sweep.dir={'x' * 300}", "The run's folder cannot be made or written to:"),
        ("-m seed=1,2 hydra.sweep.dir=/proc/x", "The run's folder cannot be made or written to:\n  - /proc/x"),
        ("hydra.job.chdir=true", "A run does not change its working directory:\n  - hydra.job.chdir=true"),
        ("-m seed=1,2 hydra.job.chdir=true", "A run does not change its working directory:\n  - hydra.job.chdir=true"),
        ("-m seed=1,2 hydra.sweep.subdir=x", "All jobs of the sweep would write into one folder:\n  - hydra.sweep.sub"),
        ("logger=tensorboard logger.tensorboard.save_dir=/x", "Runs write into their own folder only:\n  - logger.t"),
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
    code = "import sys; from pathlib import Path; from cyberlm.runs.run_folder import locked_folder\n"
    code += "with locked_folder(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    line = [sys.executable, "-c", code, str(tmp_path / "sweep")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "mine\n"
        ended = type_line(tmp_path, "train", "-m", "seed=1,2", "hydra.sweep.dir=sweep")
        assert "is in use by another process" in ended.err
        other.communicate()

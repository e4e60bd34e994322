"""Jobs of a sweep: the line that each process is given, and how its end is told."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import side_by_side
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support import compose
from typed import type_line

from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.runs import jobs
from cyberlm.runtime.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]


def test_environment_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can import the package, and jobs side by side share the cores."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # launch sets it for itself
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def given(cores: int = 8, **launcher: int) -> dict[str, str]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        return jobs._child_environment(OmegaConf.create({"launcher": launcher}))

    assert not {"OMP_NUM_THREADS", "HYDRA_FULL_ERROR"} & given().keys()
    threads = [given(n_jobs=3), given(n_jobs=-1), given(1, n_jobs=2)]
    assert [environment["OMP_NUM_THREADS"] for environment in threads] == ["2", "1", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert given(n_jobs=2)["OMP_NUM_THREADS"] == "5"
    monkeypatch.setenv("PYTHONPATH", "mine")
    assert given()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "mine"]
    monkeypatch.delenv("PYTHONPATH")
    assert given()["PYTHONPATH"] == str(ROOT)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs one job of a sweep with a stand-in for its process; returns the objective, the line and the status."""

    def run_job(code: int, status: dict[str, object] | None, *overrides: str, sweep="sweep", direction=None):
        folder = tmp_path / sweep / "0"
        lines = []

        def stand_in(line: list[str], _: object) -> int:
            lines.append(line)
            if status is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "status.json").write_text(json.dumps(status))
            return code

        hydra_config = {
            "runtime": {"output_dir": str(folder)},
            "overrides": {"task": ["group=other", *overrides]},
            "sweep": {"dir": str(folder.parent)},
            "job": {"config_name": "train", "num": 0},
            "launcher": {},
            "sweeper": {"direction": direction},
        }
        monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_config))
        monkeypatch.setattr(jobs.signals, "run_forwarding", stand_in)
        composed = compose("model=tiny_random", "logger=none", *overrides)
        objective = jobs.run_in_child("train", TrainConfig, composed)
        written = folder / "status.json"
        return objective, lines, json.loads(written.read_text()) if written.is_file() else None

    return run_job


FINISHED = {"state": "finished", "objective": 0.75, "reason": ""}
RUNNING = {"state": "running", "objective": None, "reason": ""}
STOPPED = {"state": "stopped", "objective": None, "reason": "SIGTERM"}
FAILED = {"state": "failed", "objective": None, "reason": "ModelError: no model"}


@pytest.mark.parametrize(
    ("code", "status", "objective", "reason"),
    [
        (0, FINISHED, -0.75, ""),
        (0, {**FINISHED, "objective": 1e30}, jobs.WORST_OBJECTIVE, ""),
        (0, {**FINISHED, "objective": None}, jobs.WORST_OBJECTIVE, ""),
        (1, FAILED, jobs.WORST_OBJECTIVE, "ModelError: no model"),
        (75, STOPPED, jobs.WORST_OBJECTIVE, "SIGTERM"),
        (-9, RUNNING, jobs.WORST_OBJECTIVE, "killed by SIGKILL"),
        (-15, None, jobs.WORST_OBJECTIVE, "killed by SIGTERM"),
        (3, None, jobs.WORST_OBJECTIVE, "exit code 3"),
        (0, None, jobs.WORST_OBJECTIVE, "exit code 0"),
    ],
)
def test_how_a_job_ended(job, code: int, status: dict[str, object] | None, objective: float, reason: str) -> None:
    found, lines, written = job(code, status, "seed=3")
    assert found == objective
    assert len(lines) == 1
    state = "stopped" if status is STOPPED else "failed" if reason else "finished"
    assert (written["state"], written["reason"]) == (state, reason)


def test_higher_is_better_in_what_a_sweep_gets(job) -> None:
    for monitor, reported in (("option_nll", -0.75), ("accuracy", 0.75)):
        found, _, _ = job(0, FINISHED, f"trainer.monitor={monitor}", sweep=monitor, direction="maximize")
        assert found == reported > jobs.WORST_OBJECTIVE
    with pytest.raises(ConfigError, match="would look for the worst job"):
        job(0, FINISHED, direction="minimize")


def test_job_repeats_the_command(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "mine"])
    _, (line,), _ = job(0, FINISHED, "seed=3", "prompt.system='a, b'")
    assert line == [
        *(sys.executable, "-m", "cyberlm", "train", "--config-name=train"),
        f"--config-dir={tmp_path / 'mine'}",
        *("seed=3", "prompt.system='a, b'"),
        *("group='sweep'", "hydra.mode=RUN", f"hydra.run.dir='{tmp_path / 'sweep' / '0'}'"),
    ]


def test_job_that_is_there_goes_on(job, tmp_path: Path) -> None:
    """As a launcher requeues it, or a sweep is started again."""
    folder = tmp_path / "sweep" / "0"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=3\n- group='sweep'\n")
    (folder / "status.json").write_text(json.dumps(STOPPED))
    found, (line,), written = job(0, FINISHED, "seed=3")
    assert line[-2:] == ["trainer.resume=auto", "hydra.output_subdir=.hydra_resumed"]
    assert (found, written["state"]) == (-0.75, "finished")
    found, lines, _ = job(1, FAILED, "seed=3")
    assert (found, lines) == (-0.75, [])
    with pytest.raises(RunError, match="holds results already"):
        job(0, FINISHED, "seed=4")


def test_further_process_of_a_job_leaves_its_status_to_the_first(job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    _, lines, written = job(75, None, "seed=3")
    assert (len(lines), written) == (1, None)


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [("4,7", 1, ["4", "4", "7"]), ("0,1,2,3,4,5", 2, ["0,1", "2,3", "4,5"]), ("0", 1, ["None"] * 3)],
)
def test_jobs_side_by_side_have_gpus_of_their_own(monkeypatch, tmp_path, visible, devices, expected) -> None:
    """Three jobs at a time; the third shares GPUs where there are fewer."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = OmegaConf.create({"launcher": {"n_jobs": 3}, "sweep": {"dir": str(tmp_path)}})

    def work(wait: Callable[[], object]) -> str:
        with jobs._gpus(config, devices) as environment:
            wait()
        return str(environment.get("CUDA_VISIBLE_DEVICES"))

    assert side_by_side(3, work) == expected


ODD_NAMES = ("a=b: it's", "a,b [1](b){b}", 'a"b\\c', "a\\'b\\", "@a", "-a", ".a", "ü;%#~")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_job_finds_a_folder_of_any_name(job, name: str, tmp_path: Path) -> None:
    """Hydra reads the folder as it is; the group is a name that loggers take."""
    _, (line,), _ = job(0, FINISHED, sweep=name)
    given = {item.key_or_group: item.value() for item in OverridesParser.create().parse_overrides(line[-3:])}
    assert given["hydra.run.dir"] == str(tmp_path / name / "0")
    assert build_config(compose("model=tiny_random", line[-3]), TrainConfig).group == jobs.as_name(name)


def test_folder_of_a_job_that_cannot_be_made(tmp_path: Path) -> None:
    subdir = f"hydra.sweep.subdir={'x' * 300}${{hydra.job.num}}"
    ended = type_line(tmp_path, "train", "-m", "model=tiny_random", "seed=1,2", subdir)
    assert ended.code == 1
    assert "The folder of a run cannot be made.\n  - " in ended.err and "xx0: File name too long" in ended.err


def test_job_of_a_broken_rule_is_not_started(job, capsys: pytest.CaptureFixture[str]) -> None:
    objective, lines, written = job(0, FINISHED, "method=qlora", "quant=none", "seed=-1")
    assert (objective, lines) == (jobs.WORST_OBJECTIVE, [])
    reason = "seed=-1; method=qlora quant=none: QLoRA is LoRA on a 4-bit base"
    assert written == {"state": "failed", "objective": None, "reason": reason}
    assert "The configuration has 2 problems:" in capsys.readouterr().err

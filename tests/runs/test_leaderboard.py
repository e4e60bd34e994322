"""The leaderboard over jobs however they ended, and one sweep with a job that is killed."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from results_support import COST, named, results
from typed import TRAIN, run_python
from wandb_support import wandb_run

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import Results
from cyberlm.evaluation.results import read_status, write_results, write_status
from cyberlm.runs import leaderboard as sweeps
from cyberlm.runs.leaderboard import LeaderboardCallback, leaderboard, show_leaderboard
from cyberlm.runtime.errors import RunError


def found(objective: float, accuracy: float, nll: float | None = None, **changes: Any) -> Results:
    """Of a run chosen by accuracy, as older ones are; with `nll`, of one chosen by it, of the same accuracy."""
    metrics = named(Metric("accuracy", accuracy), Metric("gold_nll", 1.25), Metric("ece", 0.1, place="evidence"))
    run = results(
        metrics={"tuned": metrics},
        objective=objective if nll is None else nll,
        monitor=None if nll is None else "option_nll",
        validation={} if nll is None else {"accuracy": objective, "option_nll": nll},
        cost=replace(COST, trainable_parameters=1234, seconds={"load": 1.4, "train": 3.4}),
    )
    return replace(run, **changes)


def make_job(folder: Path, overrides: list[str], state: str | None, reason: str = "") -> Path:
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    if state is not None:
        write_status(folder, state, reason=reason)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Jobs 0, 4 and 10 finished, 1 failed, 2 was killed with the whole sweep, 3 was never started."""
    jobs = {
        0: ("finished", 0.5, 0.9),
        4: ("finished", 0.75, 0.6),
        10: ("finished", 0.5, 0.95),
        1: ("failed", None, None),
        2: ("running", None, None),
        3: (None, None, None),
    }
    for number, (state, objective, accuracy) in jobs.items():
        overrides = ["model=tiny_random", f"method.lora.rank={number}", "group='mine'", "hydra.run.dir=x", "sweep=x"]
        overrides += ["+method.lora.use_dora=true"] if number == 4 else []
        reason = "ModelError: no model, none" if state == "failed" else ""
        job = make_job(tmp_path / str(number), overrides, state, reason)
        if objective is not None:
            write_results(found(objective, accuracy), job)
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


HEADER = (
    "rank,job,state,val option nll,val accuracy,model,method.lora.rank,method.lora.use_dora,test accuracy,"
    "test gold_nll,trainable,seconds,reason"
)


def test_leaderboard_file(sweep: Path) -> None:
    """Validation ranks, the first job of equals first; the test accuracy does not; what did not finish comes last."""
    (sweep / "4" / "report.html").touch()
    show_leaderboard(sweep)
    assert '<a href="4/report.html">4</a>' in (sweep / "report.html").read_text("utf-8")
    assert (sweep / "leaderboard.csv").read_text().splitlines() == [
        HEADER,
        "1,4,finished,,0.7500,tiny_random,4,true,0.6000,1.2500,1234,5,",
        "2,0,finished,,0.5000,tiny_random,0,,0.9000,1.2500,1234,5,",
        "3,10,finished,,0.5000,tiny_random,10,,0.9500,1.2500,1234,5,",
        '4,1,failed,,,tiny_random,1,,,,,,"ModelError: no model, none"',
        "5,2,killed,,,tiny_random,2,,,,,,",
        "6,3,not started,,,tiny_random,3,,,,,,",
    ]


def test_option_nll_ranks_and_accuracy_where_it_chose_the_weights_of_any_job(tmp_path: Path) -> None:
    """Differences behind the fourth decimal count; equals go by the other figure, before the order of the jobs."""
    figures = [(0.75, 0.90001), (0.50, 0.9), (0.75, 0.9), (0.75, 1.2)]
    for number, (accuracy, nll) in enumerate(figures):
        write_results(found(accuracy, 0.5, nll), make_job(tmp_path / str(number), [], "finished"))
    rows = leaderboard(tmp_path)
    assert [row["job"] for row in rows] == ["2", "1", "0", "3"]
    assert [(row["val option nll"], row["val accuracy"]) for row in rows[:2]] == [
        ("0.9000", "0.7500"),
        ("0.9000", "0.5000"),
    ]
    write_results(found(0.6, 0.5), make_job(tmp_path / "4", [], "finished"))
    assert [row["job"] for row in leaderboard(tmp_path)] == ["2", "0", "3", "4", "1"]


def test_leaderboard_again_after_a_job_was_repeated(sweep: Path) -> None:
    show_leaderboard(sweep)
    write_status(sweep / "3", "finished", 0.9)
    write_results(found(0.9, 0.1), sweep / "3")
    assert [row["job"] for row in show_leaderboard(sweep)] == ["3", "4", "0", "10", "1", "2"]
    with (sweep / "leaderboard.csv").open(newline="") as stream:
        assert [row["job"] for row in csv.DictReader(stream)] == ["3", "4", "0", "10", "1", "2"]


def test_what_is_the_same_everywhere_is_not_printed_but_what_was_found(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(sweeps, "print_leaderboard", shown.extend)
    show_leaderboard(sweep)
    assert list(shown[0]) == [name for name in HEADER.split(",") if name != "model"]
    alike = tmp_path / "alike"
    for number in (0, 1):
        job = make_job(alike / str(number), ["model=tiny_random", f"seed={number}"], "finished")
        write_results(found(0.5, 0.5), job)
    shown.clear()
    show_leaderboard(alike)
    assert [(row["val accuracy"], row["test accuracy"], row["seed"]) for row in shown] == [
        ("0.5000", "0.5000", "0"),
        ("0.5000", "0.5000", "1"),
    ]


def test_metrics_of_any_job_are_columns(sweep: Path) -> None:
    more = {"tuned": named(Metric("accuracy", 0.6), Metric("my_metric", 0.25), Metric("rouge2", None))}
    write_results(found(0.75, 0.6, metrics=more), sweep / "4")
    first, second, *_ = show_leaderboard(sweep)
    assert (first["job"], first["test accuracy"], first["test my_metric"]) == ("4", "0.6000", "0.2500")
    assert (second["test my_metric"], first["test gold_nll"]) == ("", "") and "test rouge2" not in first


def test_evaluations_of_models_as_they_are(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.5, 0.6)):
        metrics = {"base": named(Metric("accuracy", accuracy))}
        job = make_job(tmp_path / str(number), [f"seed={number}"], "finished")
        write_results(replace(found(0.0, accuracy), metrics=metrics, objective=None, cost=None), job)
    rows = leaderboard(tmp_path)
    assert [(row["job"], row["val accuracy"], row["test accuracy"]) for row in rows] == [
        ("0", "", "0.5000"),
        ("1", "", "0.6000"),
    ]


def test_job_alone_shows_all_its_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_job(tmp_path / "0", ["model=tiny_random"], "failed", "DataError: no data")
    rows = show_leaderboard(tmp_path)
    assert rows[0]["model"] == "tiny_random"
    assert "DataError: no data" in capsys.readouterr().out


def test_job_without_a_record_of_hydra(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    assert leaderboard(tmp_path)[0]["state"] == "not started"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_jobs(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="holds no jobs"):
        leaderboard(tmp_path / name)


def test_jobs_that_are_named_after_their_overrides(tmp_path: Path) -> None:
    """As `hydra.sweep.subdir=${hydra.job.override_dirname}` names them; a value may hold a slash."""
    (tmp_path / "multirun.yaml").touch()
    for name in ("seed=10", "seed=9", "data.path=a/b.json,seed=1"):
        write_results(found(0.5, 0.5), make_job(tmp_path / name, [f"x={name}"], "finished"))
    (tmp_path / "seed=9" / "wandb").mkdir()
    rows = show_leaderboard(tmp_path)
    assert [row["job"] for row in rows] == ["data.path=a/b.json,seed=1", "seed=9", "seed=10"]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("finished", "finished"), ""),
        (("finished", "failed"), "1 of 2 jobs have not finished.\n"),
        (("failed", "failed"), "2 of 2 jobs have not finished.\n"),
        ((), "{} holds no jobs of a sweep.\n"),  # as `seed=range(1,1)` makes one
    ],
)
def test_a_sweep_in_which_no_job_finished_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], states: tuple[str, ...], said: str
) -> None:
    for number, state in enumerate(states):
        write_results(found(0.5, 0.5), make_job(tmp_path / str(number), [], state))
    ended = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with contextlib.nullcontext() if "finished" in states else pytest.raises(SystemExit, match="1"):
        LeaderboardCallback().on_multirun_end(ended)
    assert capsys.readouterr().out.endswith(said.format(tmp_path))
    assert (tmp_path / "leaderboard.csv").is_file() == bool(states)


def test_a_job_takes_no_more_where_there_are_more_of_them(tmp_path: Path) -> None:
    """Neither time nor memory: its results are read once, and of them only the row is kept."""
    seconds, peaks = {}, {}
    for count in (10, 80):
        sweep = tmp_path / f"{count}"
        for number in range(count):
            write_results(found(0.5, 0.5), make_job(sweep / f"{number}", [f"seed={number}"], "finished"))
        begun = time.process_time()
        leaderboard(sweep)
        seconds[count] = (time.process_time() - begun) / count
        tracemalloc.start()
        leaderboard(sweep)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds[80] < 3 * seconds[10]
    assert (peaks[80] - peaks[10]) / 70 < 5_000


def test_a_job_that_has_ended_leaves_no_configuration_with_hydra() -> None:
    ended = JobReturn(cfg=OmegaConf.create({"seed": 1}), hydra_cfg=OmegaConf.create({"hydra": {}}))
    LeaderboardCallback().on_job_end(OmegaConf.create({}), ended)
    assert (ended.cfg, ended.hydra_cfg) == (None, None)


# --------------------------------------------------------------------------------------------- a sweep, for real


@pytest.mark.slow
def test_a_sweep_in_a_folder_of_an_odd_name(tmp_path: Path) -> None:
    """One job that works and, in a second sweep, two that break a rule."""
    folder = tmp_path / "a=b, it's [c]: {d}"
    name = r"hydra.sweep.dir='a=b, it\'s [c]: {d}'"
    line = (TRAIN, "-m", *SMALL, *CHOSEN, "logger=none", "evaluation.base=false")
    subdir = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    short = "hydra.job.config.override_dirname.exclude_keys=[model,data,prompt,logger]"
    done = run_python(tmp_path, *line, "seed=1", name, subdir, short)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())
    assert row["state"] == "finished" and row["job"].endswith(",seed=1,trainer.accelerator=cpu")
    done = run_python(tmp_path, *line, "seed=-1,-2", "hydra.sweep.dir=bad")
    assert done.returncode == 1, done.stderr
    assert "2 of 2 jobs have not finished." in done.stdout and "Traceback" not in done.stderr


SMALL = ("model=tiny_random", "data=sample", "data.max_train=16", "data.max_validation=8", "data.max_test=8")
CHOSEN = ("evaluation.generate=false", "prompt=letter", "trainer.accelerator=cpu")


def child_of(sweep_process: subprocess.Popen[str], folder: Path, timeout: float) -> psutil.Process:
    """The process of the job whose run folder is `folder`, once it has begun its run."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert sweep_process.poll() is None, "the sweep has ended already"
        status = read_status(folder)
        if status is not None and status.state == "running":
            for child in psutil.Process(sweep_process.pid).children():
                if f"hydra.run.dir='{folder}'" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError(f"no job began in {folder} within {timeout} s")


@pytest.mark.slow
def test_sweep_outlives_a_killed_job(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    line = [sys.executable, TRAIN, "-m", *SMALL, *CHOSEN]
    line += ["method=lora,qlora", "method.lora.rank=2,4", "logger=wandb", f"hydra.sweep.dir={folder}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HYDRA"))}
    environment |= {"HOME": str(tmp_path), "CYBERLM_CACHE_DIR": str(tmp_path / "cache"), "COLUMNS": "160"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True)
    try:
        child_of(process, folder / "1", timeout=120).send_signal(signal.SIGKILL)
        code = process.wait(timeout=300)
    finally:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            left.kill()
        process.kill()
    shown = (tmp_path / "log").read_text()
    assert code == 0, shown
    assert "Traceback" not in shown
    assert "job 1 failed (exit code -9); the sweep continues" in shown

    with (folder / "leaderboard.csv").open(newline="") as stream:
        rows = {row["job"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"0", "1", "2", "3"}
    states = {job: (row["state"], row["reason"]) for job, row in rows.items()}
    assert states == {
        "0": ("finished", ""),
        "1": ("failed", "killed by SIGKILL"),
        "2": ("finished", ""),
        "3": ("finished", ""),
    }
    assert rows["1"]["rank"] == "4"
    chosen = {job: (row["method"], row["method.lora.rank"]) for job, row in rows.items()}
    assert chosen == {"0": ("lora", "2"), "1": ("lora", "4"), "2": ("qlora", "2"), "3": ("qlora", "4")}
    assert rows["0"]["trainable"] != rows["3"]["trainable"]

    runs = {job: wandb_run(folder / job) for job in ("0", "2", "3")}
    assert len({run["id"] for run in runs.values()}) == 3
    assert {run["group"] for run in runs.values()} == {"sweep"}
    assert {run["name"] for run in runs.values()} == {
        "0 method=lora rank=2",
        "2 method=qlora rank=2",
        "3 method=qlora rank=4",
    }
    assert {run["exit"] for run in runs.values()} == {0}
    for job, run in runs.items():
        method = run["config"]["method"]  # type: ignore[index]
        assert (method["name"], str(method["lora"]["rank"])) == chosen[job]
        assert f"wandb sync {run['folder']}" in shown.replace("wandb sync sweep/", f"wandb sync {folder}/")

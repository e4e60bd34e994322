"""The leaderboard over jobs however they ended, and one sweep with a job that is killed."""

import contextlib
import csv
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
from typed import TRAIN
from wandb_support import wandb_run

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import Results
from cyberlm.evaluation.results import read_status, write_results, write_status
from cyberlm.runs import leaderboard as sweeps
from cyberlm.runs.leaderboard import LeaderboardCallback, leaderboard, show_leaderboard


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
    states = {0: "finished", 4: "finished", 10: "finished", 1: "failed", 2: "running", 3: None}
    for number, state in states.items():
        overrides = ["model=tiny_random", f"method.lora.rank={number}", "group='mine'", "hydra.run.dir=x", "sweep=x"]
        overrides += ["+method.lora.use_dora=true"] if number == 4 else []
        make_job(tmp_path / str(number), overrides, state, "ModelError: no model, none" if state == "failed" else "")
    for number, objective, accuracy in ((0, 0.5, 0.9), (4, 0.75, 0.6), (10, 0.5, 0.95)):
        write_results(found(objective, accuracy), tmp_path / str(number))
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


HEADER = (
    "rank,job,state,val option nll,val accuracy,model,method.lora.rank,method.lora.use_dora,test accuracy,"
    "test gold_nll,trainable,seconds,reason"
)


def test_leaderboard_file_has_the_metrics_of_any_job(sweep: Path) -> None:
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
    # a metric that one job alone has
    more = {"tuned": named(Metric("accuracy", 0.6), Metric("my_metric", 0.25), Metric("rouge2", None))}
    write_results(found(0.75, 0.6, metrics=more), sweep / "4")
    first, second, *_ = show_leaderboard(sweep)
    assert (first["job"], first["test accuracy"], first["test my_metric"]) == ("4", "0.6000", "0.2500")
    assert (second["test my_metric"], first["test gold_nll"]) == ("", "") and "test rouge2" not in first


def test_option_nll_ranks_and_accuracy_where_it_chose_the_weights_of_any_job(tmp_path: Path) -> None:
    """Differences behind the fourth decimal count; equals go by the other figure, before the order of the jobs."""
    for number, (accuracy, nll) in enumerate([(0.75, 0.90001), (0.50, 0.9), (0.75, 0.9), (0.75, 1.2)]):
        write_results(found(accuracy, 0.5, nll), make_job(tmp_path / str(number), [], "finished"))
    rows = leaderboard(tmp_path)
    shown = [(row["job"], row["val option nll"], row["val accuracy"]) for row in rows[:2]]
    assert shown == [("2", "0.9000", "0.7500"), ("1", "0.9000", "0.5000")]
    assert [row["job"] for row in rows[2:]] == ["0", "3"]
    write_results(found(0.6, 0.5), make_job(tmp_path / "4", [], "finished"))
    assert [row["job"] for row in leaderboard(tmp_path)] == ["2", "0", "3", "4", "1"]


def test_what_is_the_same_everywhere_is_not_printed_but_what_was_found(sweep, tmp_path, monkeypatch, capsys) -> None:
    shown: list[dict[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "print_leaderboard", shown.extend)
        show_leaderboard(sweep)
        assert list(shown[0]) == [name for name in HEADER.split(",") if name != "model"]
        shown.clear()
        for number in (0, 1):
            job = make_job(tmp_path / "alike" / str(number), ["model=tiny_random", f"seed={number}"], "finished")
            write_results(found(0.5, 0.5), job)
        show_leaderboard(tmp_path / "alike")
    columns = ("val accuracy", "test accuracy", "seed")
    assert [tuple(row[name] for name in columns) for row in shown] == [
        ("0.5000", "0.5000", "0"),
        ("0.5000", "0.5000", "1"),
    ]
    make_job(tmp_path / "alone" / "0", ["model=tiny_random"], "failed", "DataError: no data")
    show_leaderboard(tmp_path / "alone")
    told = capsys.readouterr().out
    assert "DataError: no data" in told and "tiny_random" in told  # of one job all overrides


def test_evaluations_of_models_as_they_are(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.5, 0.6)):
        metrics = {"base": named(Metric("accuracy", accuracy))}
        job = make_job(tmp_path / str(number), [f"seed={number}"], "finished")
        write_results(replace(found(0.0, accuracy), metrics=metrics, objective=None, cost=None), job)
    (tmp_path / "2").mkdir()  # no record of Hydra's
    rows = [(row["job"], row["state"], row["val accuracy"], row["test accuracy"]) for row in leaderboard(tmp_path)]
    assert rows == [("0", "finished", "", "0.5000"), ("1", "finished", "", "0.6000"), ("2", "not started", "", "")]


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
def test_a_sweep_in_which_no_job_finished_has_failed(tmp_path, capsys, states: tuple[str, ...], said: str) -> None:
    for number, state in enumerate(states):
        write_results(found(0.5, 0.5), make_job(tmp_path / str(number), [], state))
    ended = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with contextlib.nullcontext() if "finished" in states else pytest.raises(SystemExit, match="1"):
        LeaderboardCallback().on_multirun_end(ended)
    assert capsys.readouterr().out.endswith(said.format(tmp_path))
    assert (tmp_path / "leaderboard.csv").is_file() == bool(states)
    job = JobReturn(cfg=OmegaConf.create({"seed": 1}), hydra_cfg=OmegaConf.create({"hydra": {}}))
    LeaderboardCallback().on_job_end(ended, job)  # leaves no configuration with Hydra
    assert (job.cfg, job.hydra_cfg) == (None, None)


def test_a_job_takes_no_more_memory_where_there_are_more_of_them(tmp_path: Path) -> None:
    """Of its results only the row is kept."""
    peaks = {}
    for count in (10, 80):
        for number in range(count):
            job = make_job(tmp_path / f"{count}" / f"{number}", [f"seed={number}"], "finished")
            write_results(found(0.5, 0.5), job)
        tracemalloc.start()
        leaderboard(tmp_path / f"{count}")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[80] - peaks[10]) / 70 < 5_000


# --------------------------------------------------------------------------------------------- a sweep, for real


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
    line = [sys.executable, TRAIN, "-m", *SMALL, *CHOSEN, "method.lora.rank=2,4,8", f"hydra.sweep.dir={folder}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*line, "logger=wandb"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        child_of(process, folder / "1", timeout=120).send_signal(signal.SIGKILL)
        code = process.wait(timeout=300)
    finally:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            left.kill()
        process.kill()
    shown = (tmp_path / "log").read_text()
    assert code == 0 and "Traceback" not in shown, shown
    assert "job 1 failed (exit code -9); the sweep continues" in shown
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    ended = {row["job"]: (row["method.lora.rank"], row["state"], row["reason"]) for row in rows}
    failed = ("4", "failed", "killed by SIGKILL")
    assert ended == {"0": ("2", "finished", ""), "1": failed, "2": ("8", "finished", "")}
    assert rows[-1]["job"] == "1" and len({row["trainable"] for row in rows}) == 3
    runs = [wandb_run(folder / job) for job in ("0", "2")]
    assert [(run["name"], run["group"], run["exit"]) for run in runs] == [
        ("0 rank=2", "sweep", 0),
        ("2 rank=8", "sweep", 0),
    ]
    assert runs[0]["id"] != runs[1]["id"]

"""A study from its settings to its files, its jobs trained in this process; and with processes, killed, continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig
from support import SHORT, TINY, compose
from typed import ROOT, run_python, type_line

from cyberlm.config.rules import build_config, without_hydra
from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.results import read_results, write_status
from cyberlm.evaluation.study import Study, read_study
from cyberlm.runs.study import run_study
from cyberlm.runs.study_jobs import confirming_jobs, line_of, progress, tuning_jobs
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, RunError
from cyberlm.runtime.validation import to_json

SMALL = (
    *("study=paper", *TINY, "data=sample", "data.size=null", "prompt=text", "prompt.show_options=true", *SHORT),
    *("data.max_train=16", "data.max_validation=8", "data.max_test=16", "evaluation.max_new_tokens=2"),
    *("study.methods=[sft,lora]", "study.seeds=[1,2]", "study.tune_steps=1", "trainer.val_check_interval=null"),
    *("study.learning_rates={sft:[1e-3],lora:[1e-3,1e-2]}", "+study.published.lora=0.5"),
)
"""Two methods with two seeds each, and two learning rates to choose from: six runs of seconds."""


class Bench:
    """Runs the jobs of a study in this process."""

    def __init__(self, folder: Path, *more: str, fails: Sequence[str] = ()) -> None:
        self.folder, self.fails = folder, fails
        self.arguments = [*SMALL, *more, f"hydra.sweep.dir={folder}"]
        self.run: list[str] = []

    def compose(self, job: Sequence[str]) -> DictConfig:
        return compose(*job, with_hydra=True)

    def launch(self, jobs: Sequence[Sequence[str]]) -> None:
        for job in jobs:
            composed = self.compose(job)
            name = composed.hydra.sweep.subdir
            self.run.append(name)
            if name in self.fails:
                (self.folder / name).mkdir(parents=True)
                write_status(self.folder / name, "failed", reason="out of memory")
                continue
            with warnings.catch_warnings(action="ignore"):
                train(build_config(without_hydra(composed), TrainConfig), self.folder / name)

    def start(self, *typed: str) -> None:
        run_study(self.compose(self.arguments), [*self.arguments, *typed], self.launch, self.compose)

    def __call__(self) -> Study:
        self.start()
        return read_study(self.folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Study]:
    bench = Bench(tmp_path_factory.mktemp("outputs") / "study")
    return bench, bench()


def test_each_job_is_run_once_and_tuning_leaves_the_test_questions_alone(finished: tuple[Bench, Study]) -> None:
    bench, study = finished
    seeds = ["sft_seed1", "sft_seed2", "lora_seed1", "lora_seed2"]
    assert bench.run == ["tune/lora_0.001", "tune/lora_0.01", *seeds]
    assert [name for name in seeds if "base" in read_results(bench.folder / name).models] == ["sft_seed1"]
    assert study.state == "finished"
    rows = [("base", "base", 1), ("sft", "method", 2), ("lora", "method", 2)]
    assert [(row.name, row.kind, row.seeds) for row in study.rows] == rows
    drawn = ("figures/differences.svg", "figures/differences.png")
    for name in ("study.html", "table.md", "table.tex", *drawn, "multirun.yaml"):
        assert (bench.folder / name).stat().st_size > 100, name
    # tuning sees no test question
    tried = [rate for rate in study.tuning if rate.method == "lora"]
    assert {rate.learning_rate for rate in tried} == {1e-3, 1e-2}
    for rate in tried:
        results = read_results(bench.folder / rate.folder)
        assert (results.metrics, results.models, results.steps) == ({}, {}, 1)
        assert rate.option_nll == results.validation["option_nll"]
        assert not (bench.folder / rate.folder / "predictions.jsonl").exists()
    best = min(tried, key=lambda rate: rate.option_nll or 0)
    assert [rate for rate in tried if rate.chosen] == [best]
    assert {job.learning_rate for job in study.jobs if job.name.startswith("lora_seed")} == {best.learning_rate}


def test_figures_are_those_of_the_runs(finished: tuple[Bench, Study]) -> None:
    bench, study = finished
    sft, row = (next(row for row in study.rows if row.name == name) for name in ("sft", "lora"))
    runs = [read_results(bench.folder / f"lora_seed{seed}").metrics["tuned"] for seed in (1, 2)]
    for name, metric in (("likelihood", "accuracy"), ("gold_nll", "gold_nll")):
        by_seed = [run[metric].value for run in runs]
        assert row.figures[name].by_seed == pytest.approx(by_seed)
        assert row.figures[name].value == pytest.approx(sum(by_seed) / 2)  # type: ignore[arg-type]
    assert row.published == 0.5
    pair = study.comparison("lora", "against reference", "likelihood")
    assert pair is not None and pair.first == "sft"
    assert pair.difference == pytest.approx(row.figures["likelihood"].value - sft.figures["likelihood"].value)


def without_times(study: Study) -> Any:
    """study.json but for what the clock and the machine's memory say."""
    timeless = replace(
        study,
        rows=tuple(replace(row, cost=None) for row in study.rows),
        jobs=tuple(replace(job, train_seconds=None, seconds=None, peak_bytes=None) for job in study.jobs),
        notes=(),
        command="",
        provenance={},
    )
    return to_json(timeless, "study.json")


@pytest.fixture
def lacks_a_job(finished: tuple[Bench, Study], tmp_path: Path) -> Callable[..., Bench]:
    """A study like the finished one, one job of which is still to be run."""

    def prepared(*more: str, fails: Sequence[str] = ()) -> Bench:
        bench = Bench(tmp_path / "study", *more, fails=fails)
        shutil.copytree(finished[0].folder, bench.folder)
        shutil.rmtree(bench.folder / "lora_seed2")
        (bench.folder / "study.json").unlink()
        return bench

    return prepared


def test_same_command_goes_on_with_what_is_missing(finished, lacks_a_job: Callable[..., Bench], capsys) -> None:
    bench = lacks_a_job()
    study = bench()
    assert bench.run == ["lora_seed2"]
    assert without_times(study) == without_times(finished[1])
    said = capsys.readouterr().out
    assert said.index("margin 2 points") < said.index("Power: ") < said.index("lora: ")
    assert "Study paper: 5 of 6 jobs, ETA 0:0" in said


def test_job_that_fails_is_named_and_the_others_count(lacks_a_job: Callable[..., Bench]) -> None:
    bench = lacks_a_job(fails=["lora_seed2"])
    with pytest.raises(SystemExit, match="1"):
        bench()
    study = read_study(bench.folder)
    assert study.state == "unfinished"
    assert study.notes[0] == "lora_seed2 has not finished: out of memory. The same command tries it again."
    assert [row.name for row in study.rows] == ["base", "sft"]  # lora has one run left, and no spread
    states = {job.name: (job.state, job.reason) for job in study.jobs if job.stage == "confirm"}
    done = dict.fromkeys(("sft_seed1", "sft_seed2", "lora_seed1"), ("finished", ""))
    assert states == {**done, "lora_seed2": ("failed", "out of memory")}


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def choose_the_other_rate(rates: list[dict[str, Any]]) -> None:
    for rate in rates:
        rate["chosen"] = rate["chosen"] != (rate["method"] == "lora")


def test_what_was_decided_before_the_first_result_stays(lacks_a_job: Callable[..., Bench]) -> None:
    bench = lacks_a_job("study.margin=0.05", "data.seed=7")
    with pytest.raises(RunError, match="holds a study with other settings") as refused:
        bench()
    for told in ("study.margin: 0.02 then, 0.05 now", "data.seed: 0 then, 7 now", "Its test set is open"):
        assert told in refused.value.screen()
    bench = Bench(bench.folder)
    tuning = bench.folder / "plan" / "tuning.json"
    edit_json(tuning, choose_the_other_rate)
    with pytest.raises(RunError, match="has been opened with other learning rates"):
        bench()
    assert bench.run == []
    edit_json(tuning, choose_the_other_rate)
    edit_json(bench.folder / "sft_seed2" / "results.json", lambda found: found["provenance"].update(split="0" * 64))
    with pytest.raises(RunError, match="have split the questions differently"):
        bench()


def test_no_learning_rate_without_a_finished_tuning_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "study", fails=["tune/lora_0.001", "tune/lora_0.01"])
    with pytest.raises(RunError, match="No learning rate can be chosen") as refused:
        bench()
    assert "tune/lora_0.001: out of memory" in refused.value.screen()
    assert not (bench.folder / "plan" / "test_set.json").exists()


def test_plan_runs_nothing_and_what_a_study_sets_itself_is_refused(tmp_path: Path) -> None:
    said = type_line(tmp_path, "train", "-m", *SMALL, "plan=true").out
    assert "Study paper: sft, lora, each with seeds 1, 2, on one split" in said
    assert "16 test questions and 2 seeds show non-inferiority within" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="makes its jobs itself") as refused:
        Bench(tmp_path / "study").start("method=lora", "seed=3", "optim.learning_rate=1e-3", "data.seed=1,2")
    assert [(problem.what.partition(": ")[2], problem.allowed) for problem in refused.value.problems] == [
        ("a study sets method for each job", "study.methods=[...]"),
        ("a study sets seed for each job", "study.seeds=[...]"),
        ("a study sets optim.learning_rate for each job", "study.learning_rates.METHOD=[RATE]"),
        ("a study does not sweep", "one value"),
    ]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["study.methods=[sft,loar]"], "study.methods names 'loar', which is no method. Did you mean 'lora'?"),
        (["study.methods=[sft]"], "study.methods=[sft]: nothing could be compared"),
        (["study.methods=[sft,sft]"], "study.methods=[sft,sft] names sft twice"),
        (["study.reference=qlora"], "study.reference=qlora is none of study.methods"),
        (["study.seeds=[1]"], "study.seeds=[1]: nothing could be compared"),
        (["study.seeds=[1,1]"], "study.seeds=[1,1] names 1 twice"),
        (["study.seeds=[1,-1]"], "study.seeds holds -1"),
        (["study.tune_seed=2"], "study.tune_seed=2 is one of study.seeds"),
        (["study.margin=0"], "study.margin=0"),
        (["study.learning_rates.lora=[]"], "study.tune=true without study.learning_rates.lora"),
        (["study.learning_rates.lora=[0.1,0]"], "study.learning_rates.lora holds 0"),
        (["study.learning_rates.lora=[0.1,0.1]"], "study.learning_rates.lora names a rate twice"),
        (["evaluation.generate=false"], "study.outcome=generation needs completions"),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config(compose(*SMALL, *overrides), TrainConfig)
    assert problem in refused.value.screen()


def test_a_job_of_each_seed_with_the_settings_of_its_method() -> None:
    study = build_config(compose("study=paper_llama3"), TrainConfig).study
    tuning = tuning_jobs(study)
    assert (len(tuning), tuning[0].name) == (9, "tune/sft_5e-06")
    assert tuning[0].overrides == (
        *("method=sft", "optim=paged_adamw_8bit", "optim.learning_rate=5e-06"),
        *("evaluation.test=false", "trainer.max_steps=150"),
    )
    jobs = confirming_jobs(study, {"sft": 1e-5}, {"sft": "none", "lora": "none", "qlora": "nf4"})
    assert [job.name for job in jobs[4:7]] == ["sft_seed5", "lora_seed1", "lora_seed2"]
    assert [job.name for job in jobs if "evaluation.base=true" in job.overrides] == ["sft_seed1", "qlora_seed1"]
    assert line_of(jobs[0], ["study=paper_llama3"]) == [
        *("study=paper_llama3", "method=sft", "optim=paged_adamw_8bit", "optim.learning_rate=1e-05"),
        *("evaluation.base=true", "seed=1", "hydra.sweep.subdir=sft_seed1"),
    ]


def test_progress_counts_a_failed_job_as_left_where_it_runs_again(tmp_path: Path) -> None:
    study = build_config(compose(*SMALL), TrainConfig).study
    told = lambda: progress(study, tmp_path).removeprefix("Study paper: ").removesuffix(", ETA unknown")  # noqa: E731
    assert told() == "0 of 6 jobs"
    for job in ("tune/lora_0.001", "sft_seed1"):
        (tmp_path / job).mkdir(parents=True)
        write_status(tmp_path / job, "failed", reason="out of memory")
        os.utime(tmp_path / job / "status.json", (1, 1))
    assert told() == "2 of 6 jobs, 2 failed"
    (tmp_path / "multirun.yaml").touch()  # the study is started again
    assert told() == "0 of 6 jobs"
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "tuning.json").touch()  # rates are chosen: none is tuned again
    assert told() == "1 of 6 jobs, 1 failed"
    write_status(tmp_path / "sft_seed1", "failed", reason="out of memory")
    assert told() == "2 of 6 jobs, 2 failed"


LINE = ("train.py", *SMALL, "-m")


def start(folder: Path) -> subprocess.Popen[str]:
    line = [sys.executable, *LINE, f"hydra.sweep.dir={folder}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, process_group=0, **pipes
    )


def wait_for(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a job trains."""
    until = time.monotonic() + 120
    while not (folder / "split_manifest.json").is_file():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_study_that_was_stopped_and_killed_ends_as_one_that_was_not(finished, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    stopped = start(folder)
    wait_for(folder / "tune" / "lora_0.01", stopped)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 75
    assert "Stopped by SIGTERM. To resume, type:\npython train.py study=paper" in err and err.count("To resume") == 1
    assert "Study paper: 1 of 6 jobs, ETA over 0:" in out
    killed = start(folder)
    wait_for(folder / "sft_seed2", killed)
    for child in psutil.Process(killed.pid).children(recursive=True):
        child.kill()
    killed.kill()
    killed.communicate(timeout=60)
    last = start(folder)
    out, err = last.communicate(timeout=400)
    assert last.returncode == 0, err
    assert "sft_seed1" not in out.partition("Launching")[2].partition("sft_seed2")[0]
    assert not list(folder.rglob("*.ckpt"))
    assert without_times(read_study(folder)) == without_times(finished[1])


@pytest.mark.slow
def test_jobs_side_by_side(finished: tuple[Bench, Study], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    side_by_side = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}")
    assert run_python(ROOT, *LINE, *side_by_side).returncode == 0
    study = read_study(folder)
    assert without_times(study) == without_times(finished[1])
    assert study.notes[-1].startswith("Jobs ran side by side")

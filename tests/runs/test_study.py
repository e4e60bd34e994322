"""A study from its settings to its files, its jobs trained in this process; and with processes, killed, continued."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, open_dict, read_write
from support import SHORT, TINY

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import conf_folder
from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.results import read_results, write_status
from cyberlm.evaluation.study import Study, read_study
from cyberlm.runs.run_folder import register_resolvers
from cyberlm.runs.study import run_study
from cyberlm.runs.train import train

SMALL = (
    *("study=paper", *TINY, "data=sample", "data.size=null", "prompt=text", "prompt.show_options=true", *SHORT),
    *("data.max_train=16", "data.max_validation=8", "data.max_test=16", "evaluation.max_new_tokens=2"),
    *("study.methods=[sft,lora]", "study.seeds=[1,2]", "study.tune_steps=1", "trainer.max_epochs=1"),
    *("study.learning_rates={sft:[1e-3],lora:[1e-3,1e-2]}", "+study.published.lora=0.5"),
)
"""Two methods with two seeds each, and two learning rates to choose from: six runs of seconds."""


def compose_all(*overrides: str) -> DictConfig:
    """As the sweep's own process has it, with Hydra's node."""
    register_schemas()
    register_resolvers()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra.compose("train", list(overrides), return_hydra_config=True)


class Bench:
    """Runs the jobs of a study in this process."""

    def __init__(self, folder: Path, *more: str, fails: Sequence[str] = ()) -> None:
        self.folder, self.fails = folder, fails
        self.arguments = [*SMALL, *more, f"hydra.sweep.dir={folder}"]
        self.run: list[str] = []

    def compose(self, job: Sequence[str]) -> DictConfig:
        return compose_all(*job)

    def launch(self, jobs: Sequence[Sequence[str]]) -> None:
        for job in jobs:
            composed = self.compose(job)
            name = composed.hydra.sweep.subdir
            self.run.append(name)
            with read_write(composed), open_dict(composed):
                del composed["hydra"]
            if name in self.fails:
                (self.folder / name).mkdir(parents=True)
                write_status(self.folder / name, "failed", reason="out of memory")
                continue
            with warnings.catch_warnings(action="ignore"):
                train(build_config(composed, TrainConfig), self.folder / name)

    def __call__(self) -> Study:
        run_study(compose_all(*self.arguments), self.arguments, self.launch, self.compose)
        return read_study(self.folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Study]:
    bench = Bench(tmp_path_factory.mktemp("outputs") / "study")
    return bench, bench()


def test_study_runs_each_job_once_and_writes_its_files(finished: tuple[Bench, Study]) -> None:
    bench, study = finished
    assert bench.run == [
        *("tune/lora_0.001", "tune/lora_0.01"),
        *("sft_seed1", "sft_seed2", "lora_seed1", "lora_seed2"),
    ]
    assert study.state == "finished"
    assert [(row.name, row.kind, row.seeds) for row in study.rows] == [
        ("base", "base", 1),
        ("sft", "method", 2),
        ("lora", "method", 2),
    ]
    for name in ("table.md", "table.tex", "figures/differences.svg", "figures/differences.png", "multirun.yaml"):
        assert (bench.folder / name).stat().st_size > 100, name


def test_tuning_leaves_the_test_questions_alone(finished: tuple[Bench, Study]) -> None:
    bench, study = finished
    tried = {rate.learning_rate: rate for rate in study.tuning if rate.method == "lora"}
    assert set(tried) == {1e-3, 1e-2}
    for rate in tried.values():
        results = read_results(bench.folder / rate.folder)
        assert (results.metrics, results.models, results.steps) == ({}, {}, 1)
        assert rate.option_nll == results.validation["option_nll"]
        assert not (bench.folder / rate.folder / "predictions.jsonl").exists()
    best = min(tried.values(), key=lambda rate: rate.option_nll or 0)
    assert [rate.chosen for rate in tried.values()] == [rate is best for rate in tried.values()]
    assert {job.learning_rate for job in study.jobs if job.name.startswith("lora_seed")} == {best.learning_rate}


def test_base_is_scored_once(finished: tuple[Bench, Study]) -> None:
    bench, _ = finished
    scored = {name: "base" in read_results(bench.folder / name).models for name in bench.run if "seed" in name}
    assert scored == {"sft_seed1": True, "sft_seed2": False, "lora_seed1": False, "lora_seed2": False}


def test_figures_are_those_of_the_runs(finished: tuple[Bench, Study]) -> None:
    bench, study = finished
    row = next(row for row in study.rows if row.name == "lora")
    runs = [read_results(bench.folder / f"lora_seed{seed}") for seed in (1, 2)]
    by_seed = [run.metrics["tuned"]["accuracy"].value for run in runs]
    assert row.figures["likelihood"].by_seed == pytest.approx(by_seed)
    assert row.figures["likelihood"].value == pytest.approx(sum(by_seed) / 2)  # type: ignore[arg-type]
    nll = [run.metrics["tuned"]["gold_nll"].value for run in runs]
    assert row.figures["gold_nll"].by_seed == pytest.approx(nll)
    assert row.published == 0.5
    pair = study.comparison("lora", "against reference", "likelihood")
    assert pair is not None and pair.first == "sft"
    sft = next(row for row in study.rows if row.name == "sft").figures["likelihood"].value
    assert pair.difference == pytest.approx(row.figures["likelihood"].value - sft)

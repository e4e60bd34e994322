"""Two processes train and score one run as one process does: DDP on the CPU, alone and in a sweep."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import Fork, run_ranks, type_command
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support import SHORT, config_of, evaluation_of
from test_fsdp2 import losses

from cyberlm.data.batches import batches_of_rank, count_batches, plan_epoch
from cyberlm.evaluation.results import read_predictions, read_results, read_status
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.processes import start_processes
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError
from cyberlm.runtime.signals import EXIT_STOPPED
from cyberlm.training.callbacks.numbers import BAD_BATCH

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4, 6])
def test_each_question_in_one_process(size: int, accumulate: int) -> None:
    planned = plan_epoch([5] * 46, [2] * 46, batch_size=3, accumulate=accumulate, seed=0, epoch=1)
    parts = [batches_of_rank(planned, accumulate, rank, size) for rank in range(size)]
    assert sorted(row for part in parts for batch in part for row in batch.rows) == list(range(46))
    assert {len(part) for part in parts} == {count_batches(46, 3, accumulate, size)}
    each = -(-accumulate // size)
    for k in range(0, len(parts[0]), each):  # a step is the same questions as in one process
        window = [batch for part in parts for batch in part[k : k + each]]
        rows = [row for batch in window for row in batch.rows]
        one = planned[k // each * accumulate : (k // each + 1) * accumulate]
        assert sorted(rows) == sorted(row for batch in one for row in batch.rows)
        assert {batch.step_label_tokens for batch in window} == {2 * len(rows)}


SMALL = [
    *("model=tiny_random", "prompt=letter", "logger=none", "trainer.accelerator=cpu", "method=lora"),
    *("data.max_train=21", "data.max_validation=5", "data.max_test=9", "data.micro_batch_size=4"),
    *("evaluation.generate=false", "evaluation.base=false", "trainer.max_epochs=2", *SHORT),
]


def answered(folder: Path) -> list[tuple[str, int]]:
    return [(answer.hash, answer.choice) for answer in read_predictions(folder / "predictions.jsonl")["tuned"]]


def assert_as_one(run: Path, alone: Path, *overrides: str) -> None:
    """A run of two processes has the losses, the objective and the answers of one process with the same steps."""
    objective = train(config_of(*SMALL, *overrides, "trainer.accumulate_grad_batches=2"), alone)
    assert read_results(run).objective == pytest.approx(objective, abs=1e-5)  # a mean over processes
    assert losses(run, "train/loss") == pytest.approx(losses(alone, "train/loss"), abs=1e-5)
    assert answered(run) == answered(alone)


def launch_two(folder: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and output of a run by `trainer.devices=2`, or of one that goes on (`trainer.resume`)."""
    own = overrides if overrides[0].startswith("trainer.resume") else (*SMALL, *overrides, "trainer.devices=2")
    line = [sys.executable, "-m", "cyberlm", "train", *own, f"hydra.run.dir={folder}"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    return done.returncode, done.stdout


def run_two(folder: Path, *overrides: str) -> tuple[list[int], str]:
    """Exit codes and output of two processes of a run, started here as another launcher would."""
    return run_ranks(2, type_command, "train", *SMALL, *overrides, f"hydra.run.dir={folder}", folder=folder)


def callback(name: str, **arguments: object) -> list[str]:
    values = [f"+callbacks.of_the_test.{key}={value}" for key, value in arguments.items()]
    return [f"+callbacks.of_the_test._target_=training_support.{name}", *values]


@pytest.mark.slow
def test_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = launch_two(run, *callback("Kill", signum=int(signal.SIGTERM), batch=2, rank=1))
    assert code == EXIT_STOPPED and said.count("Stopped by SIGTERM. To resume") == 1, said
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step_000002.ckpt"]
    code, said = launch_two(run, f"trainer.resume={run}")
    assert code == 0, said
    assert_as_one(run, tmp_path / "alone")


@pytest.mark.slow
def test_number_that_goes_wrong_in_one_process_stops_both(tmp_path: Path) -> None:
    """The first writes what all of them had, a micro-batch of each, and alone says so."""
    codes, said = run_two(tmp_path, *callback("Poison", batch=2, rank=1))
    assert codes == [1, 1] and "Traceback" not in said
    assert said.count("The loss is nan in optimizer step 1; the step was not taken") == 1, said
    assert {name.partition(".")[0] for name in load_file(tmp_path / BAD_BATCH)} == {"batch0", "batch1", "weights"}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_is_killed_ends_the_run(rank: int, tmp_path: Path) -> None:
    code, said = launch_two(tmp_path, *callback("Kill", signum=int(signal.SIGKILL), batch=2, rank=rank))
    assert code == 1 and "Traceback" not in said, said
    assert f"- rank {rank}: SIGKILL" in said and f"trainer.resume={tmp_path}" in said
    assert ("Another process of this run has ended" in said) == (rank == 1)


@pytest.mark.slow
def test_process_that_fails_tells_why(tmp_path: Path) -> None:
    codes, said = run_two(tmp_path, *callback("Fail", batch=2, rank=1))
    assert codes == [1, 1] and said.count("Traceback") == 1, said
    assert "Rank 1 on " in said and "ConnectionAbortedError" in said
    assert "Another process of this run has ended" in said
    assert read_status(tmp_path).state == "failed"


@pytest.mark.slow
def test_a_step_has_one_collective_beside_its_gradients(tmp_path: Path) -> None:
    """Of three micro-batches in two processes; DDP's own reduction of gradients is not called from Python."""
    steps_of_three = ("data.max_train=40", "data.micro_batch_size=2", "trainer.accumulate_grad_batches=3")
    codes, said = run_two(tmp_path, *callback("CountCollectives"), *steps_of_three, "trainer.max_epochs=1")
    assert codes == [0, 0], said
    for rank in (0, 1):
        _, *batches = json.loads((tmp_path / f"collectives_{rank}.json").read_text())
        assert len(batches) == 10  # 20 micro-batches, 10 in each process
        steps = [[name for batch in batches[k : k + 3] for name in batch] for k in range(0, 9, 3)]
        assert steps == [["all_reduce"]] * 3


@pytest.mark.slow
def test_evaluation_by_two_processes_is_that_of_one(lora_run: Path, tmp_path: Path) -> None:
    """By likelihood and by generation."""
    evaluate(evaluation_of(f"run={lora_run}"), tmp_path / "one")
    line = ("evaluate", f"run={lora_run}", f"hydra.run.dir={tmp_path / 'two'}")
    codes, said = run_ranks(2, type_command, *line, folder=tmp_path)
    assert codes == [0, 0], said
    one, two = (read_predictions(tmp_path / name / "predictions.jsonl") for name in ("one", "two"))
    assert one.keys() == two.keys() == {"base", "tuned"}
    for name, answers in one.items():
        for answer, other in zip(answers, two[name], strict=True):
            assert other.option_logprobs == pytest.approx(answer.option_logprobs, abs=1e-4)
            assert (other.id, other.choice, other.generated) == (answer.id, answer.choice, answer.generated)


@pytest.mark.slow
def test_optuna_sweep_with_two_processes_a_job(tmp_path: Path) -> None:
    """Both processes of a job train with its hyperparameters, and its figures are those of one process."""
    folder, record = tmp_path / "sweep", "+callbacks.record._target_=training_support.Record"
    optuna = ("-m", "sweep=optuna", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={folder}")
    sweep = Fork(type_command, "train", *optuna, *SMALL, "trainer.devices=2", record, folder=tmp_path)
    code, said = sweep.ended()
    assert code == 0 and "Traceback" not in said and said.count("Training: 42/42 questions") == 1, said
    given = [str(item) for item in OmegaConf.load(folder / "0" / ".hydra" / "overrides.yaml")]
    sampled = [item for item in given if item.startswith(("method.lora.rank", "optim.learning_rate"))]
    rank, rate = (item.split("=")[1] for item in sorted(sampled))
    for process in (0, 1):
        seen = json.loads((folder / "0" / f"process_{process}.json").read_text())
        assert seen == {"rank": int(rank), "learning_rate": float(rate), "processes": 2}
    assert_as_one(folder / "0", tmp_path / "alone", *sampled)


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = config_of("trainer.devices=2")
    config.trainer.accelerator = "cuda"
    with pytest.raises(ConfigError) as caught:
        start_processes("train", config.trainer, Path("run"))
    assert "trainer.devices=2" in caught.value.screen()
    assert "at most 1" in caught.value.screen()

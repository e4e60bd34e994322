"""Signals that ask to stop: a checkpoint, a state, a code, the command that goes on; one owner, whoever else asks."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from resume_support import differences, fit_again, run_config

from cyberlm.evaluation.results import read_status
from cyberlm.runs.reporting import status_of
from cyberlm.runtime import signals

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers deprecates a name that peft still uses
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch and Lightning deprecate each other's names
]


@pytest.fixture(autouse=True)
def _no_nohup() -> Iterator[None]:
    """Tests may be started by nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Kill(L.Callback):
    """Sends this process signals in the middle of a micro-batch, or of validation."""

    armed = True
    """A run keeps its callbacks when it is resumed: this one then does nothing."""

    def __init__(self, signum: int, batch: int, times: int = 1, validating: bool = False) -> None:
        self.signum, self.batch, self.times, self.validating = signum, batch, times, validating
        self.count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.batch and not self.validating:
            self._kill()

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.validating:
            self._kill()

    def _kill(self) -> None:
        for _ in range(self.times if self.armed else 0):
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", signals.STOPPING)
@pytest.mark.parametrize(("batch", "validating", "step"), [(3, False, 2), (16, False, 8), (1, True, 4)])
def test_training_saves_between_two_steps_and_ends_the_same(
    signum: int, batch: int, validating: bool, step: int, tmp_path: Path
) -> None:
    """Sent inside an accumulation window, in the last step, and in validation."""
    rules = ("trainer.accumulate_grad_batches=2", "trainer.checkpoint_every_n_steps=100", "trainer.keep_checkpoints=9")
    config = run_config("lora", *rules)
    fit_again(config, tmp_path / "whole", resume=False)
    killed = tmp_path / "killed"
    given = {"signum": int(signum), "batch": batch, "validating": validating}
    config.callbacks["kill"] = {"_target_": "test_signals.Kill", **given}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.Stopped) as caught, signals.handled(), status_of(killed):
        fit_again(config, killed, resume=False)
    assert caught.value.signum == signum
    assert signal.getsignal(signal.SIGTERM) is before
    assert (killed / "checkpoints" / f"step_{step:06d}.ckpt").is_file()
    status = read_status(killed)
    assert status is not None and (status.state, status.reason) == ("stopped", signal.Signals(signum).name)
    del config.callbacks["kill"]
    fit_again(config, killed)
    assert differences(tmp_path / "whole", killed) == []


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    config = run_config("lora")
    config.callbacks["kill"] = {"_target_": "test_signals.Kill", "signum": int(signal.SIGINT), "batch": 3, "times": 2}
    with pytest.raises(signals.Stopped), signals.handled():
        fit_again(config, tmp_path, resume=False)
    assert max(file.name for file in (tmp_path / "checkpoints").iterdir()) == "step_000002.ckpt"


def test_outside_training_a_signal_ends_what_is_being_done() -> None:
    with pytest.raises(signals.Stopped, match="SIGUSR1"), signals.handled():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)


def test_under_nohup_a_run_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.handled():
        signals.defer()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.requested() is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("folder", ["outputs/run_1", "outputs/a run=1, it's"])
def test_the_command_can_be_pasted(folder: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = shlex.split(signals.resume_command(Path(folder)))
    override = OverridesParser.create().parse_override(words[-1])
    assert (override.key_or_group, override.value()) == ("trainer.resume", folder)


# ------------------------------------------------------------------------------------------------ whole processes

LINE = (
    *("model=tiny_random", "logger=none", "prompt=letter", "trainer.accelerator=cpu", "data.max_test=8"),
    *("evaluation.generate=false", "evaluation.base=false", "trainer.max_epochs=2", "data.micro_batch_size=2"),
)
SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "training",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NODELIST": "localhost",
}


def start(folder: Path, *line: str, **environment: str) -> subprocess.Popen[str]:
    both = {**os.environ, "CYBERLM_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *line],
        **{"cwd": folder, "env": both, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not file.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert file.is_file(), process.communicate()[0]


def test_slurms_signal_ends_with_the_code_and_the_command(tmp_path: Path) -> None:
    """Under Slurm's variables, where Lightning would requeue the job by itself; then its command is typed."""
    process = start(tmp_path, *LINE, "hydra.run.dir=outputs/run", **SLURM)
    wait_for(tmp_path / "outputs" / "run" / "metrics.csv", process)
    process.send_signal(signal.SIGUSR1)
    told = process.communicate(timeout=200)[0]
    assert process.returncode == signals.EXIT_STOPPED == 75
    assert "Traceback" not in told and "scontrol" not in told
    command = re.search(r"Stopped by SIGUSR1\. To go on, type:\n(.+)\n", told)
    assert command is not None and command[1] == "python train.py trainer.resume=outputs/run"
    assert json.loads((tmp_path / "outputs" / "run" / "status.json").read_text())["state"] == "stopped"
    again = start(tmp_path, *shlex.split(command[1])[2:])
    told = again.communicate(timeout=300)[0]
    assert again.returncode == 0, told
    assert "Going on from outputs/run/checkpoints/step_" in told
    third = start(tmp_path, "trainer.resume=outputs/run")
    told = third.communicate(timeout=200)[0]
    assert third.returncode == 1 and "outputs/run has finished" in told


def test_a_run_whose_output_is_lost_trains_on(tmp_path: Path) -> None:
    """Its reader has gone, as with `| head`; its encoding is not UTF-8."""
    process = start(tmp_path, *LINE, "trainer.max_epochs=1", "hydra.run.dir=run", PYTHONIOENCODING="ascii")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert "is lost (Broken pipe)" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_whose_terminal_is_gone_can_be_resumed(tmp_path: Path) -> None:
    process = start(tmp_path, *LINE, "hydra.run.dir=run")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    process.send_signal(signal.SIGHUP)
    told = process.communicate(timeout=200)[0]
    assert process.returncode == signals.EXIT_STOPPED, told
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGHUP")
    assert list((tmp_path / "run" / "checkpoints").glob("step_*.ckpt"))


def test_a_sweep_that_is_stopped_stops_its_job(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", *LINE, "seed=1,2", "hydra.sweep.dir=outputs/sweep")
    wait_for(tmp_path / "outputs" / "sweep" / "0" / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=200)[0]
    assert process.returncode == signals.EXIT_STOPPED, told
    assert "Stopped by SIGTERM. The sweep starts no further job." in told and "Traceback" not in told
    assert "trainer.resume=" in told
    assert json.loads((tmp_path / "outputs" / "sweep" / "0" / "status.json").read_text())["state"] == "stopped"
    assert list((tmp_path / "outputs" / "sweep" / "0" / "checkpoints").glob("step_*.ckpt"))
    assert not (tmp_path / "outputs" / "sweep" / "1").exists()

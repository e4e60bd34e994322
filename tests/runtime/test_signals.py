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

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from training_support import differences, fit_again, run_config, with_callback
from typed import type_line

from cyberlm.evaluation.results import read_status
from cyberlm.runs.reporting import status_of
from cyberlm.runtime import signals

ROOT = Path(__file__).parents[2]
ACCUMULATED = (
    *("trainer.accumulate_grad_batches=2", "trainer.checkpoint_every_n_steps=100", "trainer.keep_checkpoints=9"),
)


@pytest.fixture(autouse=True)
def _no_nohup() -> Iterator[None]:
    """Tests may be started by nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit_again(run_config("lora", *ACCUMULATED), folder, resume=False)
    return folder


@pytest.mark.parametrize(
    ("signum", "batch", "step"),
    [
        (signal.SIGUSR1, 3, 2),  # inside an accumulation window
        (signal.SIGTERM, 16, 8),  # in the last step
        (signal.SIGINT, 0, 4),  # in validation
    ],
)
def test_training_saves_between_two_steps_and_ends_the_same(signum, batch: int, step: int, whole, tmp_path) -> None:
    config = with_callback(run_config("lora", *ACCUMULATED), "Kill", signum=int(signum), batch=batch)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.Stopped) as caught, signals.handled(), status_of(tmp_path):
        fit_again(config, tmp_path, resume=False)
    assert caught.value.signum == signum
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / f"step_{step:06d}.ckpt").is_file()
    status = read_status(tmp_path)
    assert status is not None and (status.state, status.reason) == ("stopped", signum.name)
    fit_again(run_config("lora", *ACCUMULATED), tmp_path)
    assert differences(whole, tmp_path) == []


def test_a_second_ctrl_c_or_a_signal_outside_training_stops_at_once(tmp_path: Path) -> None:
    config = with_callback(run_config("lora"), "Kill", signum=int(signal.SIGINT), batch=3, times=2)
    with pytest.raises(signals.Stopped), signals.handled():
        fit_again(config, tmp_path, resume=False)
    assert max(file.name for file in (tmp_path / "checkpoints").iterdir()) == "step_000002.ckpt"
    for signum in signals.STOPPING:
        with pytest.raises(signals.Stopped, match=signum.name), signals.handled():
            os.kill(os.getpid(), signum)
            time.sleep(5)


def test_one_of_several_processes_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher sends SIGTERM when another one has ended."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(signals.Stopped), signals.handled():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_under_nohup_a_run_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.handled():
        signals.defer()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.requested() is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_command_can_be_pasted() -> None:
    for folder in ("outputs/run_1", "outputs/a run=1, it's"):
        words = shlex.split(signals.resume_command(Path(folder)))
        override = OverridesParser.create().parse_override(words[-1])
        assert (override.key_or_group, override.value()) == ("trainer.resume", folder)


def test_handler_of_a_launcher_is_called_once_its_command_has_ended(tmp_path: Path) -> None:
    """As submitit's, which requeues a job when it hears SIGUSR2."""
    saved, heard = tmp_path / "saved", []
    code = "import os, pathlib, signal, sys, time\n"
    code += "stop = lambda *_: (time.sleep(0.2), pathlib.Path(sys.argv[1]).touch(), sys.exit(75))\n"
    code += "signal.signal(signal.SIGUSR2, stop)\n"
    code += "os.kill(os.getppid(), signal.SIGUSR2); time.sleep(20)"
    before = signal.signal(signal.SIGUSR2, lambda signum, _: heard.append((signum, saved.is_file())))
    try:
        with pytest.raises(signals.Stopped, match="SIGUSR2"):
            signals.run_forwarding([sys.executable, "-c", code, str(saved)], os.environ)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [(signal.SIGUSR2, True)]


LINE = (
    *("model=tiny_random", "logger=none", "prompt=letter", "trainer.accelerator=cpu", "data.max_test=8"),
    *("evaluation.generate=false", "evaluation.base=false", "trainer.max_epochs=2", "data.micro_batch_size=2"),
)
SLURM = {
    **{"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "training", "SLURM_LOCALID": "0"},
    **{"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_NODELIST": "localhost"},
}


def start(folder: Path, *line: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *line],
        **{"cwd": folder, "env": {**os.environ, "OMP_NUM_THREADS": "1", **environment}},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )


def stop(process: subprocess.Popen[str], file: Path, signum: int) -> str:
    """Sends a signal once a file is there; returns what the process has printed."""
    until = time.monotonic() + 200
    while not file.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signum)
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == signals.EXIT_STOPPED == 75, printed
    assert "Traceback" not in printed
    return printed


@pytest.mark.slow
def test_slurms_signal_ends_with_the_code_and_the_command(tmp_path: Path) -> None:
    """Under Slurm's variables, where Lightning would requeue the job by itself; then its command is typed."""
    run = tmp_path / "outputs" / "run"
    process = start(tmp_path, *LINE, "hydra.run.dir=outputs/run", **SLURM)
    printed = stop(process, run / "metrics.csv", signal.SIGUSR1)
    assert "scontrol" not in printed
    command = re.search(r"Stopped by SIGUSR1\. To resume, type:\n(.+)\n", printed)
    assert command is not None and command[1] == "python train.py trainer.resume=outputs/run"
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    again = type_line(tmp_path, "train", *shlex.split(command[1])[2:])
    assert again.code == 0, again.err
    assert "Resuming from outputs/run/checkpoints/step_" in again.out


@pytest.mark.slow
def test_a_run_whose_output_is_lost_trains_on(tmp_path: Path) -> None:
    """Its reader has gone, as with `| head`; its encoding is not UTF-8."""
    process = start(tmp_path, *LINE, "trainer.max_epochs=1", "hydra.run.dir=run", PYTHONIOENCODING="ascii")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert "is lost (Broken pipe)" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_its_job(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "sweep"
    process = start(tmp_path, "-m", *LINE, "seed=1,2", "hydra.sweep.dir=outputs/sweep")
    printed = stop(process, sweep / "0" / "metrics.csv", signal.SIGTERM)
    assert "Stopped by SIGTERM. The sweep starts no further job." in printed and "trainer.resume=" in printed
    assert json.loads((sweep / "0" / "status.json").read_text())["state"] == "stopped"
    assert list((sweep / "0" / "checkpoints").glob("step_*.ckpt"))
    assert not (sweep / "1").exists()

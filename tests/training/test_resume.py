"""A run that is killed, at any micro-batch, and resumed ends bit for bit like the run that was never killed."""

import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from support import evaluation_of
from training_support import differences, fit_again, run_config, same, with_callback

from cyberlm.evaluation.results import read_results
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, RunError
from cyberlm.runtime.signals import Stopped, handled
from cyberlm.training.checkpointing import AtomicCheckpointIO, damage, resume_point
from cyberlm.training.fit import fit

CASES = {
    "lora": ["trainer.accumulate_grad_batches=3"],
    "sft validates within the epoch": ["trainer.val_check_interval=3", "trainer.checkpoint_every_n_steps=3"],
    "sft last window is partial": ["trainer.accumulate_grad_batches=4"],
    "lora every step": [],
    "lora max_steps": ["trainer.max_steps=11"],
    "lora early stopping": [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "optim.learning_rate=0.3",
    ],
    "qlora": ["trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"],
    "lora loader workers": ["data.num_workers=2"],
}


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name != "lora")) for name in CASES])
def test_killed_before_any_micro_batch(case: str, tmp_path: Path) -> None:
    config = with_callback(run_config(case.split()[0], *CASES[case]), "Snapshots")
    fit_again(config, tmp_path / "whole", resume=False)
    snapshots = sorted((tmp_path / "snapshots").iterdir())
    assert len(snapshots) > 8
    config.callbacks.pop("of_the_test")
    for snapshot in snapshots[:: {"lora": 6, "lora every step": 1}.get(case, 3)]:
        fit_again(config, snapshot)
        assert differences(tmp_path / "whole", snapshot) == [], snapshot.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has stopped; beside it lie snapshots of it before each micro-batch."""
    folder = tmp_path_factory.mktemp("module")
    fit_again(with_callback(run_config("lora"), "Snapshots"), folder / "whole", resume=False)
    return folder / "whole"


def snapshot_of(whole: Path, number: int, folder: Path) -> Path:
    return Path(shutil.copytree(whole.parent / "snapshots" / f"{number:03d}", folder / "killed"))


def turn_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole: Path, tmp_path: Path, caplog) -> None:
    """Best weights that are lost, with what came after them: it is trained again."""
    killed = snapshot_of(whole, 5, tmp_path / "step")
    turn_a_bit(killed / "checkpoints" / "step_000005.ckpt")
    (killed / "checkpoints" / "step_000006.ckpt.tmp").write_bytes(b"half")
    fit_again(run_config("lora"), killed)
    assert "step_000005.ckpt is damaged: its bytes are not those that were written" in caplog.text
    assert differences(whole, killed) == []
    left = {file.name for file in (killed / "checkpoints").iterdir()}
    assert left == {"best.ckpt", "step_000005.ckpt.damaged", "step_000015.ckpt", "step_000016.ckpt"}
    killed = snapshot_of(whole, 11, tmp_path / "best")
    best = killed / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-1000])
    fit_again(run_config("lora"), killed)
    assert "best.ckpt is damaged: it is not a whole" in caplog.text and "best weights so far are lost" in caplog.text
    assert differences(whole, killed) == []


def test_a_changed_file_is_damaged_or_reads_the_same(tmp_path: Path) -> None:
    """At any length that it was cut to, and with any bit turned: what has no checksum (padding, dates) is not read."""
    file = tmp_path / "checkpoints" / "step_000003.ckpt"
    checkpoint = {"global_step": 3, "state_dict": {"w": torch.arange(50.0)}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    assert damage(file) == ""
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place])
        assert damage(file), place
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert damage(file) or same(torch.load(file, weights_only=True), checkpoint), place


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse files above a size, in the middle of a write, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_keeps_the_last_good_checkpoint(
    whole: Path, tmp_path: Path, limit_files: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops with one screen; with room again it goes on, and ends like the run that never stopped."""
    killed = snapshot_of(whole, 5, tmp_path)
    size = (killed / "checkpoints" / "step_000005.ckpt").stat().st_size
    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr("training_support.fit", lambda *given: limit_files(size // 2) or fit(*given))
        fit_again(run_config("lora"), killed)
    screen = caught.value.screen()
    assert screen.startswith("A checkpoint could not be written: File too large.") and "step_000006.ckpt" in screen
    needed = re.search(r"([\d,]+) bytes needed, [\d,]+ bytes free", screen)
    assert needed is not None and int(needed[1].replace(",", "")) == pytest.approx(size, rel=0.01)
    assert f"checkpoint stays: {killed / 'checkpoints' / 'step_000005.ckpt'}" in screen
    assert f"trainer.resume={killed}" in screen
    left = sorted(file.name for file in (killed / "checkpoints").iterdir())
    assert left == ["step_000004.ckpt", "step_000005.ckpt"]
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    fit_again(run_config("lora"), killed)
    assert differences(whole, killed) == []
    (tmp_path / "file").write_text("where the folder of checkpoints would be")
    with pytest.raises(RunError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "step_000001.ckpt")


@pytest.mark.parametrize(
    ("keep", "every_n_steps", "every_minutes", "steps"),
    [(3, 4, "null", [8, 12, 16]), (99, 1000, "null", [8, 16]), (99, 1000, "1e-9", [*range(1, 17)])],
)
def test_the_last_checkpoints_are_kept(
    keep: int, every_n_steps: int, every_minutes: str, steps: list[int], tmp_path: Path
) -> None:
    """Those of every n-th step, of every so many minutes, and of the end of each epoch."""
    points = (f"trainer.checkpoint_every_n_steps={every_n_steps}", f"trainer.checkpoint_every_minutes={every_minutes}")
    fit_again(run_config("lora", f"trainer.keep_checkpoints={keep}", *points), tmp_path, resume=False)
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", *(f"step_{step:06d}.ckpt" for step in steps)]
    assert resume_point(tmp_path) == tmp_path / "checkpoints" / "step_000016.ckpt"


SMALL = (
    *("data.max_train=24", "data.max_validation=8", "data.max_test=8", "data.micro_batch_size=4"),
    *("evaluation.generate=false", "evaluation.base=false"),
)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a signal in the fourth step leaves it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped), handled():
        train(with_callback(run_config("lora", *SMALL), "Kill", signum=int(signal.SIGTERM), batch=4), folder)
    return folder


@pytest.fixture
def stopped_run(stopped_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": ["trainer.resume=run"]}}))


def go_on(folder: Path) -> float:
    config = run_config("lora", *SMALL)
    config.trainer.resume = str(folder)
    return train(config, folder)


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("learning_rate: 0.001", "learning_rate: 0.002", "optim.learning_rate: 0.001 then, 0.002 now"),
        (
            "callbacks:\n",
            "callbacks:\n  mine:\n    _target_: lightning.Callback\n",
            'callbacks.mine._target_: absent then, "lightning.Callback" now',
        ),
        ("    seed: 0\n", "    seed: 5\n", "weights: "),  # of the random model
        ("max_train: 24", "max_train: 20", "split: "),
        ("{text}", "{text}.", "prompt: "),
        ("  suspects: null", "  suspects: gone.json", "evaluation.suspects=gone.json: there is no such file"),
    ],
)
def test_a_run_that_was_changed_is_refused(before: str, after: str, problem: str, stopped_run: Path) -> None:
    """Whoever opens a finished run needs no file of its questions; whoever goes on with it does."""
    change(stopped_run / "config.yaml", before, after)
    with pytest.raises((RunError, ConfigError)) as caught:
        go_on(stopped_run)
    assert ("what it was made of has changed" in str(caught.value)) == isinstance(caught.value, RunError)
    assert caught.value.problems[0].what.startswith(problem)


def test_a_run_that_moved_goes_on_until_it_has_finished(stopped_run: Path, tmp_path: Path) -> None:
    """tests/runs/test_mixture_run.py compares such a run with one that was not stopped."""
    moved = stopped_run.rename(tmp_path / "elsewhere")
    objective = go_on(moved)
    assert (objective, 12) == (read_results(moved).objective, read_results(moved).steps)
    with pytest.raises(RunError, match="has finished"):
        go_on(moved)


def test_one_process_at_a_time(stopped_run: Path) -> None:
    code = "import sys, time; from pathlib import Path; from cyberlm.runs.run_folder import locked_folder\n"
    code += "with locked_folder(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    line = [sys.executable, "-c", code, str(stopped_run)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match="is in use by another process"):
            go_on(stopped_run)
        with pytest.raises(RunError, match="is in use by another process"):
            evaluate(evaluation_of(), stopped_run)
        other.kill()

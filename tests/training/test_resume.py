"""A run that is killed, at any micro-batch, and resumed ends bit for bit like the run that was never killed."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import test_signals
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from resume_support import differences, fit_again, photograph, run_config
from support import compose, fit_tiny, short_questions

from cyberlm.config.rules import build_config
from cyberlm.config.saved import config_of, hash_of, settings_of
from cyberlm.config.schema import EvaluateConfig, TrainConfig
from cyberlm.evaluation.results import read_results
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, RunError
from cyberlm.runtime.signals import Stopped, handled
from cyberlm.training.checkpointing import SealedCheckpoints, damage, resume_point

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers deprecates a name that peft still uses
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch and Lightning deprecate each other's names
]

CASES = [
    ("sft", ["trainer.accumulate_grad_batches=4"]),
    ("sft", ["trainer.val_check_interval=3", "trainer.checkpoint_every_n_steps=3"]),
    ("lora", []),
    ("lora", ["trainer.accumulate_grad_batches=3", "callbacks=default"]),
    ("lora", ["trainer.max_steps=11"]),
    ("lora", ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optim.learning_rate=0.3"]),
    ("qlora", ["trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"]),
]


@pytest.mark.parametrize(("method", "overrides"), CASES, ids=[f"{m} {' '.join(o)}" for m, o in CASES])
def test_killed_before_any_micro_batch(method: str, overrides: list[str], tmp_path: Path) -> None:
    config = run_config(method, *overrides)
    photograph(config, tmp_path / "whole")
    snapshots = sorted((tmp_path / "snapshots").iterdir())
    assert len(snapshots) > 8
    for snapshot in snapshots if not overrides else snapshots[::3]:
        fit_again(config, snapshot)
        assert differences(tmp_path / "whole", snapshot) == [], snapshot.name


def test_killed_with_loader_workers(tmp_path: Path) -> None:
    config = run_config("lora", "data.num_workers=2")
    photograph(config, tmp_path / "whole")
    for number in (3, 8, 11):  # in the first epoch, between the two, in the second
        fit_again(config, tmp_path / "snapshots" / f"{number:03d}")
        assert differences(tmp_path / "whole", tmp_path / "snapshots" / f"{number:03d}") == []


def test_the_comparison_itself_finds_a_difference(tmp_path: Path) -> None:
    for seed in (0, 1):
        fit_again(run_config("lora", f"seed={seed}"), tmp_path / str(seed), resume=False)
    assert {"metrics.csv", "random state"} <= set(differences(tmp_path / "0", tmp_path / "1"))


# ------------------------------------------------------------------------------------------------ damaged files


def turn_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(("harm", "told"), [(turn_a_bit, "SHA-256 differs"), (tear, "its end is missing")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    harm, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config("lora")
    photograph(config, tmp_path / "whole")
    killed = tmp_path / "snapshots" / "005"
    harm(killed / "checkpoints" / "step_000005.ckpt")
    (killed / "checkpoints" / "step_000006.ckpt.tmp").write_bytes(b"half")
    fit_again(config, killed)
    assert "step_000005.ckpt is damaged" in caplog.text and told in caplog.text
    assert differences(tmp_path / "whole", killed) == []
    left = {file.name for file in (killed / "checkpoints").iterdir()}
    assert left == {"best.ckpt", "step_000005.ckpt.damaged", "step_000015.ckpt", "step_000016.ckpt"}


def test_lost_best_weights_are_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config("lora")
    photograph(config, tmp_path / "whole")
    killed = tmp_path / "snapshots" / "011"
    tear(killed / "checkpoints" / "best.ckpt")
    fit_again(config, killed)
    assert "best weights so far are lost" in caplog.text
    assert differences(tmp_path / "whole", killed) == []


def test_every_bit_and_every_length_counts(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "step_000003.ckpt"
    checkpoint = {"global_step": 3, "state_dict": {"w": torch.arange(50.0)}}
    SealedCheckpoints().save_checkpoint(checkpoint, file)
    assert damage(file) == ""
    assert torch.equal(torch.load(file, weights_only=True)["state_dict"]["w"], torch.arange(50.0))
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place])
        assert damage(file), place
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert damage(file), place


# ------------------------------------------------------------------------------------------------ full disks


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of four MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    """The run stops with one screen; with room again it goes on, and ends like the run that never stopped."""
    config = run_config("lora", "trainer.checkpoint_every_n_steps=2")
    fit_again(config, tmp_path / "whole", resume=False)
    ballast = small_disk / "ballast"
    size = (tmp_path / "whole" / "checkpoints" / "step_000016.ckpt").stat().st_size
    ballast.write_bytes(b"0" * ((4 << 20) - int(1.5 * size)))
    run = small_disk / "run"
    with pytest.raises(RunError) as caught:
        fit_again(config, run, resume=False)
    screen = caught.value.screen()
    assert "No space left on device" in screen and "step_000004.ckpt" in screen
    needed = re.search(r"([\d,]+) bytes needed, [\d,]+ bytes free", screen)
    assert needed is not None and int(needed[1].replace(",", "")) == pytest.approx(size, rel=0.01)
    assert f"trainer.resume={run}" in screen
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step_000002.ckpt"]
    assert damage(run / "checkpoints" / "step_000002.ckpt") == ""
    ballast.unlink()
    fit_again(config, run)
    assert differences(tmp_path / "whole", run) == []


LIMITED = """
import resource, sys, torch
from pathlib import Path
from cyberlm.training.checkpointing import SealedCheckpoints
from cyberlm.runtime.errors import RunError
file = Path(sys.argv[1])
SealedCheckpoints().save_checkpoint({"w": torch.zeros(10)}, file)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    SealedCheckpoints().save_checkpoint({"w": torch.zeros(100_000)}, file)
except RunError as error:
    print(error.screen())
"""


def test_a_limit_on_file_sizes_is_told_and_harms_nothing(tmp_path: Path) -> None:
    """The same without a file system of its own: the system refuses the write in the middle."""
    file = tmp_path / "checkpoints" / "step_000001.ckpt"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"A checkpoint could not be written: {os.strerror(errno.EFBIG)}.")
    assert f"{file}: 40" in done.stdout and "bytes needed" in done.stdout
    assert f"The last good checkpoint stays: {file}" in done.stdout
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert damage(file) == "" and len(torch.load(file, weights_only=True)["w"]) == 10
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(RunError, match="could not be written"):
        SealedCheckpoints().save_checkpoint({}, tmp_path / "checkpoints" / "step_000001.ckpt")


# ------------------------------------------------------------------------------------------------ which are kept


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    config = run_config("lora", "trainer.keep_checkpoints=3", "trainer.checkpoint_every_n_steps=4")
    fit_tiny(config, short_questions(32), tmp_path)
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "step_000008.ckpt", "step_000012.ckpt", "step_000016.ckpt"]
    assert resume_point(tmp_path, print) == tmp_path / "checkpoints" / "step_000016.ckpt"


def test_minutes_alone_make_a_checkpoint(tmp_path: Path) -> None:
    rules = ("trainer.checkpoint_every_n_steps=1000", "trainer.checkpoint_every_minutes=1e-9")
    fit_tiny(run_config("lora", *rules, "trainer.keep_checkpoints=99"), short_questions(32), tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("step_*.ckpt"))) == 16


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as a signal in the fourth step leaves it."""
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": ["trainer.resume=run"]}}))
    config = small_run()
    config.callbacks["kill"] = {"_target_": "test_signals.Kill", "signum": int(signal.SIGTERM), "batch": 4}
    with pytest.raises(Stopped), handled():
        train(config, tmp_path / "run")
    monkeypatch.setattr(test_signals.Kill, "armed", False)
    return tmp_path / "run"


def small_run(*overrides: str) -> TrainConfig:
    sizes = ("data.max_train=24", "data.max_validation=8", "data.max_test=8", "data.micro_batch_size=4")
    return run_config("lora", *sizes, "evaluation.generate=false", "evaluation.base=false", *overrides)


def go_on(folder: Path) -> float:
    config = small_run()
    config.trainer.resume = str(folder)
    return train(config, folder)


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def test_a_setting_changed_by_hand_is_named(stopped_run: Path) -> None:
    change(stopped_run / "config.yaml", "learning_rate: 0.001", "learning_rate: 0.002")
    with pytest.raises(RunError) as caught:
        go_on(stopped_run)
    assert [problem.what for problem in caught.value.problems] == ["optim.learning_rate: 0.001 then, 0.002 now"]
    change(stopped_run / "config.yaml", "learning_rate: 0.002", "learning_rate: 0.001")
    go_on(stopped_run)
    with pytest.raises(RunError, match="has finished"):
        go_on(stopped_run)


def made_older(run: Path) -> None:
    """Takes out of a run what it would lack from a time when accuracy alone chose the weights."""
    change(run / "config.yaml", "  monitor: accuracy\n", "")
    before = {key: value for key, value in settings_of(config_of(run)).items() if key != "trainer.monitor"}
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"config": hash_of(before)}))
    for file in (run / "checkpoints").glob("step_*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["cyberlm"]["settings"] = before
        (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("BestWeights"))
        del state["figures"]
        SealedCheckpoints().save_checkpoint(checkpoint, file)


@pytest.mark.parametrize("validated", [True, False])
def test_a_run_from_before_the_monitor_goes_on_by_accuracy(
    validated: bool, stopped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(stopped_run)
    config = small_run("trainer.monitor=accuracy", *(["trainer.val_check_interval=1"] if validated else []))
    whole = train(config, tmp_path / "whole")
    config.callbacks["kill"] = {"_target_": "test_signals.Kill", "signum": int(signal.SIGTERM), "batch": 4}
    monkeypatch.setattr(test_signals.Kill, "armed", True)
    with pytest.raises(Stopped), handled():
        train(config, stopped_run)
    monkeypatch.setattr(test_signals.Kill, "armed", False)
    made_older(stopped_run)
    assert go_on(stopped_run) == whole
    results = read_results(stopped_run)
    assert (results.monitor, results.objective) == ("accuracy", results.validation["accuracy"])


def test_a_setting_added_by_hand_is_named(stopped_run: Path) -> None:
    change(stopped_run / "config.yaml", "callbacks:\n", "callbacks:\n  mine:\n    _target_: lightning.Callback\n")
    with pytest.raises(RunError) as caught:
        go_on(stopped_run)
    (problem,) = caught.value.problems
    assert problem.what == 'callbacks.mine._target_: absent then, "lightning.Callback" now'


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("    seed: 0\n", "weights"),  # of the random model
        ("max_train: 24", "split"),
        ("{text}", "prompt"),
    ],
)
def test_what_the_run_was_made_of_is_compared(key: str, what: str, stopped_run: Path) -> None:
    changed = {"    seed: 0\n": "    seed: 5\n", "max_train: 24": "max_train: 20", "{text}": "{text}."}[key]
    change(stopped_run / "config.yaml", key, changed)
    with pytest.raises(RunError, match="what it was made of has changed") as caught:
        go_on(stopped_run)
    assert caught.value.problems[0].what.startswith(f"{what}: ")


def test_a_run_that_moved_goes_on(stopped_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    stopped_run.rename(moved)
    objective = train(small_run(), tmp_path / "whole")
    assert go_on(moved) == objective
    assert (moved / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_one_process_at_a_time(stopped_run: Path) -> None:
    code = "import sys, time; from pathlib import Path; from cyberlm.runs.run_folder import sole_owner\n"
    code += "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    line = [sys.executable, "-c", code, str(stopped_run)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match="is in use by another process"):
            go_on(stopped_run)
        with pytest.raises(RunError, match="is in use by another process"):
            evaluate(build_config(compose("logger=none", command="evaluate"), EvaluateConfig), stopped_run)
        other.kill()


def test_a_resumed_run_needs_what_its_configuration_names(stopped_run: Path) -> None:
    """Whoever opens a finished run does not need its questions; whoever goes on with it does."""
    change(stopped_run / "config.yaml", "  suspects: null", "  suspects: gone.json")
    with pytest.raises(ConfigError) as caught:
        go_on(stopped_run)
    assert [problem.what for problem in caught.value.problems] == [
        "evaluation.suspects=gone.json: there is no such file"
    ]

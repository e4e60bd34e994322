"""The same command once more: what goes on, what is begun, and what is refused."""

import shutil
from pathlib import Path

import pytest
from support import TINY, config_of, evaluation_of
from typed import type_line

from cyberlm.config.saved import save_config
from cyberlm.runs import resume
from cyberlm.runs.resume import continues_run
from cyberlm.runs.train import train

TORCHRUN, SLURM = {"TORCHELASTIC_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "2"}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Folder of a run that was stopped: its configuration, and a checkpoint."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_000001.ckpt").touch()
    save_config(folder, config_of("seed=3"))
    return folder


def typed(folder: Path, *line: str, **variables: str) -> object:
    """Types a training run in `folder`/run; the exit code, or the screen where that is not 0."""
    seen: list[bool] = []
    run = lambda config, run: seen.append(continues_run(config, run))  # noqa: E731
    ended = type_line(folder, "train", *TINY, "hydra.run.dir=run", *line, run=run, **variables)
    return ended.err if ended.code else seen[0]


def test_a_run_that_is_started_again_goes_on(begun: Path) -> None:
    for variables in (TORCHRUN, SLURM):
        assert typed(begun.parent, "seed=3", "logger=csv", **variables) is True
    assert typed(begun.parent, "seed=3", "trainer.resume=auto") is True
    assert "run holds results already" in str(typed(begun.parent, "seed=3"))
    config = evaluation_of("model=tiny_random")  # an evaluation begins again
    config.trainer.resume = "auto"
    assert not continues_run(config, begun)


def test_a_run_without_a_folder_before_it_is_begun(tmp_path: Path) -> None:
    assert typed(tmp_path, **TORCHRUN) is False
    assert typed(tmp_path, "trainer.resume=auto", TORCHELASTIC_RESTART_COUNT="0") is False
    (tmp_path / "empty").mkdir()
    for kind, line in (("run", []), ("sweep", ["-m", "seed=1,2"])):
        ended = type_line(tmp_path / "empty", "train", *TINY, "trainer.resume=auto", *line, run=lambda *_: None)
        shown = f"trainer.resume=auto resumes in a folder that is named:\n  - hydra.{kind}.dir is made up of the time"
        assert ended.err.startswith(shown)
    assert not list((tmp_path / "empty").iterdir())


def test_other_settings_are_refused_but_another_number_of_processes(begun: Path) -> None:
    before = set(begun.rglob("*"))
    shown = typed(begun.parent, "seed=4", "method.lora.rank=2", **SLURM)
    assert shown == (
        "run holds a run with other settings, so it cannot be resumed:\n"
        "  - method.lora.rank: 16 then, 2 now\n"
        "  - seed: 3 then, 4 now\n\n"
        "Type the settings of then, or hydra.run.dir=FOLDER of a new run."
    )
    assert set(begun.rglob("*")) == before
    # which data.batch_size allows
    save_config(begun, config_of("data.batch_size=16", "trainer.devices=2"))
    assert typed(begun.parent, "data.batch_size=16", "trainer.devices=4", **SLURM) is True
    assert "trainer.devices: 2 then, 4 now" in str(typed(begun.parent, "trainer.devices=4", **SLURM))


def test_a_run_that_has_finished_is_not_trained_again(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert isinstance(train(config_of("trainer.resume=auto"), run), float)
    changed = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed <= {"run"}, changed  # the lock came and went


def test_other_processes_keep_the_shards_of_a_replica_where_they_can() -> None:
    """Of eight processes in two replicas, a weight is spread over four."""
    for devices, then, now in ((8, 2, 2), (4, 2, 1), (12, 2, 3), (6, 2, 1), (12, 1, 1)):
        config = config_of("trainer.strategy=fsdp2", "trainer.devices=8", f"trainer.replicas={then}")
        resume._change_processes(config, devices)
        assert (config.trainer.devices, config.trainer.replicas) == (devices, now)

"""Jobs of a sweep under Hydra's launchers: side by side, of several processes, in Ray."""

import os
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
from cluster_support import TRAIN, run, whole

pytestmark = pytest.mark.slow


class Gpus(L.Callback):
    """Writes which GPUs a run sees."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: object) -> None:
        Path(trainer.default_root_dir, "gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])


def test_jobs_side_by_side_have_gpus_of_their_own(tmp_path: Path) -> None:
    few = ["data.max_train=4", "trainer.max_epochs=1", "+callbacks.gpus._target_=test_sweeps.Gpus", "seed=0,1"]
    line = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TRAIN, *few, f"hydra.sweep.dir={tmp_path}"]
    run([sys.executable, "train.py", *line], CUDA_VISIBLE_DEVICES="4,7")
    assert {(tmp_path / job / "gpus").read_text() for job in ("0", "1")} == {"4", "7"}


def test_a_job_of_two_local_tasks(reference: Path, launchers: Path, tmp_path: Path) -> None:
    line = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", *TRAIN, "seed=0"]
    run([launchers, "train.py", *line, "hydra.launcher.timeout_min=10", f"hydra.sweep.dir={tmp_path}"])
    assert whole(tmp_path / "0") == whole(reference / "train")


def test_a_job_of_two_processes_in_ray(reference: Path, launchers: Path, tmp_path: Path) -> None:
    own = ["hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=1"]
    line = ["-m", "hydra/launcher=ray", *own, *TRAIN, "trainer.devices=2", "seed=0"]
    run([launchers, "train.py", *line, f"hydra.sweep.dir={tmp_path}"])
    assert whole(tmp_path / "0") == whole(reference / "train")

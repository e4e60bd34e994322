"""A real Slurm of two nodes: srun, a requeued batch job, and jobs of a sweep on both nodes (submitit)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_support import EVALUATE, ROOT, TRAIN, answers, environment, once, run, wait_for, whole

pytestmark = pytest.mark.slow


def test_srun_on_two_nodes(reference: Path, slurm: dict[str, str], tmp_path: Path) -> None:
    line = [sys.executable, "evaluate.py", *EVALUATE, f"run={reference / 'train'}", f"hydra.run.dir={tmp_path}"]
    run(["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", *line], **slurm)
    assert answers(tmp_path) == answers(reference / "evaluate")


def job_is_over(job: str, slurm: dict[str, str]) -> bool:
    """True once a job runs no more; failed or not."""
    shown = run(["scontrol", "show", "job", job], **slurm)
    return re.search("JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT)", shown) is not None


def test_requeued_job_goes_on(reference: Path, slurm: dict[str, str], tmp_path: Path) -> None:
    """USR1, as `--signal=USR1@120` sends it: exit code 75, which the cluster requeues (RequeueExit)."""
    line = [sys.executable, "train.py", *TRAIN, *once(batch=5), f"hydra.run.dir={tmp_path / 'run'}"]
    script, said = tmp_path / "job.sh", tmp_path / "said"
    script.write_text(f"#!/bin/bash\nexec srun --kill-on-bad-exit=1 {subprocess.list2cmdline(line)}\n")
    submit = ["sbatch", "--parsable", "--nodes=2", "--ntasks=2", "--requeue", "--open-mode=append", f"--output={said}"]
    job = run([*submit, script], **slurm).strip()
    wait_for((tmp_path / "run" / "once").is_file, said.read_text)
    run(["scancel", "--signal=USR1", job], **slurm)
    wait_for(lambda: job_is_over(job, slurm), said.read_text)
    assert "Restarts=1" in run(["scontrol", "show", "job", job], **slurm), said.read_text()
    assert "Stopped by SIGUSR1" in said.read_text() and "Resuming from" in said.read_text()
    assert whole(tmp_path / "run") == whole(reference / "train")


def test_preempted_job_of_a_sweep_goes_on(
    reference: Path, launchers: Path, slurm: dict[str, str], tmp_path: Path
) -> None:
    """USR2, submitit's signal: its job of two nodes saves, is requeued by submitit, and ends in its own folder."""
    line = [launchers, "train.py", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", *TRAIN, "seed=0"]
    line += [*once(batch=5), f"hydra.sweep.dir={tmp_path}", "hydra.launcher.timeout_min=30"]
    said = tmp_path / "said"

    def told() -> str:
        return "\n".join(file.read_text() for file in [said, *tmp_path.glob(".submitit/*/*_log.*")])

    with said.open("w") as output:
        sweep = subprocess.Popen(line, cwd=ROOT, env=environment(**slurm), stdout=output, stderr=output)
    try:
        wait_for(lambda: (tmp_path / "0" / "once").is_file() or sweep.poll() is not None, told)
        jobs = run(["squeue", "--noheader", "--format=%A", "--name=train"], **slurm).split()
        assert jobs, told()
        run(["scancel", "--signal=USR2", *jobs], **slurm)
        wait_for(lambda: sweep.poll() is not None, told)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, told()
    assert "Requeued job" in told() and "Resuming from" in told()
    assert whole(tmp_path / "0") == whole(reference / "train")

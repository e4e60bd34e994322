"""Launchers for the tests of this folder, installed where they are missing; reference runs, once for all of them."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Lets one of the processes of pytest-xdist make a folder; true for it."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield not (folder / "made").is_file()
        (folder / "made").touch()


@pytest.fixture(scope="session")
def reference(shared_folder: Path) -> Path:
    """Folder of a run, and of its evaluation, by two processes."""
    from cluster_support import EVALUATE, ROOT, TRAIN
    from forks import run_ranks, type_command

    folder = shared_folder / "reference"
    with made_once(folder) as first:
        if first:
            for command, given in (("train", TRAIN), ("evaluate", (*EVALUATE, f"run={folder / 'train'}"))):
                line = (*given, f"hydra.run.dir={folder / command}")
                codes, printed = run_ranks(2, type_command, command, *line, folder=ROOT)
                assert codes == [0, 0], printed
    return folder


SLURM_CONF = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldPort={ports[0]}
RequeueExit=75
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=p Nodes=n[1-2] Default=YES MaxTime=60 State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which srun, sbatch and scontrol find a cluster of two nodes, both on this machine.

    Their names do not resolve, as those of a real cluster do: MASTER_ADDR stands in.
    """
    from cluster_support import wait_for
    from debian import install

    from cyberlm.export.serving import free_port

    if os.geteuid():
        pytest.skip("Slurm's daemons want root")
    install("slurmctld", "slurmd", "slurm-client", program="slurmctld")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    host, conf = socket.gethostname().split(".")[0], folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=host, folder=folder, ports=[free_port("127.0.0.1", 0) for _ in range(3)]))
    variables = {"SLURM_CONF": str(conf), "MASTER_ADDR": "127.0.0.1"}
    lines = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    path = f"{os.environ['PATH']}:/usr/sbin"
    with (folder / "log").open("w") as log:
        started = [
            subprocess.Popen(line, env={**os.environ, **variables, "PATH": path}, stdout=log, stderr=log)
            for line in lines
        ]
        try:
            sinfo = ["sinfo", "--noheader", "--format=%D", "--states=idle"]
            ask = {"env": {**os.environ, **variables}, "capture_output": True, "text": True, "check": False}
            wait_for(lambda: subprocess.run(sinfo, **ask).stdout.strip() == "2", (folder / "log").read_text)
            yield variables
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait(timeout=60)


@pytest.fixture(scope="session")
def launchers(pytestconfig: pytest.Config) -> Path:
    """Python of an environment that has Ray and Hydra's launchers besides what this one has.

    The launcher for Ray asks for an older cloudpickle than joblib does, and works with either.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("launchers")
    python = folder / "bin" / "python"
    with made_once(folder) as first:
        if first:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
            (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
            for wanted in (["hydra-submitit-launcher", "ray"], ["--no-deps", "hydra-ray-launcher"]):
                line = [python, "-m", "pip", "install", "--quiet", *wanted]
                done = subprocess.run(line, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"pip install {' '.join(wanted)}: {done.stderr.strip().splitlines()[-1:]}")
    return python

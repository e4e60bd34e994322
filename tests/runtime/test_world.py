"""The world that the environment tells of: torchrun's, Slurm's, none; a sweep in it is refused."""

import datetime
import os
import sys

import pytest
from support import compose, config_of

from cyberlm.__main__ import main
from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ConfigError, RunError
from cyberlm.runtime.world import World, find_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
SLURM_STEP = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[03-05,9]"},
    **{"SLURM_PROCID": "5", "SLURM_LOCALID": "2"},
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> World | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return find_world()


def test_world_of_torchrun_and_of_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # a batch script has the variables of its job, and is one process
    assert launched(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None
    assert launched(monkeypatch, TORCHRUN) == World(3, 4, 1, "env://", "its launcher")
    assert launched(monkeypatch, {"TORCHELASTIC_RUN_ID": "none"}) == World(3, 4, 1, "env://", "torchrun")


def test_world_of_a_slurm_step(monkeypatch: pytest.MonkeyPatch) -> None:
    firsts = {"gpu[03-05,9]": "gpu03", "gpu[7,9-12]": "gpu7", "a1,b[2-3]": "a1", "n1": "n1", "x[1-2]-ib": "x1-ib"}
    for nodes, first in firsts.items():
        world = launched(monkeypatch, {**SLURM_STEP, "SLURM_STEP_NODELIST": nodes})
        assert world == World(5, 8, 2, f"tcp://{first}:15071", "srun")
    address = launched(monkeypatch, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert address is not None and address.init_method == "tcp://10.0.0.1:4000"


def test_the_launcher_decides_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, TORCHRUN)
    assert config_of().trainer.devices == 4
    with pytest.raises(ConfigError) as caught:
        build_config(compose("trainer.devices=2"), TrainConfig)
    assert "trainer.devices=2 under its launcher, which has started 4" in caught.value.screen()
    monkeypatch.setattr(sys, "argv", ["cyberlm", "export", "run=nowhere"])
    main()  # other commands are the work of one process: rank 0 alone would complain


def test_processes_that_do_not_meet_are_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # set again by what joins
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", datetime.timedelta(seconds=1))
    with pytest.raises(RunError) as caught:
        distributed.join(World(1, 2, 1, "tcp://127.0.0.1:9", "a test"))
    assert "rank 1 at tcp://127.0.0.1:9" in caught.value.screen()

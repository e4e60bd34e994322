"""The processes that a launcher has started together, as its environment variables describe them. Imports no torch.

torchrun, accelerate, Kubernetes' training operator and Ray Train set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT;
srun sets variables of its step (those of the job are there in a batch script, too, which is one process).
"""

import os
import re
from dataclasses import dataclass

FIRST_PORT, PORTS = 15000, 10000
"""Ports that the steps of Slurm's jobs meet at, where MASTER_PORT does not name one."""


@dataclass(frozen=True)
class World:
    """Place of this process among those of its launcher.

    Attributes:
        rank, size: Of this process, and of the world.
        local_rank: Number of this process on its node, from 0.
        init_method: Address at which all meet, as torch.distributed takes it.
        launcher: Name for messages.
    """

    rank: int
    size: int
    local_rank: int
    init_method: str
    launcher: str


def find_world() -> World | None:
    """The world that this process belongs to; None where no launcher has started it."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "its launcher"
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")), "env://", launcher)
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        rank, size, local_rank = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
        return World(rank, size, local_rank, _slurm_address(), "srun")
    return None


def _slurm_address() -> str:
    """Address of the first node of this process's step: of `node[03-05,7]`, node03."""
    env = os.environ
    first = re.sub(r"\[(\w+).*?\]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]
    port = FIRST_PORT + (10 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % PORTS
    return f"tcp://{env.get('MASTER_ADDR', first)}:{env.get('MASTER_PORT', port)}"

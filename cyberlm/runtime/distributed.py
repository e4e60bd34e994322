"""Collective operations of the processes that work on one run together.

All of them call every function but `rank`, `local_rank` and `world_size`, in the same order. A single process has rank
0 of 1 and waits for no one. Rank 0 reads, writes and decides; the others `follow` what it hands out.
"""

import contextlib
import ctypes
import datetime
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.world import World

Item = TypeVar("Item")

JOIN_TIMEOUT = datetime.timedelta(minutes=10)
"""Longest wait for all processes to join."""
WORK_TIMEOUT = datetime.timedelta(hours=4)
"""Longest wait for each other after that, as rank 0 may tokenise many questions alone; one that ends is noticed."""
SECONDS_FOR_RANK_0 = 3.0
"""An error that all processes meet is shown by rank 0, which has files to close first."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Variable of torch's elastic agent: how often it has started its processes again."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process is sent when its parent ends."""

_busy = False
"""The other processes run the calls of rank 0, or rank 0 has released them."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """0 in the process that writes files and prints."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


# -------------------------------------------------------------------------------------------------- join and leave


def join(world: World) -> None:
    """Joins the group of all processes: gloo for tensors on a CPU, NCCL for those on a GPU.

    Under Ray Train the group is there already. A process of torch's elastic agent ends with the agent, which, killed,
    could not end it any more. Each node's agent counts its own restarts, of which all have to know.

    Raises:
        RunError: If they cannot connect.
    """
    os.environ["LOCAL_RANK"] = str(world.local_rank)
    if "TORCHELASTIC_RUN_ID" in os.environ and os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, number, size = next(dist.rendezvous(world.init_method, world.rank, world.size, timeout=JOIN_TIMEOUT))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                store = fresh_store(store, number, size)
            dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=JOIN_TIMEOUT)
        except (dist.DistError, RuntimeError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if "env" in world.init_method else ""
            problem = Problem(f"rank {world.rank} at {where or world.init_method}: {str(error).splitlines()[0]}")
            hint = "MASTER_ADDR and MASTER_PORT must be an address and a port of rank 0's node that all nodes reach."
            raise RunError(f"The {world.size} processes of this run could not connect:", [problem], hint) from error
        dist.distributed_c10d._set_pg_timeout(WORK_TIMEOUT)
    if RESTARTS in os.environ:
        os.environ[RESTARTS] = max(all_gather(os.environ[RESTARTS]), key=int)


def fresh_store(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The store, without the addresses that processes of an earlier start have left in it.

    torch's agents keep their store when they start processes again (https://github.com/pytorch/pytorch/issues/135712),
    and know of no number of the start that all nodes share. So rank 0 makes one up. It answers the request of each
    other rank with it, until that confirms: that of a process that has ended is answered, too, but never confirmed.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"request/{rank}", own)
        start = store.get(own).decode()
        store.set(f"{start}/{rank}", "")
        return dist.PrefixStore(start, store)
    missing, until = list(range(1, size)), time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while missing:
        for other in missing:
            store.set(store.get(f"request/{other}").decode(), own)
        time.sleep(0.01)
        missing = [other for other in missing if not store.check([f"{own}/{other}"])]
        if missing and time.monotonic() > until:
            raise dist.DistStoreError(f"waiting for ranks {missing}")
    return dist.PrefixStore(own, store)


@contextlib.contextmanager
def joined(world: World) -> Iterator[None]:
    """Within it, this process is one of a world. Rank 0 releases the others at its end, or if it fails before that.

    Those that work when rank 0 fails notice that its connection closes.
    """
    join(world)
    try:
        yield
    except BaseException:
        if rank() == 0:
            reports_failure()
            if not _busy:
                release()
        raise
    if rank() == 0:
        release()


@contextlib.contextmanager
def local_main_process_first() -> Iterator[None]:
    """Lets one process of each node go first: the others then find what it has downloaded or made."""
    if local_rank() > 0:
        all_gather(None)
    yield
    if local_rank() == 0:
        all_gather(None)


def call_on_other_ranks(function: Callable[..., object], *arguments: object) -> None:
    """Lets every other process call a module's function, with arguments that can be pickled. Called by rank 0."""
    global _busy
    if world_size() > 1:
        broadcast((function, arguments))
        _busy = True


def release() -> None:
    """Releases the other processes: from here on rank 0 is alone."""
    global _busy
    if world_size() > 1:
        broadcast(None)
        _busy = True
        dist.destroy_process_group()


def follow() -> None:
    """Runs the calls that rank 0 sends, until it sends no more."""
    while (order := broadcast(None)) is not None:
        function, arguments = order
        function(*arguments)
    dist.destroy_process_group()


def lost_process(error: Exception) -> bool:
    """True where an error says that another process of the group has ended."""
    text = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text) or "NCCL" in text


def reports_failure() -> bool:
    """True in one process at most, of those that fail: the one that says why. Rank 0 is given a moment to be it."""
    if world_size() == 1:
        return True
    if rank():
        time.sleep(SECONDS_FOR_RANK_0)
    try:
        return dist.distributed_c10d._get_default_store().add("failures", 1) == 1
    except RuntimeError:  # the store was rank 0's, which has ended
        return False


# -------------------------------------------------------------------------------------------------- share and gather


def rows_of_rank(count: int) -> range:
    """The rows, of `count`, that are this process's to work on: each row is one process's."""
    return range(rank(), count, world_size())


def gather_rows(own: Sequence[Item], count: int) -> list[Item]:
    """Results of all processes, each of its `rows_of_rank` of `count` rows, in the order of the rows."""
    if world_size() == 1:
        return list(own)
    parts = all_gather(list(own))
    return [parts[row % world_size()][row // world_size()] for row in range(count)]


def all_gather(value: Item) -> list[Item]:
    """Each process's value, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Item) -> Item:
    """Rank 0's value."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_reduce(*values: float) -> list[float]:
    """The sum of each value over all processes."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)  # on the CPU, so over gloo
    dist.all_reduce(total)
    return [float(value) for value in total]

"""Collective operations of the processes that train one model together (`trainer.devices`).

All of them call every function but `rank` and `world_size`, in the same order. A single process has rank 0 of 1 and
waits for no one.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """0 in the process that writes files and speaks to the user."""
    return dist.get_rank() if world_size() > 1 else 0


def share(count: int) -> range:
    """The rows, of `count`, that are this process's to work on: each row is one process's."""
    return range(rank(), count, world_size())


def merge_shares(mine: Sequence[Item], count: int) -> list[Item]:
    """Results of all processes, each of its `share` of `count` rows, in the order of the rows."""
    if world_size() == 1:
        return list(mine)
    parts = all_gather(list(mine))
    return [parts[row % world_size()][row // world_size()] for row in range(count)]


def all_gather(value: Item) -> list[Item]:
    """Each process's value, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Item) -> Item:
    """Rank 0's value; what the others give is left aside."""
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

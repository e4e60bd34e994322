"""Processes that start again under agents that keep their store."""

import time
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from cyberlm.runtime.distributed import fresh_store


def test_processes_that_start_again_do_not_find_addresses_of_those_that_ended() -> None:
    """Rank 2 comes late, and one before it has ended with its request unanswered."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def start(rank: int, wait: float) -> dist.Store:
        time.sleep(wait)
        return fresh_store(dist.TCPStore("127.0.0.1", agent.port, is_master=False), rank, 3)

    with ThreadPoolExecutor(3) as pool:
        before = list(pool.map(start, range(3), (0, 0, 0)))
        before[2].set("address", "old")
        assert before[0].get("address") == before[1].get("address") == b"old"
        agent.set("request/2", "of a process that has ended")
        after = list(pool.map(start, range(3), (0, 0, 0.3)))
    assert not any(store.check(["address"]) for store in after)
    after[2].set("address", "new")
    assert after[0].get("address") == after[1].get("address") == b"new"

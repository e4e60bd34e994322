"""How much memory there is, and how much this process holds."""

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """What this process holds now; its largest so far where the system does not say."""
    found = _kib(STATUS, "VmRSS")
    return found if found is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def host_bytes() -> int:
    """What this process may hold in all: what it has, and what is free within its container's and its own limits."""
    held = resident_bytes()
    limits = [held + (free if (free := _kib(MEMORY, "MemAvailable")) is not None else _physical())]
    allowed, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if allowed is not None and used is not None:
        limits.append(held + max(0, allowed - used))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:  # of which programs and reserved space take a share without memory
        limits.append(address_space - ((_kib(STATUS, "VmSize") or held) - held))
    return min(limits)


def give_back() -> None:
    """Hands freed memory back to the system: glibc keeps it in gaps that another phase's tensors seldom fit in."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
        ctypes.CDLL(None).malloc_trim(0)


def gpu_bytes(device: torch.device) -> int:
    """What this process may hold on a GPU in all: what torch has reserved there, and what is free."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def _kib(file: Path, name: str) -> int | None:
    """A line `Name:  123 kB` in bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or `max`
        return None


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

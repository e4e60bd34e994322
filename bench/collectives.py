"""Time of all-reduce and all-gather against size, of two processes over gloo on this machine, and a straight line.

What it is for is the form, latency + bytes / bandwidth, that bench/scaling.py counts with: the figures themselves are
those of this machine's memory, and say nothing of a cluster.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import measure

SIZES = [2**power for power in range(10, 27, 2)]
"""Bytes of each process: 1 KiB to 64 MiB."""


def main() -> None:
    options = measure.parser(__doc__, pairs=15).parse_args()
    sizes = SIZES[:3] if options.small else SIZES
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, __file__, "--worker", folder, str(options.pairs), json.dumps(sizes)]
        first, second = (subprocess.Popen([*line, str(rank)]) for rank in (0, 1))
        if first.wait() or second.wait():
            raise SystemExit("a process has failed")
        found = json.loads((Path(folder) / "found.json").read_text())
    lines = {}
    rows: list[list[object]] = [["operation, KiB", "measured, ms", "line, ms", "measured / line"]]
    for name, seconds in found.items():
        medians = [statistics.median(times) for times in seconds]
        latency, each = straight_line(sizes, medians)
        lines[name] = {"latency": latency, "bandwidth": 1 / each}
        for size, median in zip(sizes, medians, strict=True):
            fitted = latency + size * each
            row = [f"{name} {size / 1024:g}", f"{median * 1e3:.3f}", f"{fitted * 1e3:.3f}", f"{median / fitted:.2f}"]
            rows.append(row)
    print(measure.table("two processes, gloo", rows))
    for name, line in lines.items():
        print(f"{name}: {line['latency'] * 1e6:.0f} us + bytes / {line['bandwidth'] / 1e9:.2f} GB/s")
    measure.write_results("collectives", options.small, {"sizes": sizes, "lines": lines, "seconds": found})


def straight_line(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Seconds at size 0 and for each byte, by least squares of relative errors: small sizes count as much as large."""
    weights = [1 / value**2 for value in seconds]
    total = sum(weights)
    x = sum(w * size for w, size in zip(weights, sizes, strict=True)) / total
    y = sum(w * value for w, value in zip(weights, seconds, strict=True)) / total
    triples = list(zip(weights, sizes, seconds, strict=True))
    slope = sum(w * (size - x) * (value - y) for w, size, value in triples) / sum(
        w * (s - x) ** 2 for w, s, _ in triples
    )
    return y - slope * x, slope


def worker(folder: Path, pairs: int, sizes: list[int], rank: int) -> None:
    """One of two processes; the first writes what it measured."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, list[list[float]]] = {"all_reduce": [], "all_gather": []}
    for size in sizes:
        mine = torch.zeros(size // 4)
        both = [torch.zeros_like(mine), torch.zeros_like(mine)]
        calls = {
            "all_reduce": lambda mine=mine: dist.all_reduce(mine),
            "all_gather": lambda mine=mine, both=both: dist.all_gather(both, mine),
        }
        for name, call in calls.items():
            times = []
            for _ in range(pairs + 2):  # the first two are warm-up
                dist.barrier()
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            found[name].append(times[2:])
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5]))
    else:
        main()

"""A sweep's own time and memory, and its leaderboard's, at 10, 100 and 1,000 jobs.

    python bench/sweep_scale.py --threads 1

One tiny run is made for real (`model=tiny_random`, a few embedded questions). Then `train.py -m seed=...` runs as it
is, with Hydra's sweeper, launcher and callbacks, cyberlm's checks and its leaderboard, but for the process of each job:
in its place the tiny run's folder is copied, with other scores. Each size has a process of its own. Memory of the sweep
is its resident memory after the last job less that after the tenth; of the leaderboard, its peak above that.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from data_scale import memory

TINY = (
    "model=tiny_random data=sample data.max_train=16 data.max_validation=8 data.max_test=8 evaluation.generate=false "
    "prompt=letter logger=none trainer.accelerator=cpu"
)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--sizes", default="10,100,1000", help="default %(default)s")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    measure.limit_threads(options.threads)
    if options.worker:
        return work(measure.Channel())
    sizes = [12, 14] if options.small else sorted(map(int, options.sizes.split(",")))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        line = [sys.executable, str(measure.ROOT / "train.py"), *TINY.split(), f"hydra.run.dir={run}"]
        subprocess.run(line, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for size in sizes:
            with measure.Worker(f"{size} jobs", [sys.executable, Path(__file__).resolve(), "--worker", "x"]) as worker:
                found[size] = worker.ask("sweep", run=str(run), jobs=size, folder=str(Path(folder) / f"{size}"))
            print(f"{size} jobs: {found[size]}", flush=True)
    rows: list[list[object]] = [
        ["jobs", "before the first, s", "each, s", "kept for each, KiB", "leaderboard, ms/job", "its peak, KiB/job"]
    ]
    for size, row in found.items():
        kept = row["kept"] / max(size - 10, 1) / 1024
        board = row["leaderboard"] * 1e3 / size, row["leaderboard_peak"] / size / 1024
        rows.append([size, *(f"{value:.2f}" for value in (row["before"], row["jobs"] / size, kept, *board))])
    print("\n" + measure.table("A sweep", rows))
    measure.write_results("sweep_scale", options.small, {"sizes": found})


def work(channel: measure.Channel) -> None:
    order = channel.receive()
    os.chdir(Path(order["run"]).parent)
    found = sweep(Path(order["run"]), order["jobs"], Path(order["folder"]))
    channel.reply(**found)


def sweep(run: Path, jobs: int, folder: Path) -> dict[str, float]:
    """Runs the sweep in this process, and measures it."""
    from cyberlm.config.schema import TrainConfig
    from cyberlm.runs import launch, leaderboard
    from cyberlm.runs.checks import checked_config

    resident: list[int] = []
    times = [time.perf_counter()]
    found: dict[str, float] = {}
    show = leaderboard.show_leaderboard

    def copy(command: str, schema: Any, composed: Any) -> float:
        """What `run_in_child` does, with a copied run in place of the child."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        config = HydraConfig.get()
        job = Path(config.runtime.output_dir)
        checked_config(composed, schema, job)
        copy_run(run, job, config.job.num)
        OmegaConf.save(config.overrides.task, job / ".hydra" / "overrides.yaml")
        resident.append(memory("VmRSS"))
        times.append(time.perf_counter())
        return 0.5

    def timed(sweep_folder: Path) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # resets Linux's peak counter
        before, begun = memory("VmRSS"), time.perf_counter()
        rows = show(sweep_folder)
        found.update(leaderboard=time.perf_counter() - begun, leaderboard_peak=memory("VmHWM") - before)
        assert len(rows) == jobs
        return rows

    launch.run_in_child, leaderboard.show_leaderboard = copy, timed
    sys.argv = ["train.py", "-m", *TINY.split(), f"seed=range({jobs})", f"hydra.sweep.dir={folder}"]
    launch.main("train", TrainConfig, lambda *_: None)
    kept = resident[-1] - resident[min(10, jobs) - 1]
    return {"before": times[1] - times[0], "jobs": times[-1] - times[1], "kept": kept, **found}


def copy_run(run: Path, job: Path, number: int) -> None:
    """The run's files under another name, with other scores."""
    shutil.copytree(run, job, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    results = json.loads((job / "results.json").read_text())
    results["validation"]["option_nll"] = results["objective"] = random.Random(number).random()
    (job / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

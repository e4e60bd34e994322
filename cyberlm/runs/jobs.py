"""A sweep's jobs: each in a process of its own, so that one that is killed, runs out of memory or leaves state behind
cannot harm the others.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.bounds import NAME
from cyberlm.config.compose import user_config_folder
from cyberlm.config.rules import Config
from cyberlm.config.schema import Monitor
from cyberlm.evaluation.results import read_status, write_status
from cyberlm.runs.checks import checked_config
from cyberlm.runs.run_folder import recorded_overrides, refuse_results, relative_folder, typed_overrides
from cyberlm.runtime import signals
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.progress import print_error
from cyberlm.runtime.signals import quote_override
from cyberlm.runtime.world import find_world

WORST_OBJECTIVE = -1000.0
"""Objective of a failed job: finite, because Optuna ends a study on NaN."""

log = logging.getLogger(__name__)


def run_in_child(command: str, schema: type[Config], composed: DictConfig) -> float:
    """Runs one job of a sweep in its own process; one that has not finished is resumed.

    Where its launcher starts a job as several processes (`hydra.launcher.nodes`, `tasks_per_node`), the children of
    these are one world, whose first process reports for the job.

    Returns:
        What a sweep maximises: validation accuracy, or minus the option NLL (`trainer.monitor`); `WORST_OBJECTIVE`
        where the job failed: a sweep continues, and the leaderboard says why.

    Raises:
        ConfigError: If the sweep would minimise it.
        RunError: If the folder is another job's.
    """
    config: Any = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    if "minimize" in str(OmegaConf.select(config, "sweeper.direction")):
        raise ConfigError(
            "The sweep would look for the worst job:",
            [Problem("hydra.sweeper.direction=minimize", "maximize: a job reports accuracy, or minus its option NLL")],
        )
    overrides = _overrides(config, composed)
    line = [
        *(sys.executable, "-m", "cyberlm", command, f"--config-name={config.job.config_name}"),
        *([f"--config-dir={user_config_folder()}"] if user_config_folder() else []),
        *(*overrides, "hydra.mode=RUN", f"hydra.run.dir={quote_override(str(folder))}"),
    ]
    if _rank() > 0:
        with contextlib.suppress(signals.Stopped):  # the first process has its launcher start the job again
            signals.run_forwarding(line, _child_environment(config))
        return WORST_OBJECTIVE
    monitor = OmegaConf.select(composed, "trainer.monitor")
    if (before := read_status(folder)) is not None:
        if recorded_overrides(folder) not in (None, overrides):  # another job's folder of the same name
            refuse_results(folder, ("status.json",), "hydra.sweep.subdir")
        if before.state == "finished":
            return _maximised(before.objective, monitor)
        line += ["trainer.resume=auto", "hydra.output_subdir=.hydra_resumed"] if command == "train" else []
    try:
        checked: Any = checked_config(composed, schema, relative_folder(str(folder)))
    except ConfigError as error:
        print_error(error)
        write_status(folder, "failed", reason="; ".join(problem.what for problem in error.problems))
        return WORST_OBJECTIVE
    with _gpus(config, composed.trainer.devices) as gpus:
        code = signals.run_forwarding(line, _child_environment(config) | gpus)
    if code == 0 and checked.dry_run:
        return WORST_OBJECTIVE
    status = read_status(folder)
    if code == 0 and status is not None and status.state == "finished":
        return _maximised(status.objective, monitor)
    if status is None or status.state not in ("failed", "stopped"):
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        write_status(folder, "failed", reason=reason)
    log.error("job %s failed (exit code %s); the sweep continues", config.job.num, code)
    return WORST_OBJECTIVE


def _overrides(config: Any, composed: DictConfig) -> list[str]:
    """Overrides of the job's process, which Hydra records in its folder."""
    left_out = ("group=", "trainer.resume=auto")
    group = composed.group or as_name(Path(config.sweep.dir).resolve().name)
    return [item for item in typed_overrides(config) if not item.startswith(left_out)] + [
        f"group={quote_override(group)}"
    ]


def _rank() -> int:
    """Rank of this process among those that a launcher of Hydra's has started for the job."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from submitit.helpers import TorchDistributedEnvironment  # of the extra `cluster`

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    world = find_world()
    return world.rank if world is not None else 0


@contextlib.contextmanager
def _gpus(config: Any, devices: int) -> Iterator[dict[str, str]]:
    """Environment of a job that runs beside others of this machine (joblib's): GPUs that none of them has.

    Jobs share GPUs where there are more jobs side by side than GPUs.
    """
    seats = _side_by_side(config)
    gpus = _visible_gpus() if seats > 1 else []
    if len(gpus) < 2:
        yield {}
        return
    with (Path(config.sweep.dir) / ".seats").open("w") as stream:
        for seat in itertools.cycle(range(seats)):  # one is free: as many jobs as seats run at a time
            with contextlib.suppress(OSError):
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, seat)
                break
        first = seat % max(1, len(gpus) // devices) * devices
        yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + devices])}


def _side_by_side(config: Any) -> int:
    """Jobs that a launcher (joblib's) runs at the same time."""
    jobs = int(OmegaConf.select(config, "launcher.n_jobs") or 1)
    return len(os.sched_getaffinity(0)) if jobs < 0 else jobs


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [item for item in named.split(",") if item]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def as_name(text: str) -> str:
    """The text with an underscore in place of what a `NAME` may not hold."""
    name = re.sub(r"[^\w .+\-]", "_", text)[:64]
    return name if NAME.fullmatch(name) else f"_{name[1:]}"


def _maximised(objective: float | None, monitor: Monitor | None) -> float:
    """The figure that chose a job's weights, turned so that higher is better."""
    if objective is None:
        return WORST_OBJECTIVE
    return max(-objective if monitor is Monitor.option_nll else objective, WORST_OBJECTIVE)


def _child_environment(config: Any) -> dict[str, str]:
    """The environment of a job: cyberlm can be imported, and jobs that run side by side share the cores."""
    environment = dict(os.environ)
    environment.pop("HYDRA_FULL_ERROR", None)
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    jobs = _side_by_side(config)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    return environment

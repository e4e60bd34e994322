"""A sweep's jobs: each in a process of its own, so that one that is killed, runs out of memory or leaves state behind
cannot harm the others.
"""

import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.bounds import NAME
from cyberlm.config.compose import own_folder
from cyberlm.config.rules import Config
from cyberlm.config.schema import Monitor
from cyberlm.evaluation.results import read_status, write_status
from cyberlm.runs.checks import checked_config
from cyberlm.runs.run_folder import refuse_results, seen_from_here, typed_overrides
from cyberlm.runtime import signals
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.screens import show
from cyberlm.runtime.signals import quoted

WORST_OBJECTIVE = -1000.0
"""Objective of a failed job: finite, because Optuna ends a study on NaN."""

log = logging.getLogger(__name__)


def run_in_child(command: str, schema: type[Config], composed: DictConfig) -> float:
    """Runs one job of a sweep in its own process.

    Returns:
        What a sweep maximises: validation accuracy, or minus the option NLL (`trainer.monitor`); `WORST_OBJECTIVE`
        where the job failed: a sweep goes on, and the leaderboard says why.

    Raises:
        ConfigError: If the sweep would minimise it.
    """
    config: Any = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    refuse_results(folder, ("status.json",), "hydra.sweep.subdir")  # of another job, as its name tells too little
    if "minimize" in str(OmegaConf.select(config, "sweeper.direction")):
        raise ConfigError(
            "The sweep would look for the worst job:",
            [Problem("hydra.sweeper.direction=minimize", "maximize: a job reports accuracy, or minus its option NLL")],
        )
    try:
        checked_config(composed, schema, seen_from_here(str(folder)))
    except ConfigError as error:
        show(error)
        write_status(folder, "failed", reason="; ".join(problem.what for problem in error.problems))
        return WORST_OBJECTIVE
    overrides = [item for item in typed_overrides(config) if not item.startswith("group=")]
    group = composed.group or as_name(Path(config.sweep.dir).resolve().name)
    line = [
        *(sys.executable, "-m", "cyberlm", command, f"--config-name={config.job.config_name}"),
        *([f"--config-dir={own_folder()}"] if own_folder() else []),
        *overrides,
        *(f"group={quoted(group)}", "hydra.mode=RUN", f"hydra.run.dir={quoted(str(folder))}"),
    ]
    log.info("job %s: %s", config.job.num, " ".join(overrides))
    code = signals.run_forwarding(line, _child_environment(config))
    status = read_status(folder)
    if code == 0 and status is not None and status.state == "finished":
        return _maximised(status.objective, OmegaConf.select(composed, "trainer.monitor"))
    if status is None or status.state not in ("failed", "stopped"):
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        write_status(folder, "failed", reason=reason)
    log.error("job %s failed (exit code %s); the sweep goes on", config.job.num, code)
    return WORST_OBJECTIVE


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
    jobs = OmegaConf.select(config, "launcher.n_jobs")
    if jobs is not None and jobs != 1 and "OMP_NUM_THREADS" not in environment:
        cores = len(os.sched_getaffinity(0))
        parallel = cores if jobs < 0 else min(jobs, cores)
        environment["OMP_NUM_THREADS"] = str(max(1, cores // parallel))
    return environment

"""Resumes a stopped run, by the name of its folder or by the same command once more.

torchrun (`--max-restarts`) and Slurm (requeue) tell a process that it is started again; `trainer.resume=auto` is for
launchers that do not, such as Kubernetes.
"""

import os
from collections.abc import Mapping, Set
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.bounds import AUTO
from cyberlm.config.rules import accumulation_steps, check_config
from cyberlm.config.saved import (
    FREE_ON_RESUME,
    config_hash,
    config_of,
    flat_config,
    flatten_config,
    load_config,
    save_config,
    saved_config,
    setting_changes,
)
from cyberlm.config.schema import RootConfig, Strategy, TrainConfig
from cyberlm.data.splits import SPLIT_MANIFEST
from cyberlm.evaluation.results import environment, read_status
from cyberlm.runs.run_folder import relative_folder, typed_overrides
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.files import read_json, write_json
from cyberlm.runtime.signals import resume_command
from cyberlm.runtime.world import find_world

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
SPLIT_AGAIN = "split_again.json"
PROCESS_SETTINGS = (
    *("data.batch_size", "trainer.devices", "trainer.strategy", "trainer.replicas"),
    *("trainer.accumulate_grad_batches", "trainer.val_check_interval"),
)
"""Settings that are others where a run is resumed in another number of processes."""


def restarted() -> bool:
    """True where torchrun or Slurm starts this run again."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)


def continues_run(config: RootConfig, folder: Path) -> bool:
    """True where the folder holds the training run that this one continues, without `trainer.resume=FOLDER`."""
    again = config.trainer.resume == AUTO or (config.trainer.resume is None and restarted())
    return isinstance(config, TrainConfig) and again and (folder / "config.yaml").is_file()


def check_settings(config: RootConfig, folder: Path) -> None:
    """Refuses to resume in the folder of a run with other settings; loggers may change.

    The number of processes may, too, where `data.batch_size` keeps the optimizer steps.
    """
    then, now = flat_config(load_config(folder, type(config))), flat_config(config)
    free = {"trainer.devices", "trainer.accumulate_grad_batches"} if config.data.batch_size is not None else set()
    if problems := setting_changes(then, now, sorted({*then, *now} - free)):
        hint = "Type the settings of then, or hydra.run.dir=FOLDER of a new run."
        raise RunError(
            f"{relative_folder(str(folder))} holds a run with other settings, so it cannot be resumed:", problems, hint
        )


def keep_commits(config: RootConfig, folder: Path) -> None:
    """Fills in the commits of hub datasets that the run in the folder has read, where none is typed."""
    then = load_config(folder, type(config)).data
    if config.data.commit is None and config.data.path == then.path:
        config.data.commit = then.commit
    for name, source in config.data.sources.items():
        saved = then.sources.get(name, {})
        if source.get("commit") is None and saved.get("commit") and source.get("path") == saved.get("path"):
            source["commit"] = saved["commit"]


def check_folder_is_named(composed: DictConfig, kind: str) -> None:
    """Refuses `trainer.resume=auto` in a folder whose name is made up of the time: nothing was there before."""
    if composed.trainer.resume == AUTO and f"${{{kind}_folder:" in str(composed.hydra[kind]._get_node("dir")._value()):
        what, allowed = f"hydra.{kind}.dir is made up of the time", "a folder that is the same each time"
        problem = Problem(what, allowed, f"hydra.{kind}.dir=outputs/NAME")
        raise ConfigError("trainer.resume=auto resumes in a folder that is named:", [problem])


def resumed_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration that the run began with; only its loggers, its report and `trainer.devices` can be changed.

    Raises:
        RunError: If the folder is not of a run that can be resumed.
        ConfigError: If anything else is overridden, or what the configuration names is gone.
    """
    status = read_status(folder)
    if status is not None and status.state == "finished":
        raise RunError(
            f"{folder} has finished: there is nothing to resume.",
            hint=f"Score it again: python evaluate.py run={folder}\n"
            f"Train its model further, as a new run with a schedule of its own:\n"
            f"    python -m cyberlm export run={folder} to=merged\n"
            f"    python train.py model=local model.path={folder}/export/merged ...",
        )
    overrides = [item.lstrip("+~") for item in typed_overrides(HydraConfig.get())]
    changed = [item for item in overrides if not item.startswith((*FREE_ON_RESUME, "trainer.devices="))]
    if changed:
        raise ConfigError(
            "A resumed run keeps its own configuration:",
            [Problem(item, "only trainer.resume, trainer.devices, logger and report") for item in changed],
            f"Type {resume_command(folder)}",
        )
    resumed = config_of(folder)
    if any(item.startswith("logger") for item in overrides):
        resumed.logger = config.logger
    resumed.group, resumed.report = config.group or resumed.group, config.report
    for entry in resumed.logger.values():
        entry |= {name: value for name, value in (("group", resumed.group), ("save_dir", str(folder))) if name in entry}
    resumed.trainer.resume = str(folder)
    if find_world() is not None or any(item.startswith("trainer.devices=") for item in overrides):
        _change_processes(resumed, config.trainer.devices)
    check_config(resumed)  # a saved configuration is not checked when it is read
    return resumed


def _change_processes(config: TrainConfig, devices: int) -> None:
    """Lets a run resume in another number of processes, with the same questions in each optimizer step."""
    data, trainer = config.data, config.trainer
    if devices == trainer.devices:
        return
    accumulate = trainer.accumulate_grad_batches
    data.batch_size = data.batch_size or data.micro_batch_size * accumulate * trainer.devices
    shards = trainer.devices // trainer.replicas
    trainer.replicas = devices // shards if trainer.replicas > 1 and devices % shards == 0 else 1
    trainer.devices = devices
    trainer.accumulate_grad_batches = accumulation_steps(config)
    if trainer.val_check_interval is not None:
        trainer.val_check_interval = trainer.val_check_interval // accumulate * trainer.accumulate_grad_batches
    if devices == 1 and trainer.strategy is Strategy.ddp:
        trainer.strategy = Strategy.auto


def write_or_check_provenance(folder: Path, config: TrainConfig, provenance: Mapping[str, str]) -> None:
    """Writes what the run is made of, or, for a resumed run, refuses anything else."""
    file = folder / "provenance.json"
    resumed = config.trainer.resume is not None
    if resumed and file.is_file():
        before = read_json(file)
        before.setdefault("tokenizer", provenance["tokenizer"])  # older runs have not saved it
        problems = setting_changes(before, provenance, ("data", "split", "prompt", "tokenizer", "weights"))
        saved = flat_config(config_of(folder))
        now = flat_config(config) | {key: saved[key] for key in PROCESS_SETTINGS}
        # config.yaml lacks keys that did not exist when the run began
        written = set(flatten_config(OmegaConf.to_container(saved_config(folder))))
        if before.get("config") != config_hash({key: value for key, value in now.items() if key in written}):
            problems += _changed_settings(folder, now, written)
        if problems:
            raise RunError(f"{folder} cannot be continued: what it was made of has changed.", problems)
        (folder / SPLIT_AGAIN).unlink()
        return
    if resumed:  # it was stopped before it had begun
        (folder / SPLIT_AGAIN).replace(folder / SPLIT_MANIFEST)
    save_config(folder, config)
    write_json(file, dict(provenance))
    write_json(folder / "environment.json", environment())


def _changed_settings(folder: Path, now: Mapping[str, str], written: Set[str]) -> list[Problem]:
    """Each key of config.yaml that is not as the newest checkpoint has it."""
    from cyberlm.training.checkpointing import CHECKPOINTS, ORIGIN, newest_intact, read_checkpoint  # here: torch

    checkpoint = newest_intact(folder / CHECKPOINTS)
    if checkpoint is None:
        return [Problem("config.yaml was changed, and there is no checkpoint that says where")]
    then = read_checkpoint(checkpoint)[ORIGIN]["settings"]
    return setting_changes(then, now, sorted({*then, *written}))

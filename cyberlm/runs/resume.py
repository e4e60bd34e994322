"""Resumes a stopped run: only with its own configuration and data, and only if it has not finished."""

from collections.abc import Mapping, Set
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cyberlm.config.rules import accumulated, check_config
from cyberlm.config.saved import NOT_SETTLED, config_of, flattened, hash_of, save_config, saved_config, settings_of
from cyberlm.config.schema import Strategy, TrainConfig
from cyberlm.data.splits import SPLIT_MANIFEST
from cyberlm.evaluation.results import environment, read_status
from cyberlm.runs.run_folder import typed_overrides
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.files import read_json, write_json
from cyberlm.runtime.signals import resume_command
from cyberlm.runtime.world import find_world
from cyberlm.training.checkpointing import CHECKPOINTS, ORIGIN, newest_whole, read_checkpoint

SPLIT_AGAIN = "split_again.json"
PROVENANCE = "provenance.json"
OF_PROCESSES = (
    *("data.batch_size", "trainer.devices", "trainer.strategy"),
    *("trainer.accumulate_grad_batches", "trainer.val_check_interval"),
)
"""Settings that are others where a run goes on in another number of processes."""


def resumed_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration that the run began with; only its loggers, its report and `trainer.devices` can be changed.

    Raises:
        RunError: If the folder is not of a run that can go on.
        ConfigError: If anything else is overridden, or what the configuration names is gone.
    """
    status = read_status(folder)
    if status is not None and status.state == "finished":
        raise RunError(
            f"{folder} has finished: there is nothing to go on with.",
            hint=f"Score it again: python evaluate.py run={folder}\n"
            f"Train its model further, as a new run with a schedule of its own:\n"
            f"    python -m cyberlm export run={folder} to=merged\n"
            f"    python train.py model=local model.path={folder}/export/merged ...",
        )
    overrides = [item.lstrip("+~") for item in typed_overrides(HydraConfig.get())]
    changed = [item for item in overrides if not item.startswith((*NOT_SETTLED, "trainer.devices="))]
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
    """Lets a run go on in another number of processes, with the same questions in each optimizer step."""
    data, trainer = config.data, config.trainer
    if devices == trainer.devices:
        return
    accumulate = trainer.accumulate_grad_batches
    data.batch_size = data.batch_size or data.micro_batch_size * accumulate * trainer.devices
    trainer.devices = devices
    trainer.accumulate_grad_batches = accumulated(config)
    if trainer.val_check_interval is not None:
        trainer.val_check_interval = trainer.val_check_interval // accumulate * trainer.accumulate_grad_batches
    if devices == 1 and trainer.strategy is Strategy.ddp:
        trainer.strategy = Strategy.auto


def begin(folder: Path, config: TrainConfig, provenance: Mapping[str, str]) -> None:
    """Writes what the run is made of, or, for a resumed run, refuses to go on with anything else.

    Raises:
        RunError: With each thing that differs.
    """
    file = folder / PROVENANCE
    resumed = config.trainer.resume is not None
    if resumed and file.is_file():
        before = read_json(file)
        before.setdefault("tokenizer", provenance["tokenizer"])  # older runs have not saved it
        kept = ("data", "split", "prompt", "tokenizer", "weights")
        names = [name for name in kept if before.get(name) != provenance[name]]
        problems = [Problem(f"{name}: {before.get(name)} then, {provenance[name]} now") for name in names]
        saved = settings_of(config_of(folder))
        now = settings_of(config) | {key: saved[key] for key in OF_PROCESSES}
        # config.yaml lacks keys that did not exist when the run began
        written = set(flattened(OmegaConf.to_container(saved_config(folder))))
        if before.get("config") != hash_of({key: value for key, value in now.items() if key in written}):
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
    checkpoint = newest_whole(folder / CHECKPOINTS)
    if checkpoint is None:
        return [Problem("config.yaml was changed, and there is no checkpoint that tells where")]
    then = read_checkpoint(checkpoint)[ORIGIN]["settings"]
    return [
        Problem(f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now")
        for key in sorted({*then, *written})
        if then.get(key) != now.get(key)
    ]

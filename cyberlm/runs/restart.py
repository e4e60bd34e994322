"""The same command once more: a run that its launcher starts again goes on in its own folder. Imports no torch.

torchrun (`--max-restarts`) and Slurm (requeue) tell a process that it is started again; `trainer.resume=auto` is for
launchers that do not, such as Kubernetes.
"""

import os
import re
from pathlib import Path

from omegaconf import DictConfig

from cyberlm.config.bounds import AUTO
from cyberlm.config.saved import saved_as, settings_of
from cyberlm.config.schema import RootConfig, TrainConfig
from cyberlm.runs.run_folder import seen_from_here
from cyberlm.runtime.errors import ConfigError, Problem, RunError

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def restarted() -> bool:
    """True where torchrun or Slurm starts this run again."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)


def goes_on(config: RootConfig, folder: Path) -> bool:
    """True where the folder holds the training run that this one continues, without being told to by its name."""
    again = config.trainer.resume == AUTO or (config.trainer.resume is None and restarted())
    return isinstance(config, TrainConfig) and again and (folder / "config.yaml").is_file()


def check_settings(config: RootConfig, folder: Path) -> None:
    """Refuses to go on in the folder of a run with other settings; loggers may change.

    The number of processes may, too, where `data.batch_size` keeps the optimizer steps.

    Raises:
        RunError: With each setting that differs.
    """
    then, now = settings_of(saved_as(folder, type(config))), settings_of(config)
    free = {"trainer.devices", "trainer.accumulate_grad_batches"} if config.data.batch_size is not None else set()
    # filled in when the questions were read
    free |= {key for key in then if re.fullmatch(r"data\..*commit", key) and now.get(key, "null") == "null"}
    problems = [
        Problem(f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now")
        for key in sorted({*then, *now} - free)
        if then.get(key) != now.get(key)
    ]
    if problems:
        hint = "Type the settings of then, or hydra.run.dir=FOLDER of a new run."
        raise RunError(
            f"{seen_from_here(str(folder))} holds a run with other settings, so it cannot go on:", problems, hint
        )


def check_folder_is_named(composed: DictConfig, kind: str) -> None:
    """Refuses `trainer.resume=auto` in a folder whose name is made up of the time: nothing was there before.

    Args:
        kind: `run` or `sweep`.

    Raises:
        ConfigError: If it is.
    """
    if composed.trainer.resume == AUTO and f"${{{kind}_folder:" in str(composed.hydra[kind]._get_node("dir")._value()):
        what, allowed = f"hydra.{kind}.dir is made up of the time", "a folder that is the same each time"
        problem = Problem(what, allowed, f"hydra.{kind}.dir=outputs/NAME")
        raise ConfigError("trainer.resume=auto goes on in a folder that is named:", [problem])

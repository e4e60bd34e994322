"""Checks before a run has a folder: a configuration that cannot be run leaves nothing behind."""

import atexit
import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.bounds import AUTO
from cyberlm.config.commands import SCHEMAS
from cyberlm.config.rules import WRITTEN_TO, Config, build_config, without_hydra
from cyberlm.runs.resume import check_folder_is_named, check_settings, continues_run, keep_commits, restarted
from cyberlm.runs.run_folder import claim_folder, locked_folder, refuse_results, relative_folder, typed_overrides
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.progress import exit_on_user_error
from cyberlm.runtime.redaction import refuse_secrets

PROMPT_TEXTS = (
    *("prompt.question", "prompt.option", "prompt.system", "prompt.plain_cue"),
    *("task.instruction", "task.option_instruction"),
)
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


class CheckFirst(Callback):
    """Hydra calls this before it makes the folder of a run or a sweep."""

    def __init__(self, command: str) -> None:
        self.schema: Any = SCHEMAS[command]

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process with one screen where no job of the sweep could be run."""
        with exit_on_user_error():
            _check_hydra(config)
            check_folder_is_named(config, "sweep")
            subdir = config.hydra.sweep._get_node("subdir")._value()
            if "${" not in str(subdir):
                fix = "'hydra.sweep.subdir=${hydra.job.num}'"
                problem = Problem(f"hydra.sweep.subdir={subdir}", "a name with ${...} in it, another for each job", fix)
                raise ConfigError("All jobs of the sweep would write into one folder:", [problem])
            if OmegaConf.select(config, "study") and config.plan.enabled:
                return  # the plan is printed, and no job run
            results = ("**/results.json", "**/checkpoints/*.ckpt")
            refuse = functools.partial(refuse_results, patterns=results, key="hydra.sweep.dir")
            again = restarted() or config.trainer.resume == AUTO
            owned = contextlib.ExitStack()
            owned.enter_context(locked_folder(claim_folder(config, "hydra.sweep.dir", bool if again else refuse)))
            atexit.register(owned.close)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process with one screen: Hydra would turn any other exception into a warning."""
        # an error of OmegaConf comes again, and is shown, when Hydra composes the configuration
        with exit_on_user_error(), contextlib.suppress(OmegaConfBaseException):
            _check_hydra(config)
            check_folder_is_named(config, "run")
            claim_folder(config, "hydra.run.dir", functools.partial(self._check, config))

    def _check(self, config: DictConfig, folder: Path) -> None:
        """Refuses a configuration that cannot be run in the folder."""
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        built = checked_config(without_hydra(config), self.schema, relative_folder(str(folder)))
        if continues_run(built, folder):
            keep_commits(built, folder)
            check_settings(built, folder)
        elif not built.dry_run and built.trainer.resume in (None, AUTO):
            refuse_results(folder, ("results.json", "checkpoints/*.ckpt"), "hydra.run.dir")


def _check_hydra(config: DictConfig) -> None:
    """Refuses settings under which runs would not find their files, and secrets that Hydra would write down."""
    if config.hydra.job.chdir:
        what = "hydra.job.chdir=true: relative paths of data, models and runs would not be found"
        allowed = "hydra.job.chdir=false; what a run writes goes into its folder in any case"
        raise ConfigError("A run does not change its working directory:", [Problem(what, allowed)])
    plain: Any = OmegaConf.to_container(config, resolve=False)
    own = plain.pop("hydra")
    saved = {"job": {"env_set": own["job"]["env_set"]}, "sweeper": own["sweeper"], "launcher": own["launcher"]}
    refuse_secrets({**plain, "hydra": saved})


def refuse_typed_secrets(line: Sequence[str]) -> None:
    """Refuses secrets in the overrides of a command line, before Hydra writes them down."""
    typed: dict[str, Any] = {}
    for override in (item for item in line if "=" in item and not item.startswith("-")):
        with contextlib.suppress(HydraException):  # shown when Hydra reads it
            item = OverridesParser.create().parse_override(override)
            swept = item.is_sweep_override() and item.is_discrete_sweep()
            typed[item.key_or_group] = list(item.sweep_string_iterator()) if swept else item.value()
    refuse_secrets(typed)


def checked_config(composed: DictConfig, schema: type[Config], folder: Path) -> Config:
    """The configuration of a run in its folder.

    Raises:
        ConfigError: If a rule is broken, a secret would be saved, or a part would write outside the folder.
    """
    refuse_secrets(OmegaConf.to_container(composed, resolve=False))
    _read_escapes(composed)
    config = build_config(composed, schema)
    _check_places(config, folder)
    return config


def _read_escapes(composed: DictConfig) -> None:
    r"""Reads \n, \t and \\ in prompt texts that are typed as overrides, which Hydra leaves as they are.

    Backslashes before `${` are OmegaConf's: `\${` is no reference.
    """
    typed = {item.split("=")[0].lstrip("+") for item in typed_overrides(HydraConfig.get())}
    for group, name in (key.split(".") for key in PROMPT_TEXTS if key in typed):
        text = OmegaConf.to_container(composed[group], resolve=False)[name]  # type: ignore[call-overload,index]
        if isinstance(text, str):
            read = re.sub(r"(\\+)(?=\$\{)|\\[nt\\]", lambda found: found[1] or ESCAPES[found[0]], text)
            OmegaConf.update(composed, f"{group}.{name}", read)


def _check_places(config: object, folder: Path) -> None:
    problems = []
    for group in ("logger", "callbacks"):
        for name, entry in getattr(config, group, {}).items():
            for key in WRITTEN_TO:
                place = str(entry.get(key) or folder)
                if not Path(place).resolve().is_relative_to(folder.resolve()):
                    what = f"{group}.{name}.{key}={place} lies outside the run's folder {folder}"
                    fix = f"'{group}.{name}.{key}=${{run_dir:}}'"
                    problems.append(Problem(what, "the run's folder, or one in it", fix))
    if problems:
        raise ConfigError("Runs write into their own folder only:", problems)

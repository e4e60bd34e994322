"""From the command line to a checked configuration: Hydra's composition, its errors as one screen, and a sweep's jobs.

Every job of a sweep runs in a process of its own, so that one that is killed, runs out of memory or leaves state behind
cannot harm the others.
"""

import datetime
import difflib
import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config import build_config, register_schemas
from cyberlm.config.schema import RootConfig
from cyberlm.errors import ConfigError, Problem, UserError, did_you_mean
from cyberlm.results import read_status, write_status

WORST_OBJECTIVE = 0.0
"""What a failed job reports to the sweeper: finite, because Optuna ends a study on NaN."""

MOST_TRIED = 200
"""Combinations of a sweep that are composed again to find which override is at fault."""

PLAN_SWITCHES = ("plan=true", "plan=false")

Config = TypeVar("Config", bound=RootConfig)

log = logging.getLogger(__name__)


def conf_folder() -> Path:
    """conf/ beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    beside = package.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else package / "conf"


def main(command: str, schema: type[Config], run: Callable[[Config, Path], float | None]) -> None:
    """Composes and checks the configuration of `command`, and runs it.

    A user's error is one screen and exit code 1, without a traceback.

    Args:
        command: `train` or `evaluate`: the primary configuration, and the command that a sweep's jobs repeat.
        schema: Dataclass of the primary configuration.
        run: Called with the checked configuration and the run's folder.
    """
    register_schemas()
    register_resolvers()
    # Hydra's parser refuses overrides on both sides of -m
    sys.argv[1:] = sorted(_planning(sys.argv[1:]), key=lambda item: item not in ("-m", "--multirun"))
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing: the screen is ours

    composing = True

    def job(composed: DictConfig) -> float | None:
        nonlocal composing
        composing = False
        config = HydraConfig.get()
        if config.mode == RunMode.MULTIRUN:
            return _run_in_child(command, schema, composed)
        try:
            return run(build_config(composed, schema), _seen_from_here(config.runtime.output_dir))
        except UserError as error:  # caught here, or Hydra prints a line of its own above the screen
            raise SystemExit(show(error)) from None
        except (HydraException, OmegaConfBaseException) as error:
            if full_error:
                raise
            raise SystemExit(show(_part_error(error))) from None
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)(job)()
    except UserError as error:
        raise SystemExit(show(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:  # Hydra and OmegaConf raise AssertionError, ValueError and more on what is typed wrong
        if full_error or not (composing or isinstance(error, (HydraException, OmegaConfBaseException))):
            raise
        raise SystemExit(show(_composition_error(command, error))) from None


def _planning(arguments: Sequence[str]) -> list[str]:
    """`plan=true` in words that Hydra takes, for a plan leaves no folder; of itself it would set a group to a bool."""
    alone = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    if "plan=true" not in arguments or "-m" in arguments or "--multirun" in arguments:
        alone = []
    return [item.replace("plan=", "plan.enabled=") if item in PLAN_SWITCHES else item for item in arguments] + alone


def show(error: UserError) -> int:
    print(f"\n{error.screen()}\n", file=sys.stderr)
    return 1


def _part_error(error: Exception) -> UserError:
    """What Hydra met when it made a logger or a callback."""
    if isinstance(error.__cause__, UserError):
        return error.__cause__
    return ConfigError("A part of the run cannot be made:", [Problem(_first_lines(error.__cause__ or error))])


def register_resolvers() -> None:
    def run_folder(resume: str | None, *names: str | Enum) -> str:
        if resume:
            return str(resume)
        name = "_".join(part.name if isinstance(part, Enum) else str(part) for part in names)
        return _fresh(Path("outputs") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{name}")

    def evaluation_folder(model: str, run: str | None) -> str:
        return run_folder(None, "evaluate", Path(run).name if run else model)

    def record_folder(resume: str | None) -> str:
        return ".hydra_resumed" if resume else ".hydra"  # a resumed run keeps the record of how it began

    def sweep_folder(name: str) -> str:
        return _fresh(Path("outputs") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{name}_sweep")

    OmegaConf.register_new_resolver("evaluation_folder", evaluation_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("record_folder", record_folder, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True, use_cache=True)

    def run_dir() -> str:
        """The run's folder, for loggers; a stand-in where only the configuration is printed."""
        known = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")
        return str(_seen_from_here(HydraConfig.get().runtime.output_dir)) if known else "<run folder>"

    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)


def _seen_from_here(folder: str) -> Path:
    """The path from the working directory, where the folder lies below it."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _fresh(folder: Path) -> str:
    """The folder's path, or the path with a number behind it where the folder is taken."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return str(candidate)


# ---------------------------------------------------------------------------------------------------- sweep jobs


def _run_in_child(command: str, schema: type[Config], composed: DictConfig) -> float:
    """Runs one job of a sweep in its own process.

    Returns:
        The job's objective, or `WORST_OBJECTIVE` where it failed: a sweep goes on, and the leaderboard says why.
    """
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    try:
        build_config(composed, schema)
    except ConfigError as error:
        show(error)
        write_status(folder, "failed", reason="; ".join(problem.what for problem in error.problems))
        return WORST_OBJECTIVE
    overrides = [item for item in config.overrides.task if not item.startswith("group=")]
    group = composed.group or Path(config.sweep.dir).name
    line = [
        *(sys.executable, "-m", "cyberlm", command, f"--config-name={config.job.config_name}"),
        *(
            f"--config-dir={source.path}"
            for source in config.runtime.config_sources
            if source.provider == "command-line"
        ),
        *overrides,
        *(f"group='{group}'", "hydra.mode=RUN", f"hydra.run.dir='{folder}'"),
    ]
    log.info("job %s: %s", config.job.num, " ".join(overrides))
    code = subprocess.run(line, env=_child_environment(config), check=False).returncode
    status = read_status(folder)
    if code == 0 and status is not None and status.state == "finished":
        return WORST_OBJECTIVE if status.objective is None else status.objective
    if status is None or status.state != "failed":
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        write_status(folder, "failed", reason=reason)
    log.error("job %s failed (exit code %s); the sweep goes on", config.job.num, code)
    return WORST_OBJECTIVE


def _child_environment(config: Any) -> dict[str, str]:
    """The environment of a job: cyberlm can be imported, and jobs that run side by side share the cores."""
    environment = dict(os.environ)
    environment.pop("HYDRA_FULL_ERROR", None)
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    jobs = OmegaConf.select(config, "launcher.n_jobs")
    if jobs is not None and jobs != 1 and "OMP_NUM_THREADS" not in environment:
        cores = len(os.sched_getaffinity(0))
        parallel = cores if jobs < 0 else min(jobs, cores)
        environment["OMP_NUM_THREADS"] = str(max(1, cores // parallel))
    return environment


# ------------------------------------------------------------------------------------------- composition errors


def _composition_error(command: str, error: Exception) -> ConfigError:
    """Every override that cannot be composed, not only the first that Hydra met."""
    overrides = [item for item in sys.argv[1:] if "=" in item and not item.startswith("-")]
    problems = []
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        keys = _all_keys(command)
        if keys:  # else a file under conf/ is broken, and every override would be blamed
            problems = list(_override_problems(command, overrides, keys))
    if not problems:
        problems = [Problem(_first_lines(error.__cause__ or error))]
    return ConfigError("These overrides cannot be used:", problems, f"All keys and values: {_typed(command)} --cfg job")


def _typed(command: str) -> str:
    """The command as it was typed: python train.py in a checkout, python -m cyberlm train elsewhere."""
    script = f"{command}.py"
    return f"python {script}" if Path(sys.argv[0]).name == script else f"python -m cyberlm {command}"


def _override_problems(command: str, overrides: Sequence[str], keys: Sequence[str]) -> Iterator[Problem]:
    """Composes each override on its own, on top of the group choices that can be composed."""
    ours = [item for item in overrides if not item.startswith(("hydra.", "hydra/"))]
    values = {item: _values(item) for item in ours}
    groups = [item for item in ours if "." not in item.split("=")[0]]
    for override in ours:
        chosen = [values[item] for item in groups if item != override]
        good = [[item for item in items if _compose(command, [item]) is None] or [""] for items in chosen]
        tried = itertools.product(values[override], *good)
        for single, *others in itertools.islice(tried, MOST_TRIED):
            choices = list(filter(None, others))
            failure = _compose(command, [*choices, single])
            if failure is not None:
                yield _explain(command, single, choices, failure, keys)
                break


def _values(override: str) -> list[str]:
    """The overrides that a sweep makes of one; outside a sweep, the override itself."""
    sweeps = any(item in ("-m", "--multirun") or item.startswith("sweep=") for item in sys.argv[1:])
    try:
        parsed = OverridesParser.create().parse_override(override)
        if sweeps and parsed.is_sweep_override() and parsed.is_discrete_sweep():
            return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException:  # told as this override's own problem
        pass
    return [override]


def _compose(command: str, overrides: list[str]) -> Exception | None:
    search = [f"hydra.searchpath=[file://{folder}]" for folder in _config_folders()]
    try:
        hydra.compose(command, [*search, *overrides])
    except Exception as error:  # of any type: see main
        return error
    return None


def _config_folders() -> list[str]:
    """The folder that --config-dir adds to conf/, where it was given."""
    following = zip(sys.argv, [*sys.argv[1:], ""], strict=True)
    given = [
        after if item in ("--config-dir", "-cd") else item.removeprefix("--config-dir=")
        for item, after in following
        if item in ("--config-dir", "-cd") or item.startswith("--config-dir=")
    ]
    return [str(Path(folder).resolve()) for folder in given if Path(folder).is_dir()]


def _all_keys(command: str) -> list[str]:
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, DictConfig) and not node._is_none():
            for name in map(str, node):
                keys.append(f"{prefix}{name}")
                if not OmegaConf.is_missing(node, name) and OmegaConf.is_config(node._get_node(name)):
                    walk(node._get_node(name), f"{prefix}{name}.")

    try:
        walk(hydra.compose(command), "")
    except Exception:  # a broken file under conf/: the error itself says which
        return []
    return keys


def _explain(command: str, override: str, choices: list[str], error: Exception, keys: Sequence[str]) -> Problem:
    name, value = override.lstrip("+~").split("=", 1)
    group, _, rest = name.partition(".")
    options = _group_options(group)
    if "Ambiguous value" in str(error):
        return Problem(f"{override}: several values are a sweep", fix=f"{_typed(command)} -m {override}")
    if options and not rest:
        wrong = [item.strip() for item in value.strip("[]").split(",") if item.strip() not in options]
        if wrong:
            what = f"{override}: there is no {name} {' or '.join(map(repr, wrong))}"
            return Problem(what, ", ".join(options), _corrected(override, wrong, options))
    elif isinstance(error, AssertionError):  # what stands before the last dot is null
        chosen = " ".join(item for item in choices if item.startswith(f"{group}=")) or f"the default {group}"
        plain = override.lstrip("+")
        works = [item for option in options if _compose(command, [item := f"{group}={option}", plain]) is None]
        if works:
            what = f"{override}: there is no {name.rpartition('.')[0]} with {chosen}"
            return Problem(what, f"with {' or '.join(works)}")
    if name not in keys and (rest or not options):
        return Problem(f"{override}: there is no key '{name}'. {did_you_mean(name, keys)}".rstrip())
    return Problem(f"{override}: {_first_lines(error.__cause__ or error)}")


def _group_options(group: str) -> list[str]:
    if "/" in group or not group.isidentifier():
        return []
    own = {file.stem for folder in _config_folders() for file in Path(folder, group).glob("*.yaml")}
    return sorted({*GlobalHydra.instance().config_loader().get_group_options(group), *own})


def _corrected(override: str, wrong: Sequence[str], options: Sequence[str]) -> str:
    """The override with every wrong name replaced by the nearest right one; empty where one has none near."""
    for name in wrong:
        near = difflib.get_close_matches(name.strip(), options, n=1)
        if not near:
            return ""
        override = override.replace(name.strip(), near[0])
    return override


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))

"""What Hydra and OmegaConf refuse, told as one screen: every override that cannot be composed, not only the first."""

import contextlib
import difflib
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cyberlm.config.commands import REMOVED_KEYS
from cyberlm.runtime.errors import ConfigError, Problem, UserError, did_you_mean
from cyberlm.runtime.signals import quoted

SEVERAL_OPTIONS = ("logger", "callbacks", "metrics")
"""Groups of which a run takes several options at once."""

MOST_TRIED = 200
"""Combinations of a sweep that are composed again to find which override is at fault."""


def conf_folder() -> Path:
    """conf/ beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else package / "conf"


def config_folders() -> list[str]:
    """The folder that --config-dir adds to conf/, where it was given."""
    following = zip(sys.argv, [*sys.argv[1:], ""], strict=True)
    given = [
        after if item in ("--config-dir", "-cd") else item.removeprefix("--config-dir=")
        for item, after in following
        if item in ("--config-dir", "-cd") or item.startswith("--config-dir=")
    ]
    return [str(Path(folder).resolve()) for folder in given if Path(folder).is_dir()]


def group_files(group: str) -> dict[str, Path]:
    """The file of each option of a group, by name: of conf/, and of the folder that --config-dir adds."""
    folders = (conf_folder(), *map(Path, config_folders()))
    return {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}


def composition_error(command: str, error: Exception) -> ConfigError:
    """Every override that cannot be composed, not only the first that Hydra met."""
    overrides = [item for item in sys.argv[1:] if "=" in item and not item.startswith("-")]
    problems = list(_unquoted(overrides))
    if problems:
        return ConfigError("These overrides cannot be read:", problems)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        keys = _all_keys(command)
        if keys:  # else a file under conf/ is broken, and every override would be blamed
            problems = list(_override_problems(command, overrides, keys))
    if not problems:
        problems = [Problem(first_lines(error.__cause__ or error))]
    return ConfigError("These overrides cannot be used:", problems, f"All keys and values: {_typed(command)} --cfg job")


def _unquoted(overrides: Sequence[str]) -> Iterator[Problem]:
    """Overrides that can be read only once their value is in quotes: with letters beyond a to z, `~`, `(`, `=` or such.

    A path that begins with `~`, which a shell leaves alone behind `=`, is told with the home folder's own name.
    """
    parser = OverridesParser.create()
    for item in overrides:
        key, value = item.split("=", 1)
        try:
            parser.parse_override(item)
        except HydraException:
            meant = str(Path(value).expanduser()) if value.startswith("~/") else value
            fix = f"{key}={quoted(meant)}"
            with contextlib.suppress(HydraException):
                parser.parse_override(fix)
                if not value.startswith(("[", "{", "'", '"', "$(")):
                    yield Problem(f"{item}: this value needs quotes of its own", fix=shlex.quote(fix))


def _typed(command: str) -> str:
    """The command as it was typed: python train.py or python -m cyberlm train."""
    script = Path(sys.argv[0]).name
    return f"python {script}" if script == f"{command}.py" else f"python -m cyberlm {command}"


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
    search = [f"hydra.searchpath=[file://{folder}]" for folder in config_folders()]
    try:
        hydra.compose(command, [*search, *overrides])
    except Exception as error:  # of any type: see main
        return error
    return None


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
    if (told := REMOVED_KEYS.get(f"{command}.{group}")) is not None:
        return Problem(f"{override}: there is no key '{group}' any more: {told}")
    options = _group_options(group)
    if "Ambiguous value" in str(error):
        sweep, listed = f"{_typed(command)} -m {override}", f"{name}=[{value}]"
        takes_list = rest or not options or group in SEVERAL_OPTIONS
        if takes_list and _compose(command, [*choices, listed]) is None:
            return Problem(f"{override}: a list stands in brackets", f"'{listed}', or a sweep: {sweep}", f"'{listed}'")
        return Problem(f"{override}: several values are a sweep", fix=sweep)
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
    return Problem(f"{override}: {first_lines(error.__cause__ or error)}")


def _group_options(group: str) -> list[str]:
    if "/" in group or not group.isidentifier():
        return []
    return sorted({*GlobalHydra.instance().config_loader().get_group_options(group), *group_files(group)})


def _corrected(override: str, wrong: Sequence[str], options: Sequence[str]) -> str:
    """The override with every wrong name replaced by the nearest right one; empty where one has none near."""
    for name in wrong:
        near = difflib.get_close_matches(name.strip(), options, n=1)
        if not near:
            return ""
        override = override.replace(name.strip(), near[0])
    return override


def first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))


def part_error(error: Exception) -> UserError:
    """What Hydra met when it made a logger or a callback."""
    if isinstance(error.__cause__, UserError):
        return error.__cause__
    return ConfigError("A part of the run cannot be made:", [Problem(first_lines(error.__cause__ or error))])

"""Hydra's refusals on one screen: every override that cannot be composed, not only the first."""

import contextlib
import difflib
import itertools
import re
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
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean
from cyberlm.runtime.signals import quote_override

SEVERAL_OPTIONS = ("logger", "callbacks", "metrics")
"""Groups of which a run takes several options at once."""


def conf_folder() -> Path:
    """conf/ beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else package / "conf"


def _given_folder() -> Path | None:
    """The folder that --config-dir names."""
    given = re.search(r"(?:^|\0)(?:--config-dir|-cd)[=\0]([^\0]+)", "\0".join(sys.argv[1:]))
    return Path(given[1]) if given else None


def user_config_folder() -> Path | None:
    """The folder that --config-dir adds to conf/, where it was given."""
    given = _given_folder()
    return given.resolve() if given and given.is_dir() else None


def group_files(group: str) -> dict[str, Path]:
    """The file of each option of a group, by name: of conf/, and of the folder that --config-dir adds."""
    folders = filter(None, (conf_folder(), user_config_folder()))
    files = {file.stem: file for folder in folders for file in (folder / group).glob("*.yaml")}
    return dict(sorted(files.items()))


def composition_error(command: str, error: Exception) -> ConfigError:
    """Every override that cannot be composed, not only the first that Hydra finds."""
    overrides = [item for item in sys.argv[1:] if "=" in item and not item.startswith("-")]
    problems = list(_unquoted(overrides))
    if problems:
        return ConfigError("These overrides cannot be read:", problems)
    problems = [*_no_folder(), *_bare_words(command)]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        plain = _composed(command, [])
        if isinstance(plain, DictConfig):  # else a file under conf/ is broken, and every override would be blamed
            keys = list(_keys(OmegaConf.to_container(plain, resolve=False)))
            problems += _override_problems(command, overrides, keys)
    problems = problems or [Problem(first_lines(error.__cause__ or error))]
    return ConfigError("These overrides cannot be used:", problems, f"All keys and values: {_typed(command)} --help")


def _no_folder() -> Iterator[Problem]:
    given = _given_folder()
    if given and not given.is_dir():
        yield Problem(f"--config-dir={given}: there is no such folder")


def _bare_words(command: str) -> Iterator[Problem]:
    """Words that are neither overrides nor flags and their values, which stand last."""
    for word in itertools.takewhile(lambda item: not item.startswith("-"), sys.argv[1:]):
        if "=" not in word and not word.startswith("~"):
            yield Problem(
                f"{word}: this is no KEY=VALUE", fix=f"run={word}" if command != "train" and Path(word).is_dir() else ""
            )


def _unquoted(overrides: Sequence[str]) -> Iterator[Problem]:
    """Overrides that can be read only once their value is in quotes: with letters beyond a to z, `~`, `(`, `=` or such.

    A path that begins with `~`, which a shell leaves alone behind `=`, is shown with the home folder's own name.
    """
    parser = OverridesParser.create()
    for item in overrides:
        key, value = item.split("=", 1)
        try:
            parser.parse_override(item)
        except HydraException:
            fix = f"{key}={quote_override(str(Path(value).expanduser()) if value.startswith('~/') else value)}"
            with contextlib.suppress(HydraException):
                parser.parse_override(fix)
                if not value.startswith(("[", "{", "'", '"', "$(")):
                    yield Problem(f"{item}: this value needs quotes of its own", fix=shlex.quote(fix))


def _typed(command: str) -> str:
    """The command as it was typed: python train.py, or python -m cyberlm chat."""
    script = Path(sys.argv[0]).name
    return f"python {script}" if script == f"{command}.py" else f"python -m cyberlm {command}"


def _override_problems(command: str, overrides: Sequence[str], keys: Sequence[str]) -> list[Problem]:
    """Composes each override on top of those that can be composed, choices of groups first."""
    good: list[str] = []
    problems = {}
    for override in sorted(overrides, key=lambda item: "." in item.split("=")[0]):
        if override.startswith(("hydra.", "hydra/")):
            continue
        values = _values(override)
        for single in values:
            failure = _composed(command, [*good, single])
            if isinstance(failure, Exception):
                problems[override] = _explain(command, single, good, failure, keys)
                break
        else:
            good.append(values[0])
    return [problems[override] for override in overrides if override in problems]


def _values(override: str) -> list[str]:
    """The overrides that a sweep makes of one; outside a sweep, the override itself."""
    sweeps = any(item in ("-m", "--multirun") or item.startswith("sweep=") for item in sys.argv[1:])
    with contextlib.suppress(HydraException):  # the override itself is wrong
        parsed = OverridesParser.create().parse_override(override)
        if sweeps and parsed.is_sweep_override() and parsed.is_discrete_sweep():
            return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    return [override]


def compose_config(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command has with these overrides alone; within a job of Hydra, too."""
    folder = user_config_folder()
    search_path = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    with contextlib.ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"))
        return hydra.compose(command, [*search_path, *overrides])


def _composed(command: str, overrides: list[str]) -> DictConfig | Exception:
    try:
        return compose_config(command, overrides)
    except Exception as error:  # of any type: see launch.main
        return error


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that a configuration holds."""
    for name, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from _keys(value, f"{prefix}{name}.")


def _explain(command: str, override: str, good: list[str], error: Exception, keys: Sequence[str]) -> Problem:
    name, value = override.lstrip("+~").split("=", 1)
    group, _, rest = name.partition(".")
    options = list(group_files(group)) if group.isidentifier() else []
    if (instead := REMOVED_KEYS.get(f"{command}.{group}")) is not None:
        return Problem(f"{override}: there is no key '{group}' any more: {instead}")
    if "Ambiguous value" in str(error):
        sweep, listed = f"{_typed(command)} -m {override}", f"{name}=[{value}]"
        takes_list = rest or not options or group in SEVERAL_OPTIONS
        if takes_list and isinstance(_composed(command, [*good, listed]), DictConfig):
            return Problem(f"{override}: a list needs brackets", f"'{listed}', or a sweep: {sweep}", f"'{listed}'")
        return Problem(f"{override}: several values are a sweep", fix=sweep)
    wrong = [item.strip() for item in value.strip("[]").split(",") if item.strip() not in options]
    if options and not rest and wrong:
        fix = override
        for item in wrong:
            near = difflib.get_close_matches(item, options, n=1)
            fix = fix.replace(item, near[0]) if near else ""
        return Problem(f"{override}: there is no {name} {' or '.join(map(repr, wrong))}", ", ".join(options), fix)
    if rest and isinstance(error, AssertionError):  # the part before the last dot is null
        chosen = " ".join(item for item in good if item.startswith(f"{group}=")) or f"the default {group}"
        tried = [f"{group}={option}" for option in options]
        works = [item for item in tried if isinstance(_composed(command, [item, override.lstrip("+")]), DictConfig)]
        if works:
            what = f"{override}: there is no {name.rpartition('.')[0]} with {chosen}"
            return Problem(what, f"with {' or '.join(works)}")
    if name not in keys and (rest or not options):
        return Problem(f"{override}: there is no key '{name}'. {did_you_mean(name, keys)}".rstrip())
    in_file = re.search(r"full_key: (\S+)", str(error))
    near_key = did_you_mean(in_file[1], keys) if in_file and in_file[1] not in keys else ""
    return Problem(f"{override}: {first_lines(error.__cause__ or error)}. {near_key}".removesuffix(". "))


def first_lines(error: BaseException) -> str:
    """A message of Hydra or OmegaConf without what only its developers read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))

"""What a run writes, and where: names, folders of loggers and callbacks, and references that stay references."""

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cyberlm.config.commands import ExportConfig, OpenConfig
from cyberlm.config.schema import RootConfig
from cyberlm.runtime.errors import ConfigError, Problem

NAME = re.compile(r"\w[\w .+\-]{0,63}")
"""Of names that become part of a folder's name: no separator, no leading dot."""
WRITTEN_TO = ("save_dir", "dirpath", "default_root_dir", "root_dir")
"""Arguments of Lightning's loggers and callbacks that name a folder to write to."""

MOVED = {"cyberlm.loggers.": "cyberlm.training.loggers.", "cyberlm.callbacks.": "cyberlm.training.callbacks.resuming."}
"""Modules of a `_target_` by the names that older configurations have for them."""


def check_places(config: RootConfig | ExportConfig | OpenConfig, folder: Path) -> None:
    """Refuses a logger or callback that would write outside the run's folder.

    Raises:
        ConfigError: With every such key.
    """
    groups = {name: getattr(config, name, {}) for name in ("logger", "callbacks")}
    problems = []
    for group, entries in groups.items():
        for name, entry in entries.items():
            for key in WRITTEN_TO:
                place = entry.get(key) if isinstance(entry, dict) else None
                if place is not None and not _lies_in(Path(str(place)), folder):
                    what = f"{group}.{name}.{key}={place} lies outside the run's folder {folder}"
                    fix = f"'{group}.{name}.{key}=${{run_dir:}}'"
                    problems.append(Problem(what, "the run's folder, or one in it", fix))
    if problems:
        raise ConfigError("Runs write into their own folder only:", problems)


def as_name(text: str) -> str:
    """The text with an underscore in place of what a `NAME` may not hold."""
    name = re.sub(r"[^\w .+\-]", "_", text)[:64]
    return name if NAME.fullmatch(name) else f"_{name[1:]}"


def _lies_in(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def with_references(composed: DictConfig) -> DictConfig:
    """A copy in which `${oc.env:NAME}` of loggers and callbacks is text, read when they are made: no value is saved."""
    kept = copy.deepcopy(composed)
    OmegaConf.set_readonly(kept, False)
    for group in ("logger", "callbacks"):
        node = kept._get_node(group) if group in kept else None
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            kept[group] = _escaped(OmegaConf.to_container(node, resolve=False), group)
    return kept


def _escaped(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item, name) for item in value]
    if isinstance(value, str) and name not in WRITTEN_TO:
        return value.replace("${oc.env:", "\\${oc.env:")
    return value


def rename_targets(entries: Iterable[Any]) -> None:
    """Writes the module where a class is today into every `_target_` that names where it was."""
    for entry in entries:
        target = str(entry.get("_target_", "")) if isinstance(entry, dict) else ""
        for old, new in MOVED.items():
            if target.startswith(old) and not target.startswith(new):
                entry["_target_"] = target.replace(old, new, 1)

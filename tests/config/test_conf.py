"""Every YAML file under conf/ is composed, resolved and built."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from support import compose

from cyberlm.config.commands import SCHEMAS
from cyberlm.config.compose import SEVERAL_OPTIONS, conf_folder
from cyberlm.config.help import groups_of
from cyberlm.config.rules import build_config

CONF = conf_folder()
FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_file())
OWN_FILE = [f"data.path={CONF / 'train.yaml'}"]
NEEDS = {"model/local": ["model.path=."], "data/file": OWN_FILE, "data/mcq": OWN_FILE}
"""Keys that a choice cannot do without."""
A_RUN = tempfile.TemporaryDirectory()
(Path(A_RUN.name) / "config.yaml").touch()
BARE = {command: [f"run={A_RUN.name}"] for command in ("export", "chat", "serve")}
"""Overrides that a command cannot do without; a choice of the same group replaces it."""


def choices() -> Iterator[tuple[str, str, list[str]]]:
    """Each command with the file of each option of each of its groups, and the overrides that choose it."""
    for command in SCHEMAS:
        groups, bare = groups_of(command), BARE.get(command, [])
        yield command, command, bare
        for file in FILES:
            group, _, option = file.removesuffix(".yaml").rpartition("/")
            if group.startswith("hydra"):
                continue  # where runs are stored: each command has its own, composed with each row here
            if group in groups:
                chosen = f"{group}=[{option}]" if group in SEVERAL_OPTIONS else f"{group}={option}"
                others = [item for item in bare if not item.startswith(f"{group}=")]
                yield command, f"{group}/{option}", [chosen, *others, *NEEDS.get(f"{group}/{option}", [])]


CHOICES = list(choices())


@functools.cache
def composed(command: str, *overrides: str) -> DictConfig:
    return compose(*overrides, command=command)


@pytest.mark.parametrize(
    ("command", "overrides"), [(row[0], row[2]) for row in CHOICES], ids=[f"{row[0]}-{row[1]}" for row in CHOICES]
)
def test_choice_composes_resolves_and_builds(command: str, overrides: list[str]) -> None:
    config = composed(command, *overrides)
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    assert isinstance(build_config(config, SCHEMAS[command]), SCHEMAS[command])


def test_every_choice_differs_and_every_file_is_seen() -> None:
    """A file that changes nothing is not read: its package or its keys are wrong."""
    alike = {("logger", "csv"), ("logger", "none")}
    for command in SCHEMAS:
        by_group: dict[str, list[tuple[str, str]]] = {}
        for _, name, overrides in (row for row in CHOICES if row[0] == command):
            group, _, option = name.rpartition("/")
            if group and group != "sweep" and (group, option) not in alike:
                text = OmegaConf.to_yaml(composed(command, *overrides), resolve=True)
                by_group.setdefault(group, []).append((option, text))
        for group, options in by_group.items():
            texts = [text for _, text in options]
            assert len(set(texts)) == len(texts), f"two of {group}: {[option for option, _ in options]} are the same"
    seen = {f"{name}.yaml" for _, name, _ in CHOICES}
    assert set(FILES) == seen | {
        f"hydra/{name}.yaml" for name in ("train", "evaluate", "folder", "command", "sweeper/study")
    }


@pytest.mark.parametrize(
    "chosen", [f"{kind}={f.stem}" for kind in ("sweep", "study") for f in (CONF / kind).glob("*.yaml")]
)
def test_sweeps_and_studies_name_keys_and_a_sweeper_that_exist(chosen: str) -> None:
    config = compose(chosen, with_hydra=True)
    assert config.hydra.mode.name == "MULTIRUN"
    if chosen.startswith("study"):
        assert config.hydra.sweeper._target_ == "hydra_plugins.cyberlm_study.StudySweeper"
        assert config.hydra.sweep.dir == f"outputs/{chosen.replace('=', '_')}"
        assert config.trainer.resume == "auto"
        return
    assert config.hydra.sweeper.params
    for key in config.hydra.sweeper.params:
        assert OmegaConf.select(config, key, throw_on_missing=True, default="absent") != "absent"

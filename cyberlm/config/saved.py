"""A run's configuration as it is saved: written, read back and compared."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.compose import conf_folder
from cyberlm.config.method_rules import FULL, LORA
from cyberlm.config.question_rules import MULTIPLE_CHOICE
from cyberlm.config.rules import INSTANTIATED_GROUPS, Config, read_config
from cyberlm.config.schema import Monitor, RootConfig, TrainConfig
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.files import write_text

ODD_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Characters that YAML reads as line breaks, unless they are written as escapes."""


def plain_config(config: RootConfig) -> dict[str, Any]:
    """The configuration as config.yaml holds it."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


FREE_ON_RESUME = ("trainer.resume", "logger", "group", "report")
"""Overrides that a resumed run may be given; everything else it keeps."""


def flat_config(config: RootConfig) -> dict[str, str]:
    """Everything that a resumed run keeps, by dotted key, each value as JSON."""
    return flatten_config(plain_config(config))


def config_hash(settings: Mapping[str, str]) -> str:
    """SHA-256 of what `flat_config` gives."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def flatten_config(plain: Any) -> dict[str, str]:
    """A configuration in plain containers as `flat_config` has it."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), item)
        elif not any(prefix == name or prefix.startswith(f"{name}.") for name in FREE_ON_RESUME):
            flat[prefix] = json.dumps(value, ensure_ascii=False)

    add("", plain)
    return dict(sorted(flat.items()))


def setting_changes(
    then: Mapping[str, str], now: Mapping[str, str], keys: Iterable[str] | None = None
) -> list[Problem]:
    """A problem for each setting, of `keys` where they are given, that has changed."""
    return [
        Problem(f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now")
        for key in (sorted({*then, *now}) if keys is None else keys)
        if then.get(key) != now.get(key)
    ]


def save_config(folder: Path, config: RootConfig) -> None:
    """Writes config.yaml: every text is read back unchanged, and groups that are instantiated keep their references."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        key: value if key in INSTANTIATED_GROUPS else _literal(value) for key, value in plain_config(config).items()
    }
    readable = not ODD_BREAKS.search(json.dumps(plain, ensure_ascii=False))
    text = yaml.dump(plain, Dumper=get_omega_conf_dumper(), allow_unicode=readable, sort_keys=False)
    write_text(folder / "config.yaml", text)


def _literal(value: Any) -> Any:
    """The value with `${` escaped in its texts, which OmegaConf would read as a reference."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def saved_config(run: Path) -> DictConfig:
    """config.yaml of a run, unchecked.

    Raises:
        RunError: If there is none, or it is torn or of something else.
    """
    file = run / "config.yaml"
    try:
        saved = OmegaConf.load(file)
    except FileNotFoundError:
        hint = "Runs lie under outputs/."
        raise RunError(f"{run} is not a run's folder: it has no config.yaml.", hint=hint) from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise _not_a_config(file, " ".join(str(error).split())) from error
    if not isinstance(saved, DictConfig) or "trainer" not in saved:
        raise _not_a_config(file, "it has no trainer")
    return saved


OLDER_METHODS = {"sft": FULL, "lora": LORA, "qlora": LORA}


def config_of(run: Path) -> TrainConfig:
    """The configuration that a training run was made with; files that it names may no longer exist."""
    return load_config(run, TrainConfig)


def load_config(run: Path, schema: type[Config]) -> Config:
    """Configuration of a run in the dataclass of its command; keys that it lacks get what held before they existed."""
    saved = saved_config(run)
    try:
        saved.trainer.resume = None
        saved.trainer.setdefault("monitor", Monitor.accuracy.name)
        saved.setdefault("task", {"_target_": MULTIPLE_CHOICE})
        saved.setdefault("metrics", OmegaConf.load(conf_folder() / "metrics" / "default.yaml"))
        # an older configuration only names its source
        if "address" not in saved.data and (file := conf_folder() / "data" / f"{saved.data.name}.yaml").is_file():
            pinned: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            saved.data.update({key: pinned[key] for key in ("address", "sha256", "files", "licence") if key in pinned})
        if "method" in saved:
            saved.method.setdefault("_target_", OLDER_METHODS.get(saved.method.name, "???"))
        return read_config(saved, schema)
    except (ConfigError, OmegaConfBaseException) as error:
        what = "; ".join(problem.what for problem in error.problems) if isinstance(error, ConfigError) else str(error)
        raise _not_a_config(run / "config.yaml", what) from error


def _not_a_config(file: Path, what: str) -> RunError:
    return RunError(f"{file} is not a run's configuration.", [Problem(what, "the file as the run wrote it")])

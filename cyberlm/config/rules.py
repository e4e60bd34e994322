"""From a composed configuration to checked dataclasses: names, types, bounds, and the rules across settings.

All problems are found before anything is downloaded or loaded, and shown together.
"""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.bounds import bound_problems, nested_schema
from cyberlm.config.commands import ExportConfig, OpenConfig, ServeConfig
from cyberlm.config.method_rules import PEFT_ADAPTER, method_problems
from cyberlm.config.mixture import mixture_problems, with_sources
from cyberlm.config.question_rules import data_problems, prompt_problems
from cyberlm.config.schema import (
    EvaluateConfig,
    ModelConfig,
    ModelSource,
    OptimizerName,
    RootConfig,
    Strategy,
    TrainConfig,
    TrainerConfig,
)
from cyberlm.config.study_rules import study_problems
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean
from cyberlm.runtime.world import find_world

INSTANTIATED_GROUPS = ("logger", "callbacks", "metrics", "task")
"""Groups whose entries are instantiated when a run begins; their texts may refer to the environment."""
WRITTEN_TO = ("save_dir", "dirpath", "default_root_dir", "root_dir")
"""Arguments of Lightning's loggers and callbacks that name a folder to write to."""
MOVED_TARGETS = {
    "cyberlm.loggers.": "cyberlm.training.loggers.",
    "cyberlm.callbacks.": "cyberlm.training.callbacks.resuming.",
}
"""Modules of a `_target_` by the names that older configurations have for them."""
Config = TypeVar("Config", bound=RootConfig | ExportConfig | OpenConfig)


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy of what Hydra composed, without Hydra's own node."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def build_config(composed: DictConfig, schema: type[Config]) -> Config:
    """Turns what Hydra composed into dataclasses, after every rule has been checked."""
    built, unknown = _typed(with_sources(composed), schema)
    world = find_world()
    if world is not None and isinstance(built, RootConfig) and built.trainer.devices == 1:
        built.trainer.devices = world.size
    if isinstance(built, TrainConfig):
        unknown += _step_problems(built)
        built.trainer.accumulate_grad_batches = accumulation_steps(built)
    _refuse([*unknown, *_problems(built)])
    return built


def read_config(saved: DictConfig, schema: type[Config]) -> Config:
    """Turns a configuration that a run saved into dataclasses. Keys and types are checked, rules are not.

    A rule may ask for what is no longer there (the questions, a GPU) and not needed for what is done with the run.

    Raises:
        ConfigError: With every key or value that does not fit.
    """
    built, unknown = _typed(saved, schema)
    _refuse(unknown)
    return built


def check_config(config: RootConfig | ExportConfig | OpenConfig) -> None:
    """Checks every bound and rule."""
    _refuse(list(_problems(config)))


def _refuse(problems: list[Problem]) -> None:
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"The configuration has {count}:", problems)


def _typed(composed: DictConfig, schema: type[Config]) -> tuple[Config, list[Problem]]:
    """The dataclass of a configuration, and its keys that the dataclass does not have."""
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    unknown = list(_unknown_keys(plain, schema))
    plain |= {group: _escape_references(plain[group], group) for group in INSTANTIATED_GROUPS if group in plain}
    try:
        empty = sorted(OmegaConf.missing_keys(OmegaConf.create(plain)))  # of the escaped entries: none is looked up
        missing = [Problem(f"{key} has no value", fix=f"{key}=...") for key in empty]
        if missing:
            raise ConfigError("The configuration is incomplete:", missing)
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        problems = unknown or [Problem(str(error).splitlines()[0])]
        raise ConfigError("The configuration cannot be read:", problems) from error
    assert isinstance(built, schema)
    return built, unknown


def _escape_references(value: Any, name: str) -> Any:
    """Entries in which `${oc.env:NAME}` stays text until they are instantiated, so that no secret is saved."""
    if isinstance(value, dict):
        return {key: _escape_references(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_references(item, name) for item in value]
    if isinstance(value, str) and name == "_target_":
        old = next((old for old in MOVED_TARGETS if value.startswith(old)), "")
        return MOVED_TARGETS.get(old, "") + value.removeprefix(old)
    if isinstance(value, str) and name not in WRITTEN_TO:
        return value.replace("${oc.env:", "\\${oc.env:")
    return value


def _unknown_keys(node: dict[str, Any], kind: type, prefix: str = "") -> Iterator[Problem]:
    """Takes out keys that no dataclass has: Hydra adds them with +key=value, and nothing would ever read them."""
    types = get_type_hints(kind)
    for name in list(node):
        if name not in types:
            key, keys = f"{prefix}{name}", [f"{prefix}{known}" for known in types]
            yield Problem(f"there is no key '{key}'. {did_you_mean(key, keys)}".rstrip())
            del node[name]
        elif (nested := nested_schema(types[name])) and isinstance(node[name], dict):
            yield from _unknown_keys(node[name], nested, f"{prefix}{name}.")


def _problems(config: Any) -> Iterator[Problem]:
    """Every bound and every rule that the configuration of a command breaks."""
    yield from bound_problems(config)
    if isinstance(config, RootConfig):
        yield from _model_problems(config.model)
        yield from data_problems(config.data)
        yield from mixture_problems(config.data)
        yield from prompt_problems(config.prompt, str(config.task.get("_target_")))
        yield from _trainer_problems(config.trainer)
        yield from _target_problems(config)
    if isinstance(config, TrainConfig):
        yield from method_problems(config)
        yield from device_problems(config)
        yield from study_problems(config)
    if isinstance(config, EvaluateConfig) and config.run is not None and config.runs:
        together = ",".join(dict.fromkeys([config.run, *config.runs]))
        yield Problem("run=... and runs=[...]", "one of them", f"'runs=[{together}]'")
    if isinstance(config, EvaluateConfig) and not config.evaluation.test:
        yield Problem("evaluation.test=false leaves nothing to evaluate", "evaluation.test=false only in train.py")
    if isinstance(config, ExportConfig) and config.out is not None and Path(config.out).exists():
        yield Problem(f"out={config.out} is there already", "a folder that does not exist yet")
    if isinstance(config, ServeConfig) and not (is_loopback(config.host) or config.allow_remote):
        what = f"host={config.host}: other machines could reach it, and nobody is asked for a password"
        fix = f"host={config.host} allow_remote=true"
        yield Problem(what, "127.0.0.1, or allow_remote=true as well", fix)


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _target_problems(config: RootConfig) -> Iterator[Problem]:
    entries = {"task": config.task}
    for group in ("logger", "metrics", "callbacks"):
        entries |= {f"{group}.{name}": entry for name, entry in getattr(config, group, {}).items()}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or "_target_" not in entry:
            yield Problem(f"{key} has no _target_", "the dotted name of the class to make")


# -------------------------------------------------------------------------------------------------------- model


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    needed, fix = {
        ModelSource.embedded: ("package", "model.package=..."),
        ModelSource.hub: ("hub_id", "model.hub_id=..."),
        ModelSource.local: ("path", "model=local model.path=FOLDER"),
        ModelSource.tiny: ("tiny", "model=tiny_random"),
    }[model.source]
    if getattr(model, needed) is None:
        yield Problem(f"model.source={model.source.name} without model.{needed}", fix=fix)
    if model.path is not None and model.source is not ModelSource.local:
        what = f"model.path={model.path} with model={model.name}"
        yield Problem(what, "model.path only with model=local", "model=local")
    if (tiny := model.tiny) is not None and (heads := tiny.num_attention_heads) >= 1:
        groups = tiny.num_key_value_heads
        if tiny.hidden_size % (2 * heads):
            yield Problem(f"model.tiny.hidden_size={tiny.hidden_size} with {heads} heads", f"a multiple of {2 * heads}")
        if groups >= 1 and heads % groups:
            yield Problem(f"model.tiny.num_key_value_heads={groups} with {heads} heads", f"a divisor of {heads}")


# ------------------------------------------------------------------------------------------- trainer and devices


def _trainer_problems(trainer: TrainerConfig) -> Iterator[Problem]:
    every, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if every is not None and accumulate >= 1 and every % accumulate:
        what = f"trainer.val_check_interval={every} with trainer.accumulate_grad_batches={accumulate}"
        fix = f"trainer.val_check_interval={max(1, round(every / accumulate)) * accumulate}"
        yield Problem(f"{what}: validation would fall inside an optimizer step", f"a multiple of {accumulate}", fix)
    if trainer.strategy is not Strategy.fsdp2 and (trainer.cpu_offload or trainer.replicas > 1):
        key = "trainer.cpu_offload=true" if trainer.cpu_offload else f"trainer.replicas={trainer.replicas}"
        yield Problem(f"{key} with trainer.strategy={trainer.strategy.name}", "fsdp2", "trainer.strategy=fsdp2")
    if trainer.replicas >= 1 and trainer.devices % trainer.replicas:
        what = f"trainer.replicas={trainer.replicas} with trainer.devices={trainer.devices}"
        yield Problem(what, f"a divisor of {trainer.devices}: each has as many processes")
    world = find_world()
    if world is not None and trainer.devices != world.size:
        what = f"trainer.devices={trainer.devices} under {world.launcher}, which has started {world.size}"
        yield Problem(what, f"{world.size}, or nothing: the launcher decides", f"trainer.devices={world.size}")


def accumulation_steps(config: RootConfig) -> int:
    """Micro-batches of each process in an optimizer step, by `data.batch_size`."""
    data, trainer = config.data, config.trainer
    if data.batch_size is None or min(data.batch_size, data.micro_batch_size, trainer.devices) < 1:
        return trainer.accumulate_grad_batches
    return -(-data.batch_size // (data.micro_batch_size * trainer.devices))


def _step_problems(config: TrainConfig) -> Iterator[Problem]:
    data, given = config.data, config.trainer.accumulate_grad_batches
    if data.batch_size is None:
        return
    if data.micro_batch_size >= 1 and data.batch_size % data.micro_batch_size:
        what = f"data.batch_size={data.batch_size} with data.micro_batch_size={data.micro_batch_size}"
        yield Problem(what, f"a multiple of {data.micro_batch_size}: a step is whole micro-batches")
    if given not in (1, accumulation_steps(config)):
        what = f"data.batch_size={data.batch_size} with trainer.accumulate_grad_batches={given}"
        allowed = f"one of them: the first sets the second to {accumulation_steps(config)}"
        yield Problem(what, allowed, "trainer.accumulate_grad_batches=1")


def device_problems(config: TrainConfig) -> Iterator[Problem]:
    """Settings that the devices of a run cannot meet; with trainer.accelerator=auto only torch knows the device."""
    on_cpu = config.trainer.accelerator == "cpu"
    if on_cpu and config.optim.name is not OptimizerName.adamw:
        yield Problem(f"optim.name={config.optim.name.name} on a CPU: 8-bit states need a GPU", "adamw", "optim=adamw")
    if on_cpu and config.trainer.precision == "16-mixed":
        yield Problem("trainer.precision=16-mixed on a CPU", "auto, 32-true, bf16-mixed", "trainer.precision=auto")
    yield from _strategy_problems(config)


def _strategy_problems(config: TrainConfig) -> Iterator[Problem]:
    trainer, lora, fix = config.trainer, config.method.lora, "trainer.strategy=ddp"
    if trainer.strategy is Strategy.ddp and trainer.devices == 1:
        allowed = "trainer.devices=2 or more, or trainer.strategy=auto"
        yield Problem("trainer.strategy=ddp with one device", allowed, "trainer.strategy=auto")
    if trainer.strategy is not Strategy.fsdp2:
        return
    if trainer.precision == "16-mixed":
        yield Problem("trainer.strategy=fsdp2 with trainer.precision=16-mixed", "auto, 32-true, bf16-mixed")
    if config.optim.name is not OptimizerName.adamw:
        yield Problem(f"trainer.strategy=fsdp2 with optim.name={config.optim.name.name}", "adamw", "optim=adamw")
    if lora is not None and lora.use_dora:
        yield Problem("trainer.strategy=fsdp2 with method.lora.use_dora=true", fix, fix)
    if config.method._target_ == PEFT_ADAPTER:
        yield Problem(f"trainer.strategy=fsdp2 with method={config.method.name}", "sft, lora, qlora", fix)
    if config.model.use_liger_kernel:
        fix = "model.use_liger_kernel=false"
        yield Problem("trainer.strategy=fsdp2 with model.use_liger_kernel=true", fix, fix)

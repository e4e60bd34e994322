"""Rules across fields. All problems are found before anything is downloaded or loaded, and shown together."""

import math
import string
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.command_rules import command_problems
from cyberlm.config.commands import ExportConfig, OpenConfig
from cyberlm.config.device_rules import device_problems
from cyberlm.config.places import NAME, rename_targets, with_references
from cyberlm.config.schema import (
    DataConfig,
    DataName,
    EvaluateConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    ModelSource,
    OptimConfig,
    PromptConfig,
    PromptStyle,
    Protocol,
    QuantName,
    RootConfig,
    TrainConfig,
    TrainerConfig,
)
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean

CYBERMETRIC_SIZES = (80, 500, 2000, 10000)
ALLOWED_NAMES = "up to 64 letters, digits, spaces and _ . + -, a letter or digit first"
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")
LARGEST_SEED = 2**32 - 1
"""Of NumPy's old generator, which Lightning seeds too."""

EMBEDDING_MODULES = ("lm_head", "embed_tokens")
Config = TypeVar("Config", bound=RootConfig | ExportConfig | OpenConfig)

FULL, LORA = "cyberlm.models.methods.full.Full", "cyberlm.models.methods.lora.Lora"
"""Methods of which this module knows the rules."""


def build_config(composed: DictConfig, schema: type[Config]) -> Config:
    """Turns what Hydra composed into dataclasses, after every rule has been checked.

    Raises:
        ConfigError: With all the problems there are.
    """
    built, unknown = _typed(composed, schema)
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
    """Checks every rule.

    Raises:
        ConfigError: With all the problems there are.
    """
    _refuse(list(_problems(config)))


def _refuse(problems: list[Problem]) -> None:
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"The configuration has {count}:", problems)


def _typed(composed: DictConfig, schema: type[Config]) -> tuple[Config, list[Problem]]:
    """The dataclass of a configuration, and its keys that the dataclass does not have."""
    composed = with_references(composed)
    unknown = list(_unknown_keys(composed, schema))
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(
                "The configuration is incomplete:",
                [Problem(f"{key} has no value", fix=f"{key}=...") for key in missing],
            )
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except OmegaConfBaseException as error:
        problems = unknown or [Problem(str(error).splitlines()[0])]
        raise ConfigError("The configuration cannot be read:", problems) from error
    assert isinstance(built, schema)
    if isinstance(built, RootConfig):
        callbacks = built.callbacks.values() if isinstance(built, TrainConfig) else ()
        rename_targets([*built.logger.values(), *built.metrics.values(), *callbacks, built.task])
    return built, unknown


def _unknown_keys(node: DictConfig, kind: type, prefix: str = "") -> Iterator[Problem]:
    """Keys that no dataclass has: Hydra adds them with +key=value, and nothing would ever read them."""
    types = get_type_hints(kind)
    for name in map(str, node):
        if name not in types:
            key, keys = f"{prefix}{name}", [f"{prefix}{known}" for known in types]
            yield Problem(f"there is no key '{key}'. {did_you_mean(key, keys)}".rstrip())
            continue
        nested = next((part for part in (types[name], *get_args(types[name])) if is_dataclass(part)), None)
        child = node._get_node(name)
        if isinstance(nested, type) and isinstance(child, DictConfig) and not (child._is_none() or child._is_missing()):
            yield from _unknown_keys(child, nested, f"{prefix}{name}.")


def _problems(config: RootConfig | ExportConfig | OpenConfig) -> Iterator[Problem]:
    if isinstance(config, RootConfig):
        yield from _root_problems(config)
        return
    yield from command_problems(config)
    if config.accelerator not in ACCELERATORS:
        yield Problem(f"accelerator={config.accelerator}", ", ".join(ACCELERATORS))


def _root_problems(config: RootConfig) -> Iterator[Problem]:
    names = {"model.name": config.model.name, "prompt.name": config.prompt.name, "group": config.group}
    for key, value in names.items():
        if value is not None and not NAME.fullmatch(value):
            yield Problem(f"{key}={value!r} cannot be part of a folder's name", ALLOWED_NAMES)
    yield from _model_problems(config.model)
    yield from _data_problems(config.data)
    yield from _prompt_problems(config.prompt)
    yield from _trainer_problems(config.trainer)
    yield from _target_problems(config)
    yield from _at_least("evaluation.max_new_tokens", config.evaluation.max_new_tokens, 1)
    yield from _between("evaluation.prior_share", config.evaluation.prior_share, 0, 1)
    suspects = config.evaluation.suspects
    if suspects is not None and not Path(suspects).is_file():
        yield Problem(f"evaluation.suspects={suspects}: there is no such file", "a JSON file of doubtful items")
    if not 0 <= config.seed <= LARGEST_SEED:
        yield Problem(f"seed={config.seed}", f"0 to {LARGEST_SEED}")
    if isinstance(config, TrainConfig):
        yield from _method_problems(config.method, config.quant.name, config.model)
        yield from _optim_problems(config.optim)
        yield from device_problems(config)
        if config.plan.device_memory_gib is not None:
            yield from _above("plan.device_memory_gib", config.plan.device_memory_gib)
    if isinstance(config, EvaluateConfig) and config.trainer.devices > 1:
        yield Problem(f"trainer.devices={config.trainer.devices}", "1: evaluate.py scores in one process")
    if isinstance(config, EvaluateConfig) and config.run is not None:
        if not Path(config.run).is_dir():
            yield Problem(f"run={config.run} is not a folder", "the folder of a finished run, under outputs/")
        if config.runs:
            together = ",".join(dict.fromkeys([config.run, *config.runs]))
            yield Problem("run=... and runs=[...]", "one of them", f"'runs=[{together}]'")


def _at_least(name: str, value: float | None, least: float) -> Iterator[Problem]:
    if value is not None and not least <= value < math.inf:
        yield Problem(f"{name}={value:g}", f"{least:g} or more")


def _between(name: str, value: float, low: float, high: float) -> Iterator[Problem]:
    if not low <= value < high:
        yield Problem(f"{name}={value:g}", f"at least {low:g} and below {high:g}")


def _above(name: str, value: float) -> Iterator[Problem]:
    if not 0 < value < math.inf:
        yield Problem(f"{name}={value:g}", "above 0")


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    needs = {
        ModelSource.embedded: ("package",),
        ModelSource.hub: ("hub_id",),
        ModelSource.local: ("path",),
        ModelSource.tiny: ("tiny",),
    }[model.source]
    for name in needs:
        if getattr(model, name) is None:
            fix = {"path": "model=local model.path=FOLDER", "tiny": "model=tiny_random"}.get(name, f"model.{name}=...")
            yield Problem(f"model.source={model.source.name} without model.{name}", fix=fix)
    if model.path is not None and model.source is not ModelSource.local:
        yield Problem(
            f"model.path={model.path} with model={model.name}", "model.path only with model=local", "model=local"
        )
    if model.tiny is not None:
        for item in fields(model.tiny):
            if item.type is int:
                least = 0 if item.name == "seed" else 1
                yield from _at_least(f"model.tiny.{item.name}", getattr(model.tiny, item.name), least)
        heads, groups = model.tiny.num_attention_heads, model.tiny.num_key_value_heads
        if heads >= 1 and model.tiny.hidden_size % (2 * heads):
            yield Problem(
                f"model.tiny.hidden_size={model.tiny.hidden_size} with {heads} heads", f"a multiple of {2 * heads}"
            )
        if heads >= 1 and groups >= 1 and heads % groups:
            yield Problem(f"model.tiny.num_key_value_heads={groups} with {heads} heads", f"a divisor of {heads}")


def _method_problems(method: MethodConfig, quant: QuantName, model: ModelConfig) -> Iterator[Problem]:
    if not NAME.fullmatch(method.name):
        yield Problem(f"method.name={method.name!r} cannot be part of a folder's name", ALLOWED_NAMES)
    if method._target_ == FULL:
        if quant is QuantName.nf4:
            yield Problem(
                f"method={method.name} quant=nf4: 4-bit weights cannot be trained, only an adapter on them",
                f"method={method.name} quant=none, or method=qlora",
                "method=qlora",
            )
        if method.lora is not None:
            allowed = "method.lora only with method=lora or method=qlora"
            yield Problem(f"method={method.name} with method.lora", allowed, f"method={method.name} method.lora=null")
    if method._target_ != LORA:
        return
    if method.name == "qlora" and quant is QuantName.none:
        yield Problem(
            "method=qlora quant=none: QLoRA is LoRA on a 4-bit base",
            "method=qlora (which sets quant=nf4), or method=lora quant=none",
            "method=lora",
        )
    if method.lora is None:
        yield Problem(f"method={method.name} without method.lora", fix=f"method={method.name}")
    else:
        yield from _lora_problems(method.lora, model)


def _lora_problems(lora: LoraConfig, model: ModelConfig) -> Iterator[Problem]:
    yield from _at_least("method.lora.rank", lora.rank, 1)
    yield from _above("method.lora.alpha", lora.alpha)
    yield from _between("method.lora.dropout", lora.dropout, 0, 1)
    targets = lora.target_modules
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        yield Problem(
            f"method.lora.target_modules={targets!r}",
            "all-linear, or a list of module names",
            "'method.lora.target_modules=[q_proj,v_proj]'",
        )
        return
    tied = [name for name in names if name in EMBEDDING_MODULES]
    if tied and model.tied_embeddings:
        yield Problem(
            f"method.lora.target_modules holds {', '.join(tied)}, which {model.name} shares between input and output: "
            "merging the adapter would change both",
            "all-linear, or a list without them",
            "method.lora.target_modules=all-linear",
        )


def _data_problems(data: DataConfig) -> Iterator[Problem]:
    yield from _data_source_problems(data)
    yield from _between("data.validation_fraction", data.validation_fraction, 0, 1)
    yield from _between("data.test_fraction", data.test_fraction, 0, 1)
    held_out = 0 if data.test_size or data.test_path else data.test_fraction
    if data.validation_fraction + held_out >= 1:
        yield Problem(
            f"data.validation_fraction={data.validation_fraction:g} and data.test_fraction={held_out:g} leave nothing "
            "to train on",
            "a sum below 1",
        )
    if not 0 < data.near_duplicate_jaccard <= 1:
        yield Problem(f"data.near_duplicate_jaccard={data.near_duplicate_jaccard:g}", "above 0 and at most 1")
    for name in ("max_train", "max_validation", "max_test", "micro_batch_size", "max_batch_tokens"):
        yield from _at_least(f"data.{name}", getattr(data, name), 1)
    yield from _at_least("data.max_length", data.max_length, 16)
    yield from _at_least("data.num_workers", data.num_workers, 0)
    yield from _at_least("data.seed", data.seed, 0)


def _data_source_problems(data: DataConfig) -> Iterator[Problem]:
    if data.name is DataName.cybermetric:
        yield from _cybermetric_problems(data)
    else:
        yield from _belongs_to(data, DataName.cybermetric, ("size", "test_size", "dir"))
    if data.name is DataName.mcq:
        if data.path is None:
            yield Problem("data=mcq without data.path", "your question file", "data=mcq data.path=questions.jsonl")
        for name in ("path", "test_path"):
            value = getattr(data, name)
            if value is not None and not Path(value).exists():
                yield Problem(f"data.{name}={value}: there is no such file", "a .json, .jsonl, .csv or .tsv file")
    else:
        yield from _belongs_to(data, DataName.mcq, ("path", "test_path"))


def _cybermetric_problems(data: DataConfig) -> Iterator[Problem]:
    sizes = ", ".join(map(str, CYBERMETRIC_SIZES))
    for name, required in (("size", True), ("test_size", False)):
        value = getattr(data, name)
        if value not in CYBERMETRIC_SIZES and (required or value is not None):
            yield Problem(f"data.{name}={value}: there is no such CyberMetric file", sizes, f"data.{name}=2000")
    if data.test_size is not None and data.test_size == data.size:
        yield Problem(
            f"data.test_size={data.test_size} is the training file itself", "another size, or no data.test_size"
        )
    if data.dir is not None and not Path(data.dir).is_dir():
        yield Problem(f"data.dir={data.dir} is not a folder", "a folder that holds CyberMetric-<size>-v1.json")


def _belongs_to(data: DataConfig, owner: DataName, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        value = getattr(data, name)
        if value is not None:
            yield Problem(
                f"data.{name}={value} with data={data.name.name}",
                f"data.{name} only with data={owner.name}, else data.{name}=null",
                f"data={owner.name} data.{name}={value}",
            )


def _placeholders(template: str) -> set[str] | None:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError:
        return None


def _prompt_problems(prompt: PromptConfig) -> Iterator[Problem]:
    wanted = {"question", "options"} if prompt.show_options else {"question"}
    for name, template, allowed in (
        ("question", prompt.question, wanted),
        ("option", prompt.option, {"letter", "text"}),
    ):
        found = _placeholders(template)
        if found != allowed:
            wants = " and ".join(f"{{{item}}}" for item in sorted(allowed))
            yield Problem(f"prompt.{name}={template!r}", f"a template with {wants} and no other placeholder")
    if prompt.protocol is Protocol.letter and not prompt.show_options:
        yield Problem(
            "prompt.protocol=letter prompt.show_options=false: a letter means nothing without the options",
            "prompt.show_options=true, or prompt=text",
            "prompt=text",
        )
    if prompt.style is not PromptStyle.chat and not prompt.plain_cue.strip():
        yield Problem("prompt.plain_cue is empty", "the last words of a plain prompt", "'prompt.plain_cue=Answer:'")


def _optim_problems(optim: OptimConfig) -> Iterator[Problem]:
    yield from _above("optim.learning_rate", optim.learning_rate)
    yield from _at_least("optim.weight_decay", optim.weight_decay, 0)
    yield from _between("optim.beta1", optim.beta1, 0, 1)
    yield from _between("optim.beta2", optim.beta2, 0, 1)
    yield from _above("optim.eps", optim.eps)
    yield from _between("optim.warmup_fraction", optim.warmup_fraction, 0, 1)
    yield from _at_least("optim.max_grad_norm", optim.max_grad_norm, 0)


def _trainer_problems(trainer: TrainerConfig) -> Iterator[Problem]:
    for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "val_check_interval", "devices"):
        yield from _at_least(f"trainer.{name}", getattr(trainer, name), 1)
    for name in ("log_every_n_steps", "checkpoint_every_n_steps", "keep_checkpoints"):
        yield from _at_least(f"trainer.{name}", getattr(trainer, name), 1)
    if trainer.checkpoint_every_minutes is not None:
        yield from _above("trainer.checkpoint_every_minutes", trainer.checkpoint_every_minutes)
    every, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if every is not None and accumulate >= 1 and every % accumulate:
        yield Problem(
            f"trainer.val_check_interval={every} with trainer.accumulate_grad_batches={accumulate}: validation would "
            "fall inside an optimizer step",
            f"a multiple of {accumulate}",
            f"trainer.val_check_interval={max(1, round(every / accumulate)) * accumulate}",
        )
    for name, allowed in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
        if getattr(trainer, name) not in allowed:
            yield Problem(f"trainer.{name}={getattr(trainer, name)}", ", ".join(allowed))
    if trainer.resume is not None and not Path(trainer.resume).is_dir():
        yield Problem(f"trainer.resume={trainer.resume} is not a folder", "the folder of an unfinished run")
    elif trainer.resume is not None and not (Path(trainer.resume) / "config.yaml").is_file():
        what = f"trainer.resume={trainer.resume} is not a run's folder, or of a run stopped before it had begun"
        yield Problem(f"{what}: it has no config.yaml", "the folder of an unfinished run, under outputs/")


def _target_problems(config: RootConfig) -> Iterator[Problem]:
    entries = {"task": config.task}
    for group in ("logger", "metrics", "callbacks"):
        entries |= {f"{group}.{name}": entry for name, entry in getattr(config, group, {}).items()}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or "_target_" not in entry:
            yield Problem(f"{key} has no _target_", "the dotted name of the class to make")

"""Models of an evaluation: found by what was typed, distinguished and named."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from cyberlm.config.compose import group_files
from cyberlm.config.saved import config_of, saved_config
from cyberlm.config.schema import EvaluateConfig, ModelConfig, ModelSource, QuantConfig, TrainConfig
from cyberlm.data.splits import SPLIT_MANIFEST
from cyberlm.evaluation.records import ModelSpec
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.methods.method import method_of, saved_folder
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean
from cyberlm.runtime.files import read_json, sha256_of
from cyberlm.tasks.prompts import Prompt

ALLOWED = """\
Each of runs=[...] is one of
    the folder of a finished training run        outputs/RUN
    the folder of a PEFT adapter                 outputs/RUN/adapter, or one from elsewhere for model=...
    the folder of a whole model                  config.json and *.safetensors
    a base model, by the name of its option      {options}"""

GENERIC_NAMES = re.compile(r"adapter|model|\d+")
"""Folder names that need the name of the folder above."""

TIME_OF_RUN = re.compile(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_")


def find_models(config: EvaluateConfig) -> tuple[ModelSpec, ...]:
    """The models that `run`, `runs` or `model` name, a base before the first that was tuned from it.

    Raises:
        ConfigError: If an entry of `runs` is none of what is allowed, or the same model as another.
    """
    if config.run is not None:
        base, tuned = _of_run(Path(config.run), config.run)
        return (replace(base, name="base"), replace(tuned, name="tuned"))[not config.evaluation.base :]
    if not config.runs:
        return (_spec(config.model.name, "base", config.model, config.quant, name="base"),)
    found: list[Sequence[ModelSpec]] = []
    problems: list[Problem] = []
    for entry in config.runs:
        try:
            found.append(_of_entry(entry, config))
        except ConfigError as error:
            problems += error.problems
    problems += _twice([models[-1] for models in found])
    if problems:
        options = ", ".join(sorted({*group_files("model")} - {"local"}))
        raise ConfigError("These models cannot be scored:", problems, ALLOWED.format(options=options))
    return _named(_bases_once([model for models in found for model in models]))


def loaded_spec(spec: ModelSpec, weights: LoadedModel, prompt: Prompt) -> ModelSpec:
    """A model with what is known of it once its weights, or for an adapter those of its base, are loaded."""
    adapter = sorted(spec.folder.glob("*.safetensors")) if spec.folder and spec.kind == "adapter" else []
    return replace(
        spec,
        base=weights.name,
        weights=weights.weights_hash,
        adapter=sha256_of(adapter) if adapter else None,
        prompt=prompt.fingerprint(),
    )


def trained_runs(specs: Sequence[ModelSpec]) -> dict[Path, TrainConfig]:
    """The training runs that specs come from, each once, with the configuration it was trained with."""
    return {run: config_of(run) for run in dict.fromkeys(run for spec in specs for run in spec.runs)}


def _spec(source: str, kind: str, model: ModelConfig, quant: QuantConfig, **more: Any) -> ModelSpec:
    return ModelSpec(source, kind, quant=quant.name.name, model=model, quant_config=quant, **more)


def _of_entry(entry: str, config: EvaluateConfig) -> Sequence[ModelSpec]:
    """The specs of one entry, the named one last."""
    folder = Path(entry)
    if (folder / "config.yaml").is_file():
        base, tuned = _of_run(folder, entry)
        return (base, tuned) if config.evaluation.base else (tuned,)
    if (folder / "adapter_config.json").is_file():
        return (_of_adapter(folder, entry, config),)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        run = _run_around(folder)
        model = ModelConfig(name=folder.name, source=ModelSource.local, path=entry)
        return (_spec(entry, "weights", model, config.quant, folder=folder, runs=(run,) if run else ()),)
    if folder.exists():
        raise _cannot(f"{entry} holds no run, no adapter and no model")
    return (_of_option(entry, config),)


def _of_run(folder: Path, entry: str) -> tuple[ModelSpec, ModelSpec]:
    """A training run's base model, and its tuned model."""
    if (folder / "config.yaml").is_file() and "run" in saved_config(folder):
        what = f"{entry} is not the folder of a training run: its config.yaml is an evaluation's"
        raise _cannot(what, allowed="a folder that train.py wrote")
    trained = config_of(folder)
    if not (folder / SPLIT_MANIFEST).is_file():
        raise _cannot(f"{entry} has no {SPLIT_MANIFEST}", allowed="a training run that has finished")
    tuned = saved_folder(trained.method, folder)
    if not tuned.is_dir():
        raise _cannot(
            f"{entry} has no {tuned.name}/: it has not finished", fix=f"python train.py trainer.resume={entry}"
        )
    base = _spec(trained.model.name, "base", trained.model, trained.quant, runs=(folder,))
    if not method_of(trained.method).trains_all_weights:
        return base, replace(base, source=entry, kind="adapter", folder=tuned)
    model = replace(trained.model, source=ModelSource.local, path=str(tuned))
    return base, replace(base, source=entry, kind="weights", model=model, folder=tuned)


def _of_adapter(folder: Path, entry: str, config: EvaluateConfig) -> ModelSpec:
    run = _run_around(folder)
    if run is not None:
        trained = config_of(run)
        return _spec(entry, "adapter", trained.model, trained.quant, folder=folder, runs=(run,))
    model, stated = config.model, str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    own = model.hub_id or model.path or model.name
    if Path(stated).name != Path(own).name:
        what = f"{entry} is an adapter for {stated or 'an unnamed base'}, and model={model.name} is {own}"
        raise _cannot(what, allowed="an adapter for model=...", fix="model=local model.path=FOLDER")
    return _spec(entry, "adapter", model, config.quant, folder=folder)


def _of_option(entry: str, config: EvaluateConfig) -> ModelSpec:
    options = group_files("model")
    if entry not in options:
        raise _cannot(f"{entry}: there is no such folder or model. {did_you_mean(entry, list(options))}".rstrip())
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(options[entry]))
    model = cast(ModelConfig, OmegaConf.to_object(merged))
    if model.source is ModelSource.local and model.path is None:
        raise _cannot(f"{entry} names no weights", allowed="the folder of the model itself")
    return _spec(entry, "base", model, config.quant, name=entry)


def _cannot(what: str, allowed: str = "", fix: str = "") -> ConfigError:
    return ConfigError("This cannot be scored:", [Problem(what, allowed, fix)])


def _run_around(folder: Path) -> Path | None:
    """The training run that a folder lies in."""
    runs = (parent for parent in folder.parents if (parent / SPLIT_MANIFEST).is_file())
    return next((run for run in runs if (run / "config.yaml").is_file() and "method" in saved_config(run)), None)


def _twice(models: Sequence[ModelSpec]) -> Iterator[Problem]:
    """Entries that name one model; `outputs/RUN` and `outputs/RUN/adapter` do."""
    first: dict[object, ModelSpec] = {}
    for model in models:
        key = model.folder.resolve() if model.folder else model.source
        if key in first:
            yield Problem(f"{first[key].source} and {model.source} are the same model", allowed="each model once")
        first.setdefault(key, model)


def _bases_once(models: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Base models of one configuration become one, of all their runs; one that was typed keeps its name."""
    kept: dict[object, ModelSpec] = {}
    for number, model in enumerate(models):
        key = repr((model.model, model.quant_config)) if model.kind == "base" else number
        before = kept.get(key)
        both = before and replace(before, name=before.name or model.name, runs=(*before.runs, *model.runs))
        kept[key] = both or model
    return list(kept.values())


def _named(models: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Gives each model the shortest of its names that no other has."""
    choices = [list(_possible_names(model)) for model in models]
    names = [possible.pop(0) for possible in choices]
    while clashing := [k for k, name in enumerate(names) if names.count(name) > 1 and choices[k]]:
        for k in clashing:
            names[k] = choices[k].pop(0)
    return tuple(replace(model, name=name) for model, name in zip(models, names, strict=True))


def _possible_names(model: ModelSpec) -> Iterator[str]:
    """Names from the shortest to the longest."""
    if model.name:
        yield model.name
    elif model.kind == "base":
        yield from ("base", f"base_{model.model.name}", f"base_{model.model.name}_{model.quant}")
        yield from (f"base_of_{TIME_OF_RUN.sub('', run.name)}" for run in model.runs[:1])
    else:
        _, *above, name = Path(model.source).resolve().parts
        while True:
            if not GENERIC_NAMES.fullmatch(name):
                yield from dict.fromkeys([TIME_OF_RUN.sub("", name), name])
            if not above:
                return
            name = f"{above.pop()}_{name}"

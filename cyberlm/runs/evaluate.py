"""An evaluation, from top to bottom."""

import gc
import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from hydra.core.hydra_config import HydraConfig

from cyberlm.config.saved import config_of, plain_config, save_config
from cyberlm.config.schema import EvaluateConfig, ModelConfig, Strategy
from cyberlm.data.datamodule import check_model_limits, encode_questions
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.inference import run_inference
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import ModelSpec
from cyberlm.evaluation.results import environment
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import BaseModel, load_tokenizer, pick_device, read_shape
from cyberlm.models.methods.adapters import open_adapter
from cyberlm.models.methods.method import method_of
from cyberlm.models.model_files import fetch
from cyberlm.models.saving import read_prompt
from cyberlm.models.sharding import Sharding
from cyberlm.runs.eval_set import build_eval_set
from cyberlm.runs.model_specs import find_models, loaded_spec, trained_runs
from cyberlm.runs.open_run import check_prompt, check_weights
from cyberlm.runs.processes import explain_lost_process
from cyberlm.runs.reporting import announce, opened_loggers, provenance_of, results_of, status_of, write_outputs
from cyberlm.runs.run_folder import locked_folder, typed_overrides
from cyberlm.runtime import distributed
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.files import write_json
from cyberlm.runtime.progress import say
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example, make_task
from cyberlm.training import loggers as experiment_loggers


def evaluate(config: EvaluateConfig, folder: Path) -> None:
    """Scores one or more models on the same questions, with status."""
    with locked_folder(folder), status_of(folder), explain_lost_process("evaluate", folder):
        run_evaluation(config, folder)


def run_evaluation(config: EvaluateConfig, folder: Path) -> None:
    """Scores a model as it is, a run's base and tuned model, or several models, and compares every two of them.

    Raises:
        ConfigError: If a model cannot be found, or what belongs to a training run is overridden.
        RunError: If the models cannot be asked the same, or a question to be asked was trained on.
    """
    specs = find_models(config)
    trained = trained_runs(specs)
    given = _groups_given()
    _refuse_overrides(config, specs, given)
    if config.run is not None:
        own = trained[Path(config.run)]
        config = replace(config, model=own.model, quant=own.quant)
    eval_set, sources = build_eval_set(config, trained, given)
    assert isinstance(eval_set.config, EvaluateConfig)
    config = eval_set.config
    if config.runs:
        for spec in specs:
            say(f"Model {spec.name}: {spec.kind} {spec.source}, base weights {spec.quant}")
        say(f"Folder {folder}")
    else:
        announce(config, folder)
    L.seed_everything(config.seed, workers=True, verbose=False)

    prompted = [_prompted(spec, eval_set.questions, config) for spec in specs]  # all, before any is loaded
    models_used = [spec.model for spec in specs]

    with opened_loggers(config) as loggers:
        distributed.call_on_other_ranks(take_part, config, eval_set, models_used)
        fetch(models_used)
        loader = _ModelLoader(config)
        loaded = loader.weights_of(distributed.broadcast(specs[0]))
        asked = hashlib.sha256("".join(question.hash for question in eval_set.questions).encode()).hexdigest()
        provenance = provenance_of(config, sources, asked, prompted[0].prompt, loaded)
        del loaded
        save_config(folder, config)
        write_json(folder / "provenance.json", provenance)
        write_json(folder / "environment.json", environment())
        experiment_loggers.log_config(loggers, {**plain_config(config), "provenance": provenance})

        models: dict[str, Predictions] = {}
        scored: dict[str, ModelSpec] = {}
        names: dict[Hashable, str] = {}
        scored_as: dict[str, str] = {}
        for model in prompted:
            name = model.spec.name
            spec = loaded_spec(model.spec, loader.weights_of(distributed.broadcast(model).spec), model.prompt)
            first = scored_as[name] = names.setdefault(loader.identity(model), name)
            if distributed.broadcast(first == name):
                models[name] = _score(model, loader, eval_set)
                scored[name] = spec
            else:
                say(f"{name} has the weights of {first}: scored once")

        distributed.broadcast(None)
        distributed.release()
        results = results_of(eval_set, models, _with_bases(scored, specs, scored_as), provenance)
        results = replace(
            results,
            model=", ".join(dict.fromkeys(spec.model.name for spec in specs)),
            method=", ".join(dict.fromkeys(run.method.name for run in trained.values())) or "none",
            quant=", ".join(dict.fromkeys(spec.quant for spec in specs)),
        )
        write_outputs(folder, results, eval_set, models, loggers)


def take_part(config: EvaluateConfig, eval_set: EvalSet, models: Sequence[ModelConfig]) -> None:
    """The part of a process of a higher rank in an evaluation: its share of the questions, model by model."""
    fetch(models)
    L.seed_everything(config.seed, workers=True, verbose=False)
    loader = _ModelLoader(config)
    loader.weights_of(distributed.broadcast(None))  # type: ignore[arg-type]  # rank 0's is a model
    while (model := distributed.broadcast(None)) is not None:
        loader.weights_of(model.spec)
        if distributed.broadcast(None):
            _score(model, loader, eval_set)


@dataclass(frozen=True)
class _PromptedModel:
    """A model to be scored, with the prompt of its tokenizer and the questions in its tokens."""

    spec: ModelSpec
    prompt: Prompt
    encoded: Sequence[EncodedQuestion]


def _prompted(spec: ModelSpec, questions: Sequence[Example], config: EvaluateConfig) -> _PromptedModel:
    prompt = Prompt(config.prompt, load_tokenizer(spec.model), make_task(config))
    if spec.folder is not None and (spec.runs or read_prompt(spec.folder)):  # models from elsewhere may not say
        check_prompt(prompt, spec.folder)
    encoded = encode_questions(questions, prompt, config.data.max_length, cache_folder() / "tokenised")
    check_model_limits(read_shape(spec.model), prompt, encoded, config.evaluation)
    return _PromptedModel(spec, prompt, encoded)


def _score(model: _PromptedModel, loader: "_ModelLoader", eval_set: EvalSet) -> Predictions:
    encoded = {"test": model.encoded}
    return run_inference(loader.load(model.spec), model.prompt, eval_set, encoded, model.spec.name)


class _ModelLoader:
    """Loader of models, one at a time; a base that was scored stays for the adapter that follows it.

    All processes load the same in the same order: with `trainer.strategy=fsdp2` each holds its share.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self._device = pick_device(config.trainer.accelerator)
        trainer = config.trainer
        spread = Sharding(replicas=trainer.replicas, cpu_offload=trainer.cpu_offload)
        self._sharding = spread if trainer.strategy is Strategy.fsdp2 else None
        self._held: BaseModel | None = None

    def base_under(self, spec: ModelSpec) -> BaseModel:
        """A model's weights; for an adapter, those of its base as they were before any adapter."""
        held = self._held
        if held is None or (held.model, held.quant) != (spec.model, spec.quant_config):
            held = self._held = None
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            check = partial(check_weights, runs=() if spec.kind == "weights" else spec.runs)
            self._held = held = BaseModel(spec.model, spec.quant_config, self._device, check, self._sharding)
        return held

    def weights_of(self, spec: ModelSpec) -> LoadedModel:
        return self.base_under(spec).loaded

    def load(self, spec: ModelSpec) -> LoadedModel:
        """A model, ready to answer. An adapter changes its base, which is not used again."""
        base = self.base_under(spec)
        if spec.kind != "adapter":
            return base.loaded
        folder = spec.folder
        assert folder is not None
        self._held = None
        if not spec.runs:
            return open_adapter(base, folder)
        return method_of(config_of(spec.runs[0]).method).load(base, folder)

    def identity(self, model: _PromptedModel) -> Hashable:
        """Equal for bases that are one: by weights, 4 bits or not, architecture, and the tokens asked."""
        if model.spec.kind != "base":
            return model.spec.name
        weights = self.weights_of(model.spec)
        shape = json.dumps(weights.causal.config.to_dict() | {"_name_or_path": ""}, sort_keys=True, default=str)
        return (weights.weights_hash, model.spec.quant, shape, tuple(model.encoded), model.prompt.stop_ids)


def _with_bases(
    scored: dict[str, ModelSpec], specs: Sequence[ModelSpec], scored_as: dict[str, str]
) -> dict[str, ModelSpec]:
    """The scored models, each tuned one with the name of its base: of the weights under its adapter, or of its run."""
    bases = {name: spec for name, spec in scored.items() if spec.kind == "base"}
    of_run = {run: scored_as[other.name] for other in specs if other.kind == "base" for run in other.runs}
    known = {}
    for name, spec in scored.items():
        under = (other for other, base in bases.items() if (base.weights, base.quant) == (spec.weights, spec.quant))
        own = next((of_run[run] for run in spec.runs if run in of_run), None)
        found = {"base": None, "adapter": next(under, None), "weights": own}[spec.kind]
        known[name] = replace(spec, tuned_from=found)
    return known


# --------------------------------------------------------------------------------------------------- what is refused


def _groups_given() -> set[str]:
    """Groups named on the command line, whole or in part."""
    overrides = typed_overrides(HydraConfig.get()) if HydraConfig.initialized() else []
    return {item.lstrip("+~").split("=")[0].split(".")[0] for item in overrides}


def _refuse_overrides(config: EvaluateConfig, specs: Sequence[ModelSpec], given: set[str]) -> None:
    """Refuses overrides of what belongs to a training run: its prompt, model and quantisation."""
    own = {"prompt"} if any(spec.runs for spec in specs) else set()
    if config.run or config.runs:
        own |= {"quant"} if all(spec.runs for spec in specs) else set()
        own |= {"model"} if all(spec.runs or spec.kind != "adapter" for spec in specs) else set()
    if own & given:
        whose = "run's" if config.run else "models'"
        many = f"run={config.run}" if config.run else f"'runs=[{','.join(config.runs)}]'"
        raise ConfigError(
            "These belong to the run that is scored:" if config.run else "These belong to the models that are scored:",
            [Problem(f"{name}=...", f"the {whose} own {name}") for name in sorted(own & given)],
            f"Type python evaluate.py {many}",
        )

"""An evaluation, from top to bottom."""

import gc
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger

from cyberlm.config.saved import config_of, plain_config, save_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.data.datamodule import check_reads, encode_questions
from cyberlm.evaluation.evidence import Answers
from cyberlm.evaluation.records import Results, ScoredModel
from cyberlm.evaluation.results import environment, write_results
from cyberlm.evaluation.verdict import compare
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import BaseModel, load_tokenizer, pick_device, read_shape
from cyberlm.models.methods.lora import load_adapter
from cyberlm.models.methods.method import method_of
from cyberlm.models.model_files import sha256_of
from cyberlm.models.saving import read_prompt
from cyberlm.runs.eval_set import Trained, pose
from cyberlm.runs.inference import Asked, ask, doubtful_items, weigh, write_answers
from cyberlm.runs.model_specs import ModelSpec, find_models, trained_runs
from cyberlm.runs.open_run import check_prompt, check_weights
from cyberlm.runs.reporting import announce, conclude, opened_loggers, provenance_of, results_of, status_of
from cyberlm.runs.run_folder import sole_owner, typed_overrides
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.files import write_json
from cyberlm.runtime.progress import say
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.questions import Question
from cyberlm.tasks.task import make_task
from cyberlm.training import loggers as experiment_loggers


def evaluate(config: EvaluateConfig, folder: Path) -> None:
    """Scores one or more models on the same questions, with status and loggers."""
    with sole_owner(folder), status_of(folder), opened_loggers(config) as loggers:
        run_evaluation(config, folder, loggers)


def run_evaluation(config: EvaluateConfig, folder: Path, loggers: Sequence[Logger]) -> Results:
    """Scores a model as it is, a run's base and tuned model, or several models, and compares every two of them.

    Args:
        config: Checked.
        folder: The evaluation's folder.
        loggers: Experiment loggers.

    Raises:
        ConfigError: If a model cannot be found, or what belongs to a training run is overridden.
        RunError: If the models cannot be asked the same, or a question to be asked was trained on.
    """
    contenders = find_models(config)
    trained = trained_runs(contenders)
    given = _groups_given()
    _refuse_foreign(config, contenders, given)
    if config.run is not None:
        own = trained[Path(config.run)]
        config = replace(config, model=own.model, quant=own.quant)
    posed = pose(config, trained, own_data="data" in given)
    config, questions = posed.config, posed.questions
    _announce(config, contenders, folder)
    L.seed_everything(config.seed, workers=True, verbose=False)

    asked = Asked(questions, (), seen=posed.seen, suspects=doubtful_items(config, questions))
    entrants = [_entrant(contender, asked, config) for contender in contenders]
    bench = _Bench(pick_device(config.trainer.accelerator))
    provenance = provenance_of(
        config, posed.sources, _hash_of(questions), entrants[0].prompt, bench.weights_of(contenders[0])
    )
    save_config(folder, config)
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "environment.json", environment())
    experiment_loggers.log_config(loggers, {**plain_config(config), "provenance": provenance})

    answers: dict[str, Answers] = {}
    models: dict[str, ScoredModel] = {}
    bases: dict[str, tuple[object, ...]] = {}
    scored_as: dict[str, str] = {}
    for entrant in entrants:
        model, name = bench.describe(entrant), entrant.contender.name
        base = bench.base_of(entrant)
        twin = next((other for other, known in bases.items() if known == base), None)
        scored_as[name] = twin or name
        if base is not None and twin is None:
            bases[name] = base
        if twin is None:
            answers[name] = ask(bench.load(entrant.contender), entrant.prompt, entrant.asked, config, name)
            models[name] = model
        else:
            say(f"{name} has the weights of {twin}: scored once")

    models = _with_bases(models, contenders, scored_as)
    evidence = weigh(answers, asked, config, models)
    comparison = compare(evidence.pairs)
    results = results_of(config, "evaluate", {"test": questions}, answers, entrants[0].prompt, provenance, comparison)
    results = _named_after(replace(results, models=models), contenders, trained)
    write_results(results, folder)
    write_answers(folder, answers, evidence, as_parquet=config.evaluation.parquet)
    conclude(folder, results, evidence, questions, answers, loggers)
    return results


@dataclass(frozen=True)
class _Entrant:
    """A contender with the prompt of its tokenizer, and the questions in its tokens."""

    contender: ModelSpec
    prompt: Prompt
    asked: Asked


def _entrant(contender: ModelSpec, asked: Asked, config: EvaluateConfig) -> _Entrant:
    prompt = Prompt(config.prompt, load_tokenizer(contender.model), make_task(config))
    _check_prompt(prompt, contender)
    encoded = encode_questions(asked.test, prompt, config.data.max_length, cache_folder() / "tokenised")
    check_reads(read_shape(contender.model), prompt, encoded, config.evaluation)
    return _Entrant(contender, prompt, replace(asked, encoded=encoded))


class _Bench:
    """Where models are loaded, one at a time; a base that was scored stays for the adapter that follows it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: BaseModel | None = None

    def base_under(self, contender: ModelSpec) -> BaseModel:
        """A contender's weights; for an adapter, those of its base as they were before any adapter."""
        held = self._held
        if held is None or (held.model, held.quant) != (contender.model, contender.quant):
            held = self._held = None
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            check = partial(_check_weights, contender=contender)
            self._held = held = BaseModel(contender.model, contender.quant, self._device, check)
        return held

    def weights_of(self, contender: ModelSpec) -> LoadedModel:
        return self.base_under(contender).loaded

    def load(self, contender: ModelSpec) -> LoadedModel:
        """A contender, ready to answer. An adapter changes its base, which is not used again."""
        base = self.base_under(contender)
        if contender.kind != "adapter":
            return base.loaded
        assert contender.folder is not None
        self._held = None
        if not contender.runs:
            return load_adapter(base.loaded, contender.folder)
        return method_of(config_of(contender.runs[0]).method).load(base, contender.folder)

    def describe(self, entrant: _Entrant) -> ScoredModel:
        contender, weights = entrant.contender, self.weights_of(entrant.contender)
        tuned = contender.folder if contender.kind == "adapter" else None
        adapter = sorted(tuned.glob("*.safetensors")) if tuned else []
        return ScoredModel(
            source=contender.source,
            kind=contender.kind,
            base=weights.name,
            quant=contender.quant.name.name,
            weights=weights.weights_hash,
            adapter=sha256_of(adapter) if adapter else None,
            prompt=entrant.prompt.fingerprint(),
        )

    def base_of(self, entrant: _Entrant) -> tuple[object, ...] | None:
        """What makes two bases one: weights, 4 bits or not, architecture, and the tokens that they are asked."""
        if entrant.contender.kind != "base":
            return None
        weights = self.weights_of(entrant.contender)
        shape = weights.causal.config.to_dict()
        shape.pop("_name_or_path", None)
        asked = (entrant.asked.encoded, entrant.prompt.stop_ids)
        return (weights.weights_hash, entrant.contender.quant.name, shape, *asked)


def _with_bases(
    models: dict[str, ScoredModel], contenders: Sequence[ModelSpec], scored_as: dict[str, str]
) -> dict[str, ScoredModel]:
    """The scored models, each tuned one with the name of its base: of the weights under its adapter, or of its run."""
    bases = {name: model for name, model in models.items() if model.kind == "base"}
    of_run = {run: scored_as[other.name] for other in contenders if other.kind == "base" for run in other.runs}
    known = dict(models)
    for contender in contenders:
        model = models.get(contender.name)
        if model is None or model.kind == "base":
            continue
        under = (name for name, base in bases.items() if (base.weights, base.quant) == (model.weights, model.quant))
        own = next((of_run[run] for run in contender.runs if run in of_run), None)
        known[contender.name] = replace(model, tuned_from=next(under, None) if model.kind == "adapter" else own)
    return known


def _hash_of(questions: Sequence[Question]) -> str:
    return hashlib.sha256("".join(question.hash for question in questions).encode()).hexdigest()


def _announce(config: EvaluateConfig, contenders: Sequence[ModelSpec], folder: Path) -> None:
    if not config.runs:
        announce(config, folder)
        return
    for contender in contenders:
        what = f"{contender.kind} {contender.source}, base weights {contender.quant.name.name}"
        say(f"Model {contender.name}: {what}")
    say(f"Folder {folder}")


def _named_after(results: Results, contenders: Sequence[ModelSpec], trained: Trained) -> Results:
    """Model, method and quantisation of everything that was scored, each once."""
    return replace(
        results,
        model=_list_of(contender.model.name for contender in contenders),
        method=_list_of(run.method.name for run in trained.values()) or "none",
        quant=_list_of(contender.quant.name.name for contender in contenders),
    )


def _list_of(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


# --------------------------------------------------------------------------------------------------- what is refused


def _groups_given() -> set[str]:
    """Groups named on the command line, whole or in part."""
    overrides = typed_overrides(HydraConfig.get()) if HydraConfig.initialized() else []
    return {item.lstrip("+~").split("=")[0].split(".")[0] for item in overrides}


def _refuse_foreign(config: EvaluateConfig, contenders: Sequence[ModelSpec], given: set[str]) -> None:
    """Refuses overrides of what training runs bring with them."""
    own = {"prompt"} if any(contender.runs for contender in contenders) else set()
    if config.run or config.runs:
        own |= {"quant"} if all(contender.runs for contender in contenders) else set()
        own |= {"model"} if all(contender.runs or contender.kind != "adapter" for contender in contenders) else set()
    if own & given:
        whose = "run's" if config.run else "models'"
        many = f"run={config.run}" if config.run else f"'runs=[{','.join(config.runs)}]'"
        raise ConfigError(
            "These belong to the run that is scored:" if config.run else "These belong to the models that are scored:",
            [Problem(f"{name}=...", f"the {whose} own {name}") for name in sorted(own & given)],
            f"Type python evaluate.py {many}",
        )


def _check_weights(now: str, contender: ModelSpec) -> None:
    """Whether training runs' base is still the one that they were trained on."""
    if contender.kind != "weights":
        for run in contender.runs:
            check_weights(now, run)


def _check_prompt(prompt: Prompt, contender: ModelSpec) -> None:
    """Whether the prompt is still the one that a model was tuned with; models from elsewhere may not say."""
    folder = contender.folder
    if folder is not None and (contender.runs or read_prompt(folder)):
        check_prompt(prompt, folder)

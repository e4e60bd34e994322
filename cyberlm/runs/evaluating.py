"""An evaluation, from top to bottom."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger

from cyberlm import loggers as experiment_loggers
from cyberlm.cache import cache_folder
from cyberlm.config import EvaluateConfig, TrainConfig
from cyberlm.data.module import encode_questions
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import read_manifest, select_questions
from cyberlm.errors import ConfigError, Problem, RunError
from cyberlm.evidence import Answers
from cyberlm.leaks import audit_leaks, refuse_leaked
from cyberlm.models import (
    load_base,
    load_tokenizer,
    load_tuned,
    pick_device,
)
from cyberlm.models.adapters import ADAPTER_FOLDER, MODEL_FOLDER, prompt_fingerprint
from cyberlm.prompts import Prompt
from cyberlm.records import Question, QuestionSet, Results
from cyberlm.results import environment, read_json, write_json, write_results
from cyberlm.runs.answering import Asked, ask, doubtful_items, weigh, write_answers
from cyberlm.runs.parts import (
    SPLIT_MANIFEST,
    Clock,
    announce,
    conclude,
    config_of,
    opened_loggers,
    plain_config,
    provenance_of,
    results_of,
    save_config,
    status_of,
)


def evaluate(config: EvaluateConfig, folder: Path) -> None:
    """Scores a finished run, or a model as it is, with its status and loggers."""
    with status_of(folder), opened_loggers(config) as loggers:
        if config.run is None:
            evaluate_model(config, folder, loggers)
        else:
            evaluate_run(config, Path(config.run), folder, loggers)


def evaluate_model(config: EvaluateConfig, folder: Path, loggers: Sequence[Logger]) -> Results:
    """Scores a model as it is on every question of a file."""
    announce(config, folder)
    main, _ = load_sources(config.data)
    questions = main.questions[: config.data.max_test]
    return _evaluate(config, None, folder, loggers, questions, (main,))


def evaluate_run(config: EvaluateConfig, run: Path, folder: Path, loggers: Sequence[Logger]) -> Results:
    """Scores a run's base and tuned model, on its own test questions or on a file that it was not trained on.

    Raises:
        ConfigError: If a part that belongs to the run is overridden.
        RunError: If the run's training questions stand among those to be scored.
    """
    trained = config_of(run)
    chosen = _chosen_groups()
    foreign = sorted(chosen & {"model", "quant", "prompt"})
    if foreign:
        raise ConfigError(
            "These belong to the run that is scored:",
            [Problem(f"{name}=...", f"the run's own {name}") for name in foreign],
            f"Type python evaluate.py run={run}",
        )
    config = replace(config, model=trained.model, quant=trained.quant, prompt=trained.prompt)
    parts = read_manifest(run / SPLIT_MANIFEST)["parts"]
    sources = [source for source in load_sources(trained.data) if source is not None]
    seen = select_questions(sources, [row["hash"] for part in ("train", "validation") for row in parts[part]])
    if "data" in chosen:
        main, _ = load_sources(config.data)
        questions: Sequence[Question] = main.questions[: config.data.max_test]
        sources = [main]
        refuse_leaked(audit_leaks(questions, seen), str(run))
    else:
        config = replace(config, data=trained.data)
        questions = select_questions(sources, [row["hash"] for row in parts["test"]])
    announce(config, folder)
    return _evaluate(config, trained, folder, loggers, questions, tuple(sources), seen)


def _evaluate(
    config: EvaluateConfig,
    trained: TrainConfig | None,
    folder: Path,
    loggers: Sequence[Logger],
    questions: Sequence[Question],
    sources: Sequence[QuestionSet],
    seen: Sequence[Question] = (),
) -> Results:
    clock = Clock()
    L.seed_everything(config.seed, workers=True, verbose=False)
    with clock.phase("load"):
        prompt = Prompt(config.prompt, load_tokenizer(config.model))
        encoded = encode_questions(questions, prompt, config.data.max_length, cache_folder() / "tokenised")
        sft = trained is not None and trained.method.lora is None
        loaded = load_base(config.model, config.quant, pick_device(config.trainer.accelerator), trains_all_weights=sft)
    tested = hashlib.sha256("".join(question.hash for question in questions).encode()).hexdigest()
    provenance = provenance_of(config, sources, tested, prompt, loaded)
    save_config(folder, config)
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "environment.json", environment())
    experiment_loggers.log_config(loggers, {**plain_config(config), "provenance": provenance})
    if config.run is not None:
        _check_weights(provenance["weights"], Path(config.run))
    asked = Asked(questions, encoded, seen=seen, suspects=doubtful_items(config, questions))
    answers: dict[str, Answers] = {}
    if trained is None or config.evaluation.base:
        with clock.phase("score base"):
            answers["base"] = ask(loaded, prompt, asked, config, "the base model")
    if trained is not None:
        assert config.run is not None
        run = Path(config.run)
        _check_fingerprint(prompt, run / (ADAPTER_FOLDER if trained.method.lora else MODEL_FOLDER))
        tuned = load_tuned(loaded, trained.method, run)
        with clock.phase("score tuned"):
            answers["tuned"] = ask(tuned, prompt, asked, config, "the tuned model")
    results = results_of(config, "evaluate", {"test": questions}, answers, prompt, provenance)
    evidence = weigh(answers, asked, config)
    if trained is not None:
        results = replace(results, method=trained.method.name.name)
    write_results(results, folder)
    write_answers(folder, answers, evidence)
    conclude(folder, results, evidence, questions, answers, loggers)
    return results


def _chosen_groups() -> set[str]:
    """Groups named on the command line, whole or in part."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {item.lstrip("+~").split("=")[0].split(".")[0] for item in overrides}


def _check_weights(now: str, run: Path) -> None:
    then = dict(read_json(run / "provenance.json")).get("weights")
    if then != now:
        raise RunError(
            f"The base weights are not those that {run} was trained on:",
            [Problem(f"hash {then} then, {now} now", "the same file or revision")],
        )


def _check_fingerprint(prompt: Prompt, tuned: Path) -> None:
    saved, now = prompt_fingerprint(tuned), prompt.fingerprint()
    if saved != now:
        raise RunError(
            "The prompt is not the one that this model was tuned with:",
            [Problem(f"fingerprint {saved} in {tuned}, {now} now", "the same template and tokenizer")],
        )

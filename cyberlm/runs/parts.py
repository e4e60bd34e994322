"""What training runs and evaluations share: status, loggers, provenance, results."""

import contextlib
import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from cyberlm import loggers as experiment_loggers
from cyberlm.config import ModelSource, Monitor, TrainConfig, read_config
from cyberlm.config.schema import RootConfig
from cyberlm.errors import ConfigError, Problem, RunError, UserError
from cyberlm.evidence import Answers, Evidence, differences, sentences, summary
from cyberlm.evidence import figures as evidence_figures
from cyberlm.metrics import score_predictions
from cyberlm.models import (
    LoadedModel,
)
from cyberlm.planning import give_back
from cyberlm.progress import say
from cyberlm.prompts import Prompt
from cyberlm.records import GENERATION, LETTERS, Comparison, ModelScores, Question, QuestionSet, Results, Split
from cyberlm.redaction import redact
from cyberlm.report import print_results
from cyberlm.results import SCHEMA_VERSION, environment, write_status
from cyberlm.signals import Stopped

SAMPLE_PREDICTIONS = 32
REFERRING = ("logger", "callbacks")
"""Groups of a configuration whose texts may refer to the environment: `places.with_references`."""
ODD_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Characters that YAML reads as line breaks, unless they are written as escapes."""
SPLIT_MANIFEST = "split_manifest.json"


class Clock:
    """Wall time by phase, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            give_back()


@dataclass
class _Report:
    objective: float | None = None


@contextlib.contextmanager
def status_of(folder: Path) -> Iterator[_Report]:
    """status.json says running, then finished, or stopped or failed with the reason."""
    report = _Report()
    write_status(folder, "running")
    try:
        yield report
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide the error itself
            state = "stopped" if isinstance(error, Stopped) else "failed"
            write_status(folder, state, reason=_reason(error))
        raise
    write_status(folder, "finished", report.objective)


def _reason(error: BaseException) -> str:
    """One line that says why a run failed."""
    if isinstance(error, UserError):
        return " ".join([error.title, *(problem.what for problem in error.problems[:1])])
    if isinstance(error, Stopped):
        return error.signum.name
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    told = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    first = (str(told).splitlines() or [""])[0]
    return f"{type(told).__name__}: {first}"


MISCONFIGURED = (UserError, ImportError, TypeError, OmegaConfBaseException)
"""What a logger raises that was asked for wrongly; any other failure is the logger's own."""


@contextlib.contextmanager
def opened_loggers(config: RootConfig) -> Iterator[list[Logger]]:
    """Opens the loggers, each tried at once, and closes them; one that fails is left aside.

    Raises:
        HydraException: If one is missing or is given arguments that it does not take.
    """
    opened: list[Logger] = []
    succeeded = False
    try:
        for name, entry in config.logger.items():
            try:
                opened.append(experiment_loggers.lenient(hydra.utils.instantiate(entry, _convert_="all")))
            except Exception as error:  # of any type: each logger has its own
                cause = error.__cause__ if isinstance(error, HydraException) else error
                if cause is None or isinstance(cause, MISCONFIGURED):
                    raise
                experiment_loggers.say_left_aside(name, cause)
        yield opened
        succeeded = True
    finally:
        experiment_loggers.finish(opened, succeeded)


def announce(config: RootConfig, folder: Path) -> None:
    method = f", {config.method.name.name}" if isinstance(config, TrainConfig) else ""
    say(
        f"Model {config.model.name}{method}, base weights {config.quant.name.name}; data {_data_name(config)}; "
        f"prompt {config.prompt.name}"
    )
    if config.model.source in (ModelSource.embedded, ModelSource.tiny):
        say("For Llama 3 on CyberMetric (GPU, Hugging Face login): python train.py experiment=llama3_qlora")
    say(f"Folder {folder}")


def _data_name(config: RootConfig) -> str:
    return f"{config.data.name.name} {config.data.size or ''}".strip()


def announce_split(split: Split) -> None:
    counts = ", ".join(f"{len(part)} {name}" for name, part in split.parts().items())
    say(f"Questions: {counts} ({split.clusters} near-duplicate clusters, none on two sides)")
    for reason, count in split.dropped.items():
        say(f"  {count} left out: {reason}")
    if split.too_long:
        say(f"  {len(split.too_long)} left out: too long ({SPLIT_MANIFEST} lists them)")
    for source in split.sources:
        if source.skipped:
            say(f"  {len(source.skipped)} bad rows of {source.name} skipped")


def provenance_of(
    config: RootConfig, sources: Sequence[QuestionSet], split_hash: str, prompt: Prompt, loaded: LoadedModel
) -> dict[str, str]:
    """What the figures came from: hashes, seeds and the command."""
    return {
        "base_model": loaded.name,
        "weights": loaded.weights_hash,
        "data": " ".join(f"{source.name}:{source.sha256}" for source in sources),
        "split": split_hash,
        "prompt": prompt.fingerprint(),
        "tokenizer": prompt.tokenizer_hash,
        "seed": str(config.seed),
        "split_seed": str(config.data.seed),
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "config": hash_of(settings_of(config)),
        **{name: value for name, value in environment().items() if name in ("git_commit", "cyberlm")},
    }


def results_of(
    config: RootConfig,
    kind: str,
    parts: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Answers],
    prompt: Prompt,
    provenance: dict[str, str],
    comparison: Comparison | None = None,
) -> Results:
    scores: dict[str, ModelScores] = {
        name: score_predictions(given.plain, prompt.config.protocol, prompt.config.show_options)
        for name, given in answers.items()
    }
    return Results(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        model=config.model.name,
        method="none",
        quant=config.quant.name.name,
        prompt=config.prompt.name,
        data=_data_name(config),
        questions={name: len(part) for name, part in parts.items()},
        scores=scores,
        comparison=comparison,
        objective=None,
        steps=0,
        cost=None,
        provenance=provenance,
    )


def conclude(
    folder: Path,
    results: Results,
    evidence: Evidence,
    test: Sequence[Question],
    answers: Mapping[str, Answers],
    loggers: Sequence[Logger],
) -> None:
    """Figures to every logger, tables to the terminal."""
    figures = {**flat_figures(results), **evidence_figures(evidence)}
    experiment_loggers.log_results(loggers, figures, sample_rows(test, answers))
    print_results(results, folder, summary(evidence), differences(evidence), sentences(evidence))


def plain_config(config: RootConfig) -> dict[str, Any]:
    """The configuration as it is written, and read back."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


NOT_SETTLED = ("trainer.resume", "logger", "group")
"""Overrides that a resumed run may be given; everything else it keeps."""


def settings_of(config: RootConfig) -> dict[str, str]:
    """Everything that a resumed run keeps, by dotted key, each value as JSON."""
    return flattened(plain_config(config))


def hash_of(settings: Mapping[str, str]) -> str:
    """SHA-256 of what `settings_of` gives."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def flattened(plain: Any) -> dict[str, str]:
    """A configuration in plain containers as `settings_of` has it."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), item)
        elif not any(prefix == name or prefix.startswith(f"{name}.") for name in NOT_SETTLED):
            flat[prefix] = json.dumps(value, ensure_ascii=False)

    add("", plain)
    return dict(sorted(flat.items()))


def save_config(folder: Path, config: RootConfig) -> None:
    """Writes config.yaml so that every text comes back as it is; loggers and callbacks keep their references."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value if key in REFERRING else _literal(value) for key, value in plain_config(config).items()}
    readable = not ODD_BREAKS.search(json.dumps(plain, ensure_ascii=False))
    text = yaml.dump(plain, Dumper=get_omega_conf_dumper(), allow_unicode=readable, sort_keys=False)
    temporary = folder / ".config.yaml.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "config.yaml")


def _literal(value: Any) -> Any:
    """The value with `${` escaped in its texts, which OmegaConf would read as a reference."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def flat_figures(results: Results) -> dict[str, float]:
    """The final figures under short names, for experiment loggers."""
    flat: dict[str, float] = {}
    for name, scores in results.scores.items():
        flat[f"test/{name}/accuracy"] = scores.likelihood.value
        flat[f"test/{name}/gold_nll"] = scores.gold_nll
        if scores.generation is not None:
            flat[f"test/{name}/accuracy_generation"] = scores.generation.value
        if scores.rouge is not None:
            flat[f"test/{name}/rouge1"] = scores.rouge.rouge1
            flat[f"test/{name}/rougeL"] = scores.rouge.rougeL
            if scores.rouge.rouge2 is not None:
                flat[f"test/{name}/rouge2"] = scores.rouge.rouge2
    if results.comparison is not None:
        by = "_generation" if results.comparison.metric == GENERATION else ""  # like the accuracies it compares
        flat[f"test/difference{by}"] = results.comparison.difference
        flat[f"test/p_value{by}"] = results.comparison.p_value
        if results.comparison.p_mid is not None:
            flat[f"test/p_mid{by}"] = results.comparison.p_mid
    if results.cost is not None:
        cost = results.cost
        flat["cost/trainable_parameters"] = float(cost.trainable_parameters)
        flat["cost/nonpadding_tokens_per_second"] = cost.nonpadding_tokens_per_second
        if cost.computed_tokens_per_second is not None:
            flat["cost/computed_tokens_per_second"] = cost.computed_tokens_per_second
        flat["cost/peak_host_gib"] = cost.peak_host_bytes / 2**30
        if cost.peak_device_bytes is not None:
            flat["cost/peak_device_gib"] = cost.peak_device_bytes / 2**30
        flat.update({f"cost/seconds/{name}": seconds for name, seconds in cost.seconds.items()})
    if results.objective is not None:
        flat[f"val/best_{results.monitor or Monitor.accuracy.name}"] = results.objective
    return flat


def sample_rows(questions: Sequence[Question], answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """The first questions with what each model answered, for a table."""
    rows = []
    for k, question in enumerate(questions[:SAMPLE_PREDICTIONS]):
        row: dict[str, Any] = {"question": question.question, "gold": f"{question.letter}) {question.answer}"}
        for name, given in answers.items():
            row[f"{name} choice"] = LETTERS[given.plain[k].choice]
            row[f"{name} right"] = given.plain[k].correct
            row[f"{name} generated"] = given.plain[k].generated
        rows.append(row)
    return rows


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


def config_of(run: Path) -> TrainConfig:
    """The configuration that a training run was made with; what it names may be gone since.

    Raises:
        RunError: If it cannot be had.
    """
    saved = saved_config(run)
    try:
        saved.trainer.resume = None
        saved.trainer.setdefault("monitor", Monitor.accuracy.name)  # as it was before the key existed
        return read_config(saved, TrainConfig)
    except (ConfigError, OmegaConfBaseException) as error:
        told = "; ".join(problem.what for problem in error.problems) if isinstance(error, ConfigError) else str(error)
        raise _not_a_config(run / "config.yaml", told) from error


def _not_a_config(file: Path, what: str) -> RunError:
    return RunError(f"{file} is not a training run's configuration.", [Problem(what, "the file as the run wrote it")])

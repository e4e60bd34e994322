"""Status, loggers, provenance and results of training runs and evaluations."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import hydra
from hydra.errors import HydraException
from lightning.pytorch.loggers import Logger
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.saved import config_hash, flat_config
from cyberlm.config.schema import ModelSource, Monitor, Report, RootConfig, TrainConfig
from cyberlm.data.readers import QuestionSet
from cyberlm.data.splits import SPLIT_MANIFEST, Split
from cyberlm.evaluation.charts import charts_of
from cyberlm.evaluation.comparison import compare_all
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import compute_metrics
from cyberlm.evaluation.predictions import GENERATION, Predictions
from cyberlm.evaluation.records import SCHEMA_VERSION, ModelSpec, Results
from cyberlm.evaluation.report import print_results, print_summary
from cyberlm.evaluation.results import environment, write_models, write_results, write_status
from cyberlm.evaluation.verdict import main_comparison
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.memory import release_freed_memory
from cyberlm.runs.pages import write_run_page
from cyberlm.runtime.errors import UserError
from cyberlm.runtime.progress import say
from cyberlm.runtime.redaction import redact
from cyberlm.runtime.signals import Stopped
from cyberlm.tasks.prompts import Prompt
from cyberlm.training import loggers as experiment_loggers


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
            release_freed_memory()


@contextlib.contextmanager
def status_of(folder: Path) -> Iterator[SimpleNamespace]:
    """status.json says running, then finished, or stopped or failed with the reason."""
    report = SimpleNamespace(objective=None)
    write_status(folder, "running")
    try:
        yield report
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide the error itself
            write_status(folder, "stopped" if isinstance(error, Stopped) else "failed", reason=_reason(error))
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
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"


MISCONFIGURED = (UserError, ImportError, TypeError, OmegaConfBaseException)
"""Errors of a logger that is configured wrongly; any other failure is the logger's own."""


@contextlib.contextmanager
def opened_loggers(config: RootConfig) -> Iterator[list[Logger]]:
    """Opens the loggers, each tried at once, and closes them; one that fails is disabled.

    Raises:
        HydraException: If one is missing or is given arguments that it does not take.
    """
    opened: list[Logger] = []
    succeeded = False
    try:
        for name, entry in config.logger.items():
            try:
                opened.append(experiment_loggers.open_failsafe(hydra.utils.instantiate(entry, _convert_="all")))
            except Exception as error:  # of any type: each logger has its own
                cause = error.__cause__ if isinstance(error, HydraException) else error
                if cause is None or isinstance(cause, MISCONFIGURED):
                    raise
                experiment_loggers.report_failure(name, cause)
        yield opened
        succeeded = True
    finally:
        experiment_loggers.finish(opened, succeeded)


def announce(config: RootConfig, folder: Path) -> None:
    method = f", {config.method.name}" if isinstance(config, TrainConfig) else ""
    say(
        f"Model {config.model.name}{method}, base weights {config.quant.name.name}; data {_data_name(config)}; "
        f"prompt {config.prompt.name}"
    )
    if config.model.source in (ModelSource.embedded, ModelSource.tiny):
        say("For Llama 3 on CyberMetric (GPU, Hugging Face login): python train.py experiment=llama3_qlora")
    say(f"Folder {folder}")


def _data_name(config: RootConfig) -> str:
    return f"{config.data.name} {config.data.size or ''}".strip()


def announce_split(split: Split) -> None:
    counts = ", ".join(f"{len(part)} {name}" for name, part in split.parts().items())
    say(f"Questions: {counts} ({split.clusters} near-duplicate clusters, none on two sides)")
    for source in dict.fromkeys(item.source for item in split.test if item.source):
        own = [f"{sum(item.source == source for item in part)} {name}" for name, part in split.parts().items()]
        say(f"  of {source}: {', '.join(own)}")
    for reason, count in split.dropped.items():
        say(f"  {count} left out: {reason}")
    if split.too_long:
        say(f"  {len(split.too_long)} left out: too long ({SPLIT_MANIFEST} lists them)")
    for file in split.sources:
        if file.skipped:
            say(f"  {len(file.skipped)} bad rows of {file.name} skipped")


def announce_benchmarks(found: Mapping[str, tuple[int, int]]) -> None:
    """Says which known benchmarks would not be a fair test of what is trained here."""
    for name, (seen, count) in found.items():
        if seen:
            say(
                f"  {seen} of {count} questions of {name}, a known benchmark, are near-duplicates of training questions"
            )


def provenance_of(
    config: RootConfig, sources: Sequence[QuestionSet], split_hash: str, prompt: Prompt, loaded: LoadedModel
) -> dict[str, str]:
    """Hashes, seeds and the command that the figures come from."""
    return {
        "base_model": loaded.name,
        "weights": loaded.weights_hash,
        "data": " ".join(f"{source.name}:{source.sha256}" for source in sources),
        **({"data_commit": config.data.commit} if config.data.commit else {}),
        "split": split_hash,
        "prompt": prompt.fingerprint(),
        "tokenizer": prompt.tokenizer_hash,
        "seed": str(config.seed),
        "split_seed": str(config.data.seed),
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "config": config_hash(flat_config(config)),
        **{name: value for name, value in environment().items() if name in ("git_commit", "cyberlm")},
    }


def results_of(
    eval_set: EvalSet, models: Mapping[str, Predictions], specs: dict[str, ModelSpec], provenance: dict[str, str]
) -> Results:
    """Metrics and comparisons of all models, as an evaluation has them; a training run adds what it knows besides."""
    config = eval_set.config
    comparisons, differences = compare_all(models, specs, eval_set)
    return Results(
        schema_version=SCHEMA_VERSION,
        kind="evaluate",
        model=config.model.name,
        method="none",
        quant=config.quant.name.name,
        prompt=config.prompt.name,
        data=_data_name(config),
        questions={"test": len(eval_set.questions)},
        models=specs,
        metrics=compute_metrics(config.metrics, models, eval_set),
        comparisons=comparisons,
        differences=differences,
        objective=None,
        steps=0,
        cost=None,
        provenance=provenance,
    )


def write_outputs(
    folder: Path, results: Results, eval_set: EvalSet, models: Mapping[str, Predictions], loggers: Sequence[Logger]
) -> None:
    """Results and predictions to files, figures to every logger, and what `report` asks for to the terminal."""
    write_results(results, folder)
    if models:
        write_models(folder, models, as_parquet=eval_set.config.evaluation.parquet)
    write_run_page(folder, results, eval_set, models)
    charts = list(charts_of(eval_set, models)) if loggers and models else []
    page = folder / "report.html"
    experiment_loggers.log_results(loggers, flat_figures(results), charts, page if page.is_file() else None)
    show = print_results if eval_set.config.report is Report.full else print_summary
    show(results, folder)


def flat_figures(results: Results) -> dict[str, float]:
    """The final figures under short names, for experiment loggers."""
    flat = {
        f"test/{model}/{metric.name}": metric.value
        for model, metrics in results.metrics.items()
        for metric in metrics.values()
        if metric.value is not None
    }
    pair = main_comparison(results.comparisons)
    if pair is not None:
        by = "_generation" if pair.outcome == GENERATION else ""  # like the accuracies it compares
        flat |= {f"test/difference{by}": pair.difference, f"test/p_value{by}": pair.p_value, f"test/p_mid{by}": pair.p}
    if (cost := results.cost) is not None:
        for name in ("trainable_parameters", "nonpadding_tokens_per_second", "computed_tokens_per_second"):
            flat[f"cost/{name}"] = float(getattr(cost, name))
        flat["cost/peak_host_gib"] = cost.peak_host_bytes / 2**30
        if cost.peak_device_bytes is not None:
            flat["cost/peak_device_gib"] = cost.peak_device_bytes / 2**30
        flat |= {f"cost/seconds/{name}": seconds for name, seconds in cost.seconds.items()}
    if results.objective is not None:
        flat[f"val/best_{results.monitor or Monitor.accuracy.name}"] = results.objective
    return flat

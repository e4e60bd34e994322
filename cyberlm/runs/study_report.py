"""Result of a study: from the folders of its runs to study.json, its table, its figures and its page."""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyberlm.config.schema import TrainConfig
from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.equivalence import StudyAnalysis
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.outcomes import FloatArray
from cyberlm.evaluation.pages.study_figures import write_study_figures
from cyberlm.evaluation.pages.table import write_table
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import Cost, Results
from cyberlm.evaluation.results import read_models, read_results
from cyberlm.evaluation.study import (
    SCHEMA_VERSION,
    Curve,
    Study,
    StudyCost,
    StudyJob,
    StudyRow,
    TunedRate,
    write_study,
)
from cyberlm.evaluation.study_analysis import Answers, analyse_all, comparisons_of, figures_of, outcomes_of, stacked
from cyberlm.evaluation.study_words import findings, floor_sentence, power_sentences
from cyberlm.runs.eval_set import saved_eval_set
from cyberlm.runs.study_jobs import Job, state_of, tuning_jobs
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.progress import say
from cyberlm.runtime.signals import typed_command

BASE = {"none": "base", "nf4": "base nf4"}
"""Names of bases in the table, by their quantisation."""


@dataclass(frozen=True)
class Finished:
    """A job that has finished, with what it found."""

    job: Job
    results: Results
    models: Mapping[str, Predictions]


def conclude_study(
    config: TrainConfig, folder: Path, tuning: Sequence[TunedRate], jobs: Sequence[Job], opened: str
) -> bool:
    """Writes the files of a study and prints its findings; True if all its jobs have finished.

    Raises:
        RunError: If no job has finished, or jobs have split the questions differently.
    """
    assert config.study is not None
    finished = [_read(job, folder) for job in jobs if state_of(folder / job.name)[0] == "finished"]
    if not finished:
        problems = [Problem(f"{job.name} {' '.join(filter(None, state_of(folder / job.name)))}") for job in jobs]
        raise RunError("No job of the study has finished:", problems, "The same command tries them again.")
    _check_split(finished)
    study = _study(config, folder, tuning, jobs, finished, opened)
    write_study(study, folder)
    write_table(study, folder)
    write_study_figures(study, folder)
    for sentence in (*study.findings, *study.power, *study.notes):
        say(sentence, wrap=True)
    say(f"Files: {folder}")
    return study.state == "finished"


def _read(job: Job, folder: Path) -> Finished:
    return Finished(job, read_results(folder / job.name), read_models(folder / job.name))


def _check_split(finished: Sequence[Finished]) -> None:
    """Refuses jobs of different splits: their answers could not be compared."""
    splits = {run.job.name: run.results.provenance["split"] for run in finished}
    if len(set(splits.values())) > 1:
        problems = [Problem(f"{name}: split {split[:16]}") for name, split in splits.items()]
        raise RunError("The jobs of the study have split the questions differently:", problems)


def _study(
    config: TrainConfig,
    folder: Path,
    tuning: Sequence[TunedRate],
    jobs: Sequence[Job],
    finished: Sequence[Finished],
    opened: str,
) -> Study:
    settings, first = config.study, finished[0]
    assert settings is not None
    context = saved_eval_set(folder / first.job.name, [row.hash for row in first.models["tuned"].test])
    answers = _answers(settings, finished, context)
    rows = tuple(_row(row, settings, finished, context) for row in answers)
    analyses = _analyses(settings, answers, context)
    main = analyses.get(settings.outcome.name)
    comparisons = tuple(pair for name, found in analyses.items() for pair in comparisons_of(name, found))
    claims, supported = (main.claims, main.supported_margin) if main is not None else ((), None)
    floors = _floors(first.results)
    outcome, results = settings.outcome.name, first.results
    all_jobs = [*tuning_jobs(settings), *jobs]
    unfinished = [job for job in jobs if state_of(folder / job.name)[0] != "finished"]
    return Study(
        schema_version=SCHEMA_VERSION,
        name=settings.name,
        state="unfinished" if unfinished else "finished",
        command=typed_command(sys.argv[1:]),
        model=results.model,
        data=results.data,
        prompt=results.prompt,
        outcome=outcome,
        margin=settings.margin,
        reference=settings.reference,
        seeds=tuple(settings.seeds),
        questions=results.questions,
        clusters=len(set(context.clusters.tolist())),
        split=results.provenance["split"],
        tuning=tuple(tuning),
        rows=rows,
        comparisons=comparisons,
        claims=claims,
        supported_margin=supported,
        findings=(
            *findings(rows, comparisons, claims, outcome),
            *floor_sentence(rows, floors, outcome),
        ),
        power=tuple(power_sentences(settings.margin, supported, results.questions["test"], len(settings.seeds))),
        floors=floors,
        notes=tuple(_notes(settings, folder, unfinished)),
        jobs=tuple(_job(job, folder, finished, context) for job in all_jobs),
        curves=tuple(_curve(run.job, folder) for run in finished),
        provenance={**_shared(finished), "test_set_opened": opened},
    )


def _answers(study: StudyConfig, finished: Sequence[Finished], context: EvalSet) -> list[Answers]:
    """Rows of the table, bases first; a method needs two finished runs."""
    rows = []
    for quant, name in BASE.items():
        base = next((run for run in finished if run.results.quant == quant and "base" in run.models), None)
        if base is not None:
            found = outcomes_of(base.models["base"].test, context)
            rows.append(Answers(name, "base", quant, stacked([found])))
    for method in study.methods:
        runs = [run for run in finished if run.job.method == method]
        if len(runs) > 1:
            each = [outcomes_of(run.models["tuned"].test, context) for run in runs]
            rows.append(Answers(method, "method", runs[0].results.quant, stacked(each)))
    return rows


def _analyses(study: StudyConfig, answers: Sequence[Answers], context: EvalSet) -> dict[str, StudyAnalysis]:
    """Comparisons by outcome; none where the base or the reference is missing."""
    if not answers or answers[0].kind != "base" or study.reference not in {row.name for row in answers}:
        return {}
    return analyse_all(answers, study.reference, context.clusters, study.margin)


def _row(row: Answers, study: StudyConfig, finished: Sequence[Finished], context: EvalSet) -> StudyRow:
    figures = figures_of(row.by_outcome, context.clusters)
    seeds = next(iter(row.by_outcome.values())).shape[0]
    if row.kind == "base":
        return StudyRow(row.name, row.kind, row.quant, None, seeds, figures)
    runs = [run for run in finished if run.job.method == row.name]
    costs = [run.results.cost for run in runs if run.results.cost is not None]
    rate = runs[0].job.rate
    return StudyRow(row.name, row.kind, row.quant, rate, seeds, figures, _cost(costs), study.published.get(row.name))


def _cost(costs: Sequence[Cost]) -> StudyCost:
    peaks = [cost.peak_device_bytes or cost.peak_host_bytes for cost in costs]
    computed = [cost.computed_tokens_per_second for cost in costs if cost.computed_tokens_per_second is not None]
    return StudyCost(
        trainable_parameters=costs[0].trainable_parameters,
        total_parameters=costs[0].total_parameters,
        peak_bytes=max(peaks),
        peak_of="host" if costs[0].peak_device_bytes is None else "device",
        train_seconds=float(np.mean([cost.seconds["train"] for cost in costs])),
        seconds=float(np.mean([sum(cost.seconds.values()) for cost in costs])),
        tokens_per_second=float(np.mean([cost.nonpadding_tokens_per_second for cost in costs])),
        computed_tokens_per_second=float(np.mean(computed)) if computed else None,
        adapter_bytes=costs[0].adapter_bytes,
    )


def _floors(results: Results) -> dict[str, float]:
    """Accuracies of the baselines that need no model, by name."""
    prefix = "baseline_"
    return {
        metric.name.removeprefix(prefix).replace("_", " "): metric.value
        for metric in results.metrics["tuned"].values()
        if metric.name.startswith(prefix) and metric.value is not None
    }


def _notes(study: StudyConfig, folder: Path, unfinished: Sequence[Job]) -> list[str]:
    notes = []
    for job in unfinished:
        state, reason = state_of(folder / job.name)
        notes.append(f"{job.name} has not finished: {reason or state}. The same command tries it again.")
    return notes


def _job(job: Job, folder: Path, finished: Sequence[Finished], context: EvalSet) -> StudyJob:
    state, reason = state_of(folder / job.name)
    run = next((run for run in finished if run.job.name == job.name), None)
    results = run.results if run is not None else read_results(folder / job.name) if state == "finished" else None
    cost = results.cost if results is not None else None
    figures = {} if run is None else _means(outcomes_of(run.models["tuned"].test, context))
    measured = (
        (cost.seconds["train"], sum(cost.seconds.values()), cost.peak_device_bytes or cost.peak_host_bytes)
        if cost is not None
        else (None, None, None)
    )
    return StudyJob(*(job.name, job.stage, job.method, job.seed, job.rate, state, reason, job.name, figures), *measured)


def _means(outcomes: Mapping[str, FloatArray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in outcomes.items()}


def _curve(job: Job, folder: Path) -> Curve:
    """Validation figures of metrics.csv."""
    with (folder / job.name / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/option_nll")]
    steps = tuple(int(float(row["step"])) for row in rows)
    nll, accuracy = (tuple(float(row[f"val/{name}"]) for row in rows) for name in ("option_nll", "accuracy"))
    return Curve(job.method, job.seed, steps, nll, accuracy)


def _shared(finished: Sequence[Finished]) -> dict[str, str]:
    """Provenance that all jobs have alike."""
    first, *others = (run.results.provenance for run in finished)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

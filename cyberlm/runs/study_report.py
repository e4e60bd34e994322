"""Result of a study: from the folders of its runs to study.json, its table, its figures and its page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cyberlm.config.saved import config_of
from cyberlm.config.study import StudyConfig
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.pages.learning_curves import read_curves
from cyberlm.evaluation.pages.study_page import study_page, write_study_figures
from cyberlm.evaluation.pages.table import write_table
from cyberlm.evaluation.records import Cost, Results
from cyberlm.evaluation.results import read_models, read_results
from cyberlm.evaluation.statistics import FloatArray
from cyberlm.evaluation.study import SCHEMA_VERSION, Curve, Study, StudyCost, StudyJob, StudyRow, TunedRate, write_study
from cyberlm.evaluation.study_analysis import Answers, StudyAnalysis, analyse_all, figures_of, outcomes_of, stacked
from cyberlm.evaluation.study_words import baseline_sentence, findings, found_power
from cyberlm.runs.eval_set import saved_eval_set
from cyberlm.runs.run_folder import state_of
from cyberlm.runs.study_jobs import Job, tuning_jobs
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import write_text
from cyberlm.runtime.progress import say
from cyberlm.runtime.signals import train_command

BASE = {"none": "base", "nf4": "base nf4"}
"""Names of bases in the table, by their quantisation."""


@dataclass(frozen=True)
class Finished:
    """A job that has finished, with what it found.

    Attributes:
        tuned, base: Outcomes of the test questions, by name, (Q,) each; no base where another job has scored it.
    """

    job: Job
    rate: float
    results: Results
    tuned: dict[str, FloatArray]
    base: dict[str, FloatArray] | None


def conclude_study(
    study: StudyConfig,
    folder: Path,
    tuning: Sequence[TunedRate],
    jobs: Sequence[Job],
    opened: str,
    *,
    side_by_side: bool,
) -> Study:
    """Writes the files of a study and prints its findings."""
    states = {job: state_of(folder / job.name) for job in jobs}
    done = [job for job, (state, _) in states.items() if state == "finished"]
    if not done:
        problems = [Problem(f"{job.name}: {reason or state}") for job, (state, reason) in states.items()]
        raise RunError("No job of the study has finished:", problems, "The same command tries them again.")
    answers = read_models(folder / done[0].name)["tuned"].test
    context = saved_eval_set(folder / done[0].name, [row.hash for row in answers])
    finished = [_read(job, folder, context) for job in done]
    splits = {run.job.name: run.results.provenance["split"] for run in finished}
    if len(set(splits.values())) > 1:
        problems = [Problem(f"{name}: split {split[:16]}") for name, split in splits.items()]
        raise RunError("The jobs of the study have split the questions differently:", problems)
    missing = [
        f"{job.name} has not finished: {reason or state}. The same command tries it again."
        for job, (state, reason) in states.items()
        if state != "finished"
    ]
    untried = [rate for rate in tuning if rate.folder and rate.reason]
    notes = [f"{rate.folder} did not finish and was no choice: {rate.reason}." for rate in untried]
    if side_by_side:
        notes.append("Jobs ran side by side: times, speeds and host memory are not those of a machine to themselves.")
    found = _study(study, finished, context, tuning)
    found = replace(
        found,
        state="unfinished" if missing else "finished",
        notes=(*missing, *notes),
        jobs=tuple(_job(job, folder, finished) for job in (*tuning_jobs(study), *jobs)),
        curves=tuple(_curve(job, folder) for job in done),
        provenance={**found.provenance, "test_set_opened": opened},
    )
    write_study(found, folder)
    write_table(found, folder)
    figures = write_study_figures(found, folder)
    write_text(folder / "study.html", study_page(found, figures))
    for sentence in (*found.findings, *found.power, *found.notes):
        say(sentence, wrap=True)
    say(f"Files: {folder}")
    return found


def _read(job: Job, folder: Path, context: EvalSet) -> Finished:
    run = folder / job.name
    models = read_models(run)
    base = outcomes_of(models["base"].test, context) if "base" in models else None
    tuned = outcomes_of(models["tuned"].test, context)
    return Finished(job, config_of(run).optim.learning_rate, read_results(run), tuned, base)


def _study(study: StudyConfig, finished: Sequence[Finished], context: EvalSet, tuning: Sequence[TunedRate]) -> Study:
    """Findings of the finished jobs; the list of jobs and what is missing come later."""
    answers = _answers(study, finished)
    rows = tuple(_row(row, study, finished, context) for row in answers)
    analyses: dict[str, StudyAnalysis] = {}
    if answers and answers[0].kind == "base" and study.reference in {row.name for row in answers}:
        analyses = analyse_all(answers, study.reference, context.clusters, study.margin)
    comparisons = tuple(pair for analysis in analyses.values() for pair in analysis.comparisons)
    outcome, results, prefix = study.outcome.name, finished[0].results, "baseline_"
    baselines = {
        metric.name.removeprefix(prefix).replace("_", " "): metric.value
        for metric in results.metrics["tuned"].values()
        if metric.name.startswith(prefix) and metric.value is not None
    }
    main = analyses.get(outcome)
    first, *others = (run.results.provenance for run in finished)
    claims = main.claims if main is not None else ()
    return Study(
        schema_version=SCHEMA_VERSION,
        name=study.name,
        state="",
        command=train_command(sys.argv[1:]),
        model=results.model,
        data=results.data,
        prompt=results.prompt,
        outcome=outcome,
        margin=study.margin,
        reference=study.reference,
        seeds=tuple(study.seeds),
        questions=results.questions,
        clusters=len(set(context.clusters.tolist())),
        split=results.provenance["split"],
        tuning=tuple(tuning),
        rows=rows,
        comparisons=comparisons,
        claims=claims,
        supported_margin=main.supported_margin if main is not None else None,
        findings=(*findings(rows, comparisons, claims, outcome), *baseline_sentence(rows, baselines, outcome)),
        power=tuple(found_power(main, study.margin, len(study.seeds))) if main is not None else (),
        floors=baselines,
        notes=(),
        jobs=(),
        curves=(),
        provenance={key: value for key, value in first.items() if all(other.get(key) == value for other in others)},
    )


def _answers(study: StudyConfig, finished: Sequence[Finished]) -> list[Answers]:
    """Rows of the table, bases first; a method needs two finished runs."""
    rows = []
    for quant, name in BASE.items():
        bases = [run.base for run in finished if run.base is not None and run.results.quant == quant]
        if bases:
            rows.append(Answers(name, "base", quant, stacked(bases[:1])))
    for method in study.methods:
        runs = [run for run in finished if run.job.method == method]
        if len(runs) > 1:
            rows.append(Answers(method, "method", runs[0].results.quant, stacked([run.tuned for run in runs])))
    return rows


def _row(row: Answers, study: StudyConfig, finished: Sequence[Finished], context: EvalSet) -> StudyRow:
    figures = figures_of(row.by_outcome, context.clusters)
    seeds = next(iter(row.by_outcome.values())).shape[0]
    runs = [run for run in finished if row.kind == "method" and run.job.method == row.name]
    costs = [run.results.cost for run in runs if run.results.cost is not None]
    rate = runs[0].rate if runs else None
    cost = _cost(costs) if costs else None
    return StudyRow(row.name, row.kind, row.quant, rate, seeds, figures, cost, study.published.get(row.name))


def _cost(costs: Sequence[Cost]) -> StudyCost:
    computed = [cost.computed_tokens_per_second for cost in costs if cost.computed_tokens_per_second is not None]
    return StudyCost(
        trainable_parameters=costs[0].trainable_parameters,
        total_parameters=costs[0].total_parameters,
        peak_bytes=max(cost.peak_bytes for cost in costs),
        peak_of="host" if costs[0].peak_device_bytes is None else "device",
        train_seconds=float(np.mean([cost.seconds["train"] for cost in costs])),
        seconds=float(np.mean([sum(cost.seconds.values()) for cost in costs])),
        tokens_per_second=float(np.mean([cost.nonpadding_tokens_per_second for cost in costs])),
        computed_tokens_per_second=float(np.mean(computed)) if computed else None,
        adapter_bytes=costs[0].adapter_bytes,
    )


def _job(job: Job, folder: Path, finished: Sequence[Finished]) -> StudyJob:
    state, reason = state_of(folder / job.name)
    run = next((run for run in finished if run.job == job), None)
    found = StudyJob(job.name, job.stage, job.method, job.seed, job.rate, state, reason, job.name)
    if run is not None:
        means = {name: float(values.mean()) for name, values in run.tuned.items()}
        found = replace(found, learning_rate=run.rate, figures=means)
    if state != "finished" or (cost := (run.results if run else read_results(folder / job.name)).cost) is None:
        return found
    seconds = sum(cost.seconds.values())
    return replace(found, train_seconds=cost.seconds["train"], seconds=seconds, peak_bytes=cost.peak_bytes)


def _curve(job: Job, folder: Path) -> Curve:
    """Validation figures of metrics.csv."""
    curves = read_curves(folder / job.name)
    steps, nll = curves["val/option_nll"]
    accuracy = dict(zip(*curves.get("val/accuracy", ((), ())), strict=True))
    return Curve(job.method, job.seed, tuple(map(int, steps)), tuple(nll), tuple(map(accuracy.get, steps)))

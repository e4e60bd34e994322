"""Questions of an evaluation: the prompt that they are asked with, and those that its models have seen before."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path

from cyberlm.config.saved import config_of, load_config, saved_config
from cyberlm.config.schema import EvaluateConfig, RootConfig, TrainConfig
from cyberlm.data.readers import QuestionSet
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import SPLIT_MANIFEST, read_manifest, select_questions, test_questions
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.contamination import refuse_contaminated
from cyberlm.evaluation.metrics.label_noise import read_noisy_labels
from cyberlm.evaluation.metrics.metric import metric_functions
from cyberlm.runs.model_specs import find_models, trained_runs
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.task import Example, make_task

Trained = Mapping[Path, TrainConfig]
"""Training runs, with the configuration each was trained with."""


def build_eval_set(
    config: EvaluateConfig, trained: Trained, given: Collection[str]
) -> tuple[EvalSet, Sequence[QuestionSet]]:
    """The training runs' own prompt and test questions; or those of `data`, where that was given.

    Of `data` they are those of its test file, or else of its only file; of each source of a mixture. Metrics are those
    of the training runs where their task is another than that of `config`, unless some were given.

    Args:
        given: Groups of the configuration that were typed.

    Returns:
        The questions, with the configuration of the prompt and the data that are used; the files they come from.

    Raises:
        RunError: If the runs differ in prompt or test questions, or one has seen a question that is to be asked.
    """
    own_data = "data" in given or not trained
    if trained:
        _refuse_different(trained, "prompt", lambda run_config: {**vars(run_config.prompt), "name": None})
        _refuse_different(trained, "task", lambda run_config: run_config.task)
        first = next(iter(trained.values()))
        if "metrics" not in given and config.task.get("_target_") != first.task.get("_target_"):
            config = replace(config, metrics=first.metrics)
        config = replace(config, prompt=first.prompt, task=first.task, data=config.data if own_data else first.data)
    if not own_data:
        sources = _sources(config)
        questions: Sequence[Example] = select_questions(sources, _shared_test(trained))
    else:
        last = {file.questions[0].source: file for file in _sources(config)}  # of each source the test file, if any
        sources = tuple(last.values())
        questions = test_questions(config.data, [item for file in sources for item in file.questions])
    for run, run_config in trained.items():
        refuse_contaminated(questions, seen_by({run: run_config}), str(run))
    eval_set = EvalSet(config, questions, seen=seen_by(trained))
    check_metrics(eval_set)
    return eval_set, sources


def check_metrics(eval_set: EvalSet) -> None:
    """Refuses metrics that cannot be computed, before a run spends time.

    Raises:
        ConfigError: If an entry of `metrics` names no function.
        RunError: If the items of `evaluation.suspects` do not fit the questions.
    """
    metric_functions(eval_set.config.metrics)
    if eval_set.config.evaluation.suspects is not None:
        read_noisy_labels(Path(eval_set.config.evaluation.suspects), eval_set.questions)


def saved_eval_set(run: Path, hashes: Sequence[str]) -> EvalSet:
    """The questions of a run or an evaluation with these hashes, and its configuration."""
    config: RootConfig
    if "method" in saved_config(run):
        config = trained = config_of(run)
        runs: Trained = {run: trained}
    else:
        config = evaluation = load_config(run, EvaluateConfig)
        runs = trained_runs(find_models(evaluation))
    return EvalSet(config, select_questions(_sources(config), hashes), seen=seen_by(runs))


def _sources(config: RootConfig) -> tuple[QuestionSet, ...]:
    return load_sources(config.data, make_task(config))


def seen_by(trained: Trained) -> tuple[Example, ...]:
    """The questions that any of the runs trained on or validated on, each once."""
    seen: dict[Example, None] = {}
    for run, config in trained.items():
        parts = read_manifest(run / SPLIT_MANIFEST)["parts"]
        hashes = [row["hash"] for part in ("train", "validation") for row in parts[part]]
        seen |= dict.fromkeys(select_questions(_sources(config), hashes))
    return tuple(seen)


def _shared_test(trained: Trained) -> list[str]:
    """Hashes of the test questions, in the order of the first run's manifest."""
    tests = {run: [row["hash"] for row in read_manifest(run / SPLIT_MANIFEST)["parts"]["test"]] for run in trained}
    (first, expected), *others = tests.items()
    problems = []
    for run, test in others:
        shared = (Counter(test) & Counter(expected)).total()
        if not shared == len(test) == len(expected):
            what = f"{first} was tested on {len(expected)} questions, {run} on {len(test)}, {shared} of them the same"
            problems.append(Problem(what, "the same questions"))
    if problems:
        hint = (
            "Score them on a file that none of them was trained on: data=..., for example\n    data=mcq data.path=FILE"
        )
        raise RunError("These runs have different test questions:", problems, hint)
    return expected


def _refuse_different(trained: Trained, what: str, settings: Callable[[TrainConfig], Mapping[str, object]]) -> None:
    """Refuses runs of different settings, each of which is named."""
    (first, expected), *others = ((run, settings(config)) for run, config in trained.items())
    problems = [
        Problem(f"{what}.{name}: {_typed(expected.get(name))} in {first}, {_typed(own.get(name))} in {run}")
        for run, own in others
        for name in dict.fromkeys([*expected, *own])
        if own.get(name) != expected.get(name)
    ]
    if problems:
        raise RunError(f"These runs were trained with different {what}s:", problems, "Score them one by one: run=...")


def _typed(value: object) -> str:
    return value.name if isinstance(value, Enum) else repr(value)

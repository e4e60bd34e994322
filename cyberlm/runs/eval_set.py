"""Which questions an evaluation asks, with which prompt, and which its models have seen before."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from cyberlm.config.schema import EvaluateConfig, PromptConfig, TrainConfig
from cyberlm.data.readers import QuestionSet
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import SPLIT_MANIFEST, read_manifest, select_questions, test_questions
from cyberlm.evaluation.metrics.contamination import refuse_leaked
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.questions import Question
from cyberlm.tasks.task import make_task

Trained = Mapping[Path, TrainConfig]
"""Training runs, with the configuration each was trained with."""


@dataclass(frozen=True)
class EvalSet:
    """What every model is asked.

    Attributes:
        config: Of the evaluation, with the prompt and the data that are used.
        questions, sources: The questions, and the files they come from.
        seen: What any of the training runs trained on or validated on.
    """

    config: EvaluateConfig
    questions: Sequence[Question]
    sources: Sequence[QuestionSet]
    seen: Sequence[Question]


def pose(config: EvaluateConfig, trained: Trained, *, own_data: bool) -> EvalSet:
    """The training runs' own prompt and test questions; or those of `data`, where that was given.

    Of `data` they are those of its test file, or else of its only file.

    Raises:
        RunError: If the runs differ in prompt or test questions, or one has seen a question that is to be asked.
    """
    config = replace(config, prompt=_shared_prompt(trained), task=_shared_task(trained)) if trained else config
    if trained and not own_data:
        config = replace(config, data=next(iter(trained.values())).data)
        loaded = load_sources(config.data, make_task(config))
        sources: Sequence[QuestionSet] = [source for source in loaded if source is not None]
        questions: Sequence[Question] = select_questions(sources, _shared_test(trained))
    else:
        main, held_out = load_sources(config.data, make_task(config))
        tested = held_out or main
        sources, questions = [tested], test_questions(config.data, tested.questions)
    seen = {run: _seen(run, its) for run, its in trained.items()}
    for run, known in seen.items():
        refuse_leaked(questions, known, str(run))
    return EvalSet(config, questions, sources, _together(seen))


def seen_by(trained: Trained) -> tuple[Question, ...]:
    """The questions that any of the runs trained on or validated on, each once."""
    return _together({run: _seen(run, config) for run, config in trained.items()})


def _together(seen: Mapping[Path, Sequence[Question]]) -> tuple[Question, ...]:
    return tuple(dict.fromkeys(question for known in seen.values() for question in known))


def _seen(run: Path, config: TrainConfig) -> tuple[Question, ...]:
    parts = read_manifest(run / SPLIT_MANIFEST)["parts"]
    sources = [source for source in load_sources(config.data, make_task(config)) if source is not None]
    return select_questions(sources, [row["hash"] for part in ("train", "validation") for row in parts[part]])


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


def _shared_prompt(trained: Trained) -> PromptConfig:
    (first, expected), *others = ((run, config.prompt) for run, config in trained.items())
    problems = []
    for run, prompt in others:
        for item in fields(expected):
            ours, theirs = getattr(expected, item.name), getattr(prompt, item.name)
            if item.name != "name" and ours != theirs:
                problems.append(Problem(f"prompt.{item.name}: {_typed(ours)} in {first}, {_typed(theirs)} in {run}"))
    if problems:
        raise RunError("These runs were trained with different prompts:", problems, "Score them one by one: run=...")
    return expected


def _shared_task(trained: Trained) -> dict[str, Any]:
    (first, expected), *others = ((run, config.task) for run, config in trained.items())
    problems = [Problem(f"{expected} in {first}, {task} in {run}") for run, task in others if task != expected]
    if problems:
        raise RunError("These runs were trained on different tasks:", problems, "Score them one by one: run=...")
    return expected


def _typed(value: object) -> str:
    return value.name if isinstance(value, Enum) else repr(value)

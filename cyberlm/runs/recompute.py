"""Every figure of a run again, from its per-question rows and the question files, without a model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from cyberlm.config.saved import saved_as, saved_config
from cyberlm.config.schema import EvaluateConfig, RootConfig, TrainConfig
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import select_questions
from cyberlm.evaluation.evidence import EVIDENCE_VERSION, Answers, read_evidence
from cyberlm.evaluation.metrics.rotations import safe_to_permute
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.results import read_predictions, read_results
from cyberlm.evaluation.scores import score_predictions
from cyberlm.evaluation.verdict import compare
from cyberlm.runs.eval_set import seen_by
from cyberlm.runs.inference import PASSES_FILE, Asked, doubtful_items, sample_of, weigh
from cyberlm.runs.model_specs import find_models, trained_runs
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.questions import Question
from cyberlm.tasks.task import make_task


def recompute(run: Path) -> list[str]:
    """Compares the figures of `results.json` and `evidence.json` with those computed again.

    Of a run whose evidence an older version wrote, only the scores: other figures were defined otherwise then.

    Returns:
        Dotted names of the figures that differ, with both values; empty where all are equal.

    Raises:
        RunError: If the folder holds no finished run.
    """
    results = read_results(run)
    config = _config(run)
    predictions = read_predictions(run / "predictions.jsonl")
    rows = next(iter(predictions.values()))
    sources = [source for source in load_sources(config.data, make_task(config)) if source is not None]
    test = select_questions(sources, [row.hash for row in rows])
    asked = Asked(test, (), seen=_seen(run, config), suspects=doubtful_items(config, test))
    answers = _answers(run, predictions, test, config)

    protocol, shown = config.prompt.protocol, config.prompt.show_options
    scores = {name: asdict(score_predictions(given, protocol, shown)) for name, given in predictions.items()}
    saved_scores = {name: asdict(given) for name, given in results.scores.items()}
    saved = read_evidence(run)
    if saved.schema_version < EVIDENCE_VERSION:
        return list(_differences("scores", saved_scores, scores))
    evidence = weigh(answers, asked, config, results.models)
    comparison = compare(evidence.pairs)
    again = {
        "scores": scores,
        "comparison": asdict(comparison) if comparison else None,
        "evidence": asdict(evidence),
    }
    written = {
        "scores": saved_scores,
        "comparison": asdict(results.comparison) if results.comparison else None,
        "evidence": asdict(saved),
    }
    return list(_differences("", written, again))


def _config(run: Path) -> RootConfig:
    return saved_as(run, TrainConfig if "method" in saved_config(run) else EvaluateConfig)


def _seen(run: Path, config: RootConfig) -> tuple[Question, ...]:
    """The questions that the run, or any run that was evaluated, trained on or validated on."""
    if isinstance(config, EvaluateConfig):
        return seen_by(trained_runs(find_models(config)))
    assert isinstance(config, TrainConfig)
    return seen_by({run: config})


def _answers(
    run: Path, predictions: Mapping[str, Sequence[Prediction]], test: Sequence[Question], config: RootConfig
) -> dict[str, Answers]:
    file = run / PASSES_FILE
    passes = read_predictions(file) if file.is_file() else {}
    safe = [safe_to_permute(question.options) for question in test]
    answers = {}
    for name, plain in predictions.items():
        turned = iter(passes.get(f"{name}:rotated", ()))
        rotated = []
        if f"{name}:rotated" in passes:
            rotated = [
                [row, *(next(turned) for _ in range(row.n_options - 1))]
                for row, is_safe in zip(plain, safe, strict=True)
                if is_safe
            ]
        answers[name] = Answers(
            plain=plain,
            rotated=rotated,
            skipped=safe.count(False) if rotated else 0,
            prior_sample=sample_of(test, config) if rotated else frozenset(),
            blind=passes.get(f"{name}:without_question", ()),
            validation=passes.get(f"{name}:validation", ()),
        )
    return answers


def _differences(name: str, written: object, again: object) -> Iterator[str]:
    """Figures that differ by more than rounding, which may change with the version."""
    if isinstance(written, dict) and isinstance(again, dict):
        for key in sorted({*written, *again}):
            yield from _differences(f"{name}.{key}".lstrip("."), written.get(key), again.get(key))
    elif isinstance(written, tuple) and isinstance(again, tuple) and len(written) == len(again):
        for place, pair in enumerate(zip(written, again, strict=True)):
            yield from _differences(f"{name}[{place}]", *pair)
    elif isinstance(written, float) and isinstance(again, float) and math.isclose(written, again, rel_tol=1e-6):
        return
    elif written != again:
        yield f"{name}: {written} in the file, {again} computed again"


def show_recomputed(run: Path) -> None:
    """Prints that all figures are equal.

    Raises:
        RunError: With the figures that are not.
    """
    different = recompute(run)
    if different:
        raise RunError(f"{len(different)} figures of {run} are not what its rows give:", hint="\n".join(different[:20]))
    if read_evidence(run).schema_version < EVIDENCE_VERSION:
        print(
            f"The scores of {run} are what predictions.jsonl gives. An older version wrote its evidence, whose figures "
            "were defined otherwise; python evaluate.py computes them as they are now."
        )
        return
    print(f"Every figure of {run} is what predictions.jsonl gives.")

"""From a loaded model to its answers, and from the answers of all models to results, evidence and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from cyberlm.config.schema import RootConfig
from cyberlm.data.splits import near_duplicate_clusters
from cyberlm.evaluation.evidence import Answers, Evidence, Setting, collect, write_evidence
from cyberlm.evaluation.inference import predict, predict_blind, predict_rotations
from cyberlm.evaluation.metrics.label_noise import Suspect, check_suspects, read_suspects
from cyberlm.evaluation.metrics.rotations import prior_sample, safe_to_permute
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import ScoredModel
from cyberlm.evaluation.results import write_predictions
from cyberlm.models.loaded import LoadedModel
from cyberlm.tasks.multiple_choice import MultipleChoice
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.questions import Question

PASSES_FILE = "passes.jsonl"


@dataclass(frozen=True)
class Asked:
    """What models are asked, and what they may have seen before.

    Attributes:
        test, encoded: The questions that are scored, and their tokens.
        validation, encoded_validation: For the temperature (`evaluation.validation`).
        seen: Questions that were trained on or validated on.
        suspects: Items of `evaluation.suspects`.
    """

    test: Sequence[Question]
    encoded: Sequence[EncodedQuestion]
    validation: Sequence[Question] = ()
    encoded_validation: Sequence[EncodedQuestion] = ()
    seen: Sequence[Question] = ()
    suspects: Sequence[Suspect] = ()


def doubtful_items(config: RootConfig, test: Sequence[Question]) -> tuple[Suspect, ...]:
    """The items of `evaluation.suspects`, checked against the questions before time is spent on these."""
    if config.evaluation.suspects is None:
        return ()
    suspects = read_suspects(Path(config.evaluation.suspects))
    check_suspects(suspects, test)
    return suspects


def ask(loaded: LoadedModel, prompt: Prompt, asked: Asked, config: RootConfig, label: str) -> Answers:
    """One model's answers, with the passes that `config.evaluation` asks for."""
    wanted, tokens = config.evaluation, config.data.max_batch_tokens
    plain = predict(loaded, prompt, asked.test, asked.encoded, wanted, tokens, label)
    rotated: Sequence[Sequence[Prediction]] = ()
    # The order of options that are not shown, or that are classes, changes nothing.
    if wanted.rotations and prompt.config.show_options and isinstance(prompt.task, MultipleChoice):
        rotated = predict_rotations(loaded, prompt, asked.test, plain, wanted, tokens, label)
    blind: Sequence[Prediction] = ()
    if wanted.without_question:
        blind = predict_blind(loaded, prompt, asked.test, wanted, tokens, label)
    validation: Sequence[Prediction] = ()
    if wanted.validation and asked.validation:
        validation = predict(
            *(loaded, prompt, asked.validation, asked.encoded_validation),
            *(replace(wanted, generate=False), tokens, f"{label}, validation questions"),
        )
    return Answers(
        plain=plain,
        rotated=rotated,
        skipped=sum(not safe_to_permute(question.options) for question in asked.test) if rotated else 0,
        prior_sample=sample_of(asked.test, config) if rotated else frozenset(),
        blind=blind,
        validation=validation,
    )


def sample_of(test: Sequence[Question], config: RootConfig) -> frozenset[str]:
    """Hashes of the questions that the prior of the letters is estimated on."""
    sample = prior_sample(test, config.evaluation.prior_share, config.seed)
    return frozenset(question.hash for question in sample)


def weigh(
    answers: Mapping[str, Answers],
    asked: Asked,
    config: RootConfig,
    models: Mapping[str, ScoredModel] = MappingProxyType({}),
) -> Evidence:
    """Evidence about all models that were asked the same.

    Args:
        models: What was scored (`Results.models`); a training run has none, and scores `tuned` and its `base`.
    """
    bases = {name: model.tuned_from for name, model in models.items() if model.kind != "base"}
    if not models:
        bases = {"tuned": "base"}
    texts = [question.question for question in asked.test]
    numbers = near_duplicate_clusters(texts, config.data.near_duplicate_jaccard)
    clusters = {question.hash: number for question, number in zip(asked.test, numbers, strict=True)}
    prompt, how = config.prompt, config.evaluation.option_score
    setting = Setting(prompt.protocol, how, prompt.show_options, clusters, asked.suspects, bases)
    return collect(answers, setting, asked.test, asked.seen)


def write_answers(
    folder: Path, answers: Mapping[str, Answers], evidence: Evidence, *, as_parquet: bool = False
) -> None:
    """evidence.json, predictions.jsonl (and .parquet), and, where further passes were made, passes.jsonl."""
    write_evidence(evidence, folder)
    plain = {name: given.plain for name, given in answers.items()}
    write_predictions(folder / "predictions.jsonl", plain)
    if as_parquet:
        write_predictions(folder / "predictions.parquet", plain)
    passes: dict[str, Sequence[Prediction]] = {}
    for name, given in answers.items():
        further = {
            "rotated": list(chain.from_iterable(group[1:] for group in given.rotated)),
            "without_question": given.blind,
            "validation": given.validation,
        }
        passes.update({f"{name}:{kind}": rows for kind, rows in further.items() if rows})
    if passes:
        write_predictions(folder / PASSES_FILE, passes)

"""results.json and evidence.json of schema version 1, read as results of today."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import SCHEMA_VERSION, Cost, MeanDifference, ModelSpec, PairComparison, Results
from cyberlm.runtime.files import read_json
from cyberlm.runtime.validation import from_json

EVIDENCE_FILE = "evidence.json"


@dataclass(frozen=True)
class _Share:
    value: float
    correct: int
    n: int
    ci_lo: float
    ci_hi: float


@dataclass(frozen=True)
class _Rouge:
    rouge1: float
    rouge2: float | None
    rougeL: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class _Scores:
    likelihood: _Share
    per_letter: dict[str, _Share]
    gold_nll: float
    generation: _Share | None
    generation_note: str
    parse_fail_rate: float | None
    rouge: _Rouge | None
    ties: int = 0
    truncated_rate: float | None = None


@dataclass(frozen=True)
class _Results:
    schema_version: int
    kind: str
    model: str
    method: str
    quant: str
    prompt: str
    data: str
    questions: dict[str, int]
    scores: dict[str, _Scores]
    comparison: dict[str, Any] | None
    objective: float | None
    steps: int
    cost: Cost | None
    provenance: dict[str, str]
    models: dict[str, ModelSpec] = field(default_factory=dict)
    monitor: str | None = None
    validation: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Evidence:
    pairs: tuple[PairComparison, ...] = ()
    differences: tuple[MeanDifference, ...] = ()


def older_results(value: Any, path: Path, hint: str) -> Results:
    """Results of a folder that holds results.json of version 1, with evidence.json beside it.

    Of the evidence only comparisons are taken: its other figures were defined otherwise.

    Raises:
        RunError: As `cyberlm.evaluation.results.read_results`.
    """
    old = from_json(_Results, value, str(path), hint)
    file = path.with_name(EVIDENCE_FILE)
    evidence = read_json(file, hint)
    compared = {key: evidence.get(key, []) for key in ("pairs", "differences")} if isinstance(evidence, dict) else None
    found = from_json(_Evidence, compared, str(file), hint)
    unchanged = {name: item for name, item in vars(old).items() if name not in ("scores", "comparison")}
    changed = {
        "schema_version": SCHEMA_VERSION,
        "models": old.models or {name: _trained(name, old) for name in old.scores},
        "metrics": {name: {metric.name: metric for metric in _metrics(scores)} for name, scores in old.scores.items()},
        "comparisons": found.pairs,
        "differences": found.differences,
    }
    return Results(**{**unchanged, **changed})


def _trained(name: str, old: _Results) -> ModelSpec:
    """A model of a training run, of which older results say nothing: `base` or `tuned`."""
    kind = "base" if name == "base" else "weights" if old.method == "sft" else "adapter"
    return ModelSpec(old.model, kind, tuned_from=None if name == "base" else "base")


def _metrics(scores: _Scores) -> Iterator[Metric]:
    n, rouge = scores.likelihood.n, scores.rouge
    yield _share("accuracy", "accuracy, likelihood", scores.likelihood)
    if scores.generation is None:
        note = f"no accuracy by generation: {scores.generation_note}"
        yield Metric("accuracy_generation", None, note=note, label="accuracy, generation")
    else:
        yield _share("accuracy_generation", "accuracy, generation", scores.generation)
    for name, rate in (("no_option_named", scores.parse_fail_rate), ("cut_off", scores.truncated_rate)):
        if rate is not None:
            yield Metric(name, rate, n=n, format_spec=".1%")
    if rouge is not None:
        for name, value in (("rouge1", rouge.rouge1), ("rouge2", rouge.rouge2), ("rougeL", rouge.rougeL)):
            note = rouge.note if name == "rouge2" else ""
            yield Metric(name, value, n=rouge.n, note=note, label=f"ROUGE-{name[-1]}")
    yield Metric("gold_nll", scores.gold_nll, n=n, label="gold answer NLL, nats/token")
    for letter, share in scores.per_letter.items():
        yield Metric(f"recall_{letter}", share.value, n=share.n, format_spec=".1%", place="detail")


def _share(name: str, label: str, share: _Share) -> Metric:
    return Metric(name, share.value, (share.ci_lo, share.ci_hi), share.n, "", label, ".1%")

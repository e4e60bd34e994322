"""results.json and evidence.json of schema version 1, read as those of the current version."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import Results
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import read_json
from cyberlm.runtime.validation import from_json

EVIDENCE_FILE = "evidence.json"


def results_of_v1(value: Any, path: Path, hint: str) -> Results:
    """Results of a folder that holds results.json of version 1, with evidence.json beside it.

    Of the evidence only comparisons are taken: its other figures were defined otherwise. Raises as `read_results`.
    """
    evidence = read_json(path.with_name(EVIDENCE_FILE), hint)
    try:
        scores = value["scores"]
        current = {
            **{name: item for name, item in value.items() if name not in ("scores", "comparison")},
            "models": value.get("models") or {name: _trained(name, value) for name in scores},
            "metrics": {name: {metric.name: vars(metric) for metric in _metrics(of)} for name, of in scores.items()},
            "comparisons": evidence.get("pairs", []),
            "differences": evidence.get("differences", []),
        }
    except (AttributeError, KeyError, TypeError) as error:
        problem = Problem(f"it is not as version 1 was written ({type(error).__name__}: {error})")
        raise RunError(f"{path} or {EVIDENCE_FILE} cannot be read.", [problem], hint) from error
    return from_json(Results, current, str(path), hint)


def _trained(name: str, old: dict[str, Any]) -> dict[str, Any]:
    """A model of a training run, of which older results say nothing: `base` or `tuned`."""
    kind = "base" if name == "base" else "weights" if old["method"] == "sft" else "adapter"
    return {"source": old["model"], "kind": kind, "tuned_from": None if name == "base" else "base"}


def _metrics(scores: dict[str, Any]) -> Iterator[Metric]:
    n, rouge = scores["likelihood"]["n"], scores["rouge"]
    yield _share("accuracy", "accuracy, likelihood", scores["likelihood"])
    if scores["generation"] is None:
        note = f"no accuracy by generation: {scores['generation_note']}"
        yield Metric("accuracy_generation", None, note=note, label="accuracy, generation")
    else:
        yield _share("accuracy_generation", "accuracy, generation", scores["generation"])
    for name, older_name in (("no_option_named", "parse_fail_rate"), ("cut_off", "truncated_rate")):
        if scores.get(older_name) is not None:
            yield Metric(name, scores[older_name], n=n, format_spec=".1%")
    if rouge is not None:
        for name in ("rouge1", "rouge2", "rougeL"):
            note = rouge.get("note", "") if name == "rouge2" else ""
            yield Metric(name, rouge[name], n=rouge["n"], note=note, label=f"ROUGE-{name[-1]}")
    yield Metric("gold_nll", scores["gold_nll"], n=n, label="gold answer NLL, nats/token")
    for letter, share in scores["per_letter"].items():
        yield Metric(f"recall_{letter}", share["value"], n=share["n"], format_spec=".1%", place="detail")


def _share(name: str, label: str, share: dict[str, Any]) -> Metric:
    return Metric(name, share["value"], (share["ci_lo"], share["ci_hi"]), share["n"], "", label, ".1%")

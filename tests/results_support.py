"""Results of a finished run for tests of what is written, read and printed."""

from dataclasses import replace
from typing import Any

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import SCHEMA_VERSION, Cost, ModelSpec, PairComparison, Results


def named(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def share(name: str, right: int, n: int, low: float, high: float, label: str = "", note: str = "") -> Metric:
    return Metric(name, right / n, (low, high), n, note, label, ".1%")


BASE = named(
    share("accuracy", 56, 150, 0.3, 0.453, "accuracy, likelihood"),
    share("accuracy_generation", 36, 150, 0.1786, 0.3143, "accuracy, generation"),
    Metric("rouge2", None, n=150, note="ROUGE-2 is undefined", label="ROUGE-2"),
    Metric("gold_nll", 4.51234, n=150, label="gold answer NLL, nats/token"),
    Metric("skill", 0.1234, (0.05, 0.2), 150, "", "skill above it", ".2f", "evidence"),
    Metric("habit", 0.9, n=150, note="The model answers A to 90.0% of the questions", place="note"),
    Metric("temperature", 2.0, note="fitted", place="detail"),
)
TUNED = BASE | named(
    share("accuracy", 60, 150, 0.325, 0.4799, "accuracy, likelihood"),
    Metric("gold_nll", 2.5, n=150, label="gold answer NLL, nats/token"),
    Metric("habit", 0.8, n=150, note="The model answers B to 80.0% of the questions", place="note"),
    replace(share("accuracy_hard", 30, 60, 0.4, 0.6, "accuracy where it is wrong"), place="evidence"),
)
PAIR = PairComparison(
    first="base",
    second="tuned",
    n=150,
    difference=0.0267,
    ci_lo=-0.012,
    ci_hi=0.065,
    only_first_right=2,
    only_second_right=6,
    p_value=0.2890625,
    p_holm=0.18,
    detectable=0.06,
    lost=("q:1", "q:2"),
    gained=("q:3", "q:4", "q:5", "q:6", "q:7", "q:8"),
    p_mid=0.18,
    family="each tuned model against its base",
    first_right=56,
    second_right=60,
)
COST = Cost(
    trainable_parameters=4_884_480,
    total_parameters=139_399_488,
    seconds={"load": 6.1, "train": 120.3, "score base": 3700.0},
    processed_tokens=22_000,
    nonpadding_tokens=20_000,
    label_tokens=1_000,
    nonpadding_tokens_per_second=166.25,
    computed_tokens_per_second=183.25,
    peak_host_bytes=3 * 2**29,
    peak_device_bytes=None,
    adapter_bytes=5 * 2**20,
)


def results(**changes: Any) -> Results:
    """Of a training run, with a base and a tuned model."""
    base = ModelSpec("smollm2_135m", "base", "hub/id", "nf4", "0f", None, "2d")
    run = Results(
        schema_version=SCHEMA_VERSION,
        kind="train",
        model="smollm2_135m",
        method="qlora",
        quant="nf4",
        prompt="text",
        data="sample",
        questions={"train": 320, "validation": 32, "test": 150},
        models={"base": base, "tuned": replace(base, kind="adapter", adapter="1e", tuned_from="base")},
        metrics={"base": BASE, "tuned": TUNED},
        comparisons=(PAIR,),
        differences=(),
        objective=0.5,
        steps=40,
        cost=COST,
        provenance={"seed": "0", "command": "python train.py model.name='é'"},
        monitor="option_nll",
        validation={"option_nll": 0.5, "accuracy": 0.25},
    )
    return replace(run, **changes)

"""The model card beside an adapter: its model, data, scores, cost and licence."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.records import Results
from cyberlm.evaluation.verdict import verdict

LIBRARIES = {"adapter_config.json": "peft", "config.json": "transformers", "*.gguf": "gguf", "*": "cyberlm"}
"""Libraries that load a folder, by the files in it; the first that fits."""


def write_card(folder: Path, config: TrainConfig, base: str, results: Results, more: Sequence[str] = ()) -> None:
    """Writes README.md into an adapter's (or fully tuned model's) folder, `more` lines about an export included."""
    method = {**(asdict(config.method.lora) if config.method.lora else {}), **config.method.settings}
    settings = [
        f"- method: {results.method}, base weights {results.quant}",
        *(f"- {name}: {value}" for name, value in method.items()),
        f"- learning rate {config.optim.learning_rate:g} ({config.optim.schedule.name})",
        f"- {results.steps} optimizer steps",
        f"- seed {config.seed}",
    ]
    task = config.task["_target_"].rpartition(".")[2]
    tag = re.sub(r"(?<!^)(?=[A-Z])", "-", task).lower()  # MultipleChoice: multiple-choice
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {next(name for file, name in LIBRARIES.items() if list(folder.glob(file)))}",
        f"tags: [cyberlm, cybersecurity, {tag}]",
        "---",
        f"# {results.model} tuned on {results.data}",
        "",
        f"Base model: `{base}`, licence: {config.model.licence}, which holds for what is tuned from it too.",
        "",
        "## Training",
        *settings,
        f"- questions: {', '.join(f'{name} {count}' for name, count in results.questions.items())}",
        "",
        "## Results on the test questions",
        *_table(results),
    ]
    sentences = verdict(results.comparisons, results.differences)
    lines += ["", *sentences] if sentences else []
    if results.cost is not None:
        cost = results.cost
        lines += [
            "",
            "## Cost",
            f"- trained {cost.trainable_parameters:,} of {cost.total_parameters:,} parameters",
            f"- {sum(cost.seconds.values()):.0f} s in all, {cost.nonpadding_tokens:,} non-padding tokens trained on",
        ]
    lines += more
    lines += ["", "## Provenance", *(f"- {name}: `{value}`" for name, value in results.provenance.items())]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(results: Results) -> list[str]:
    """A row for each model, a column for each headline metric."""
    every = [metric for metrics in results.metrics.values() for metric in metrics.values()]
    shown = {metric.name: metric.label or metric.name for metric in every if metric.place == "headline"}
    lines = [f"| model | {' | '.join(shown.values())} |", f"|---{'|---' * len(shown)}|"]
    for model, metrics in results.metrics.items():
        lines.append(f"| {model} | {' | '.join(_cell(metrics.get(name)) for name in shown)} |")
    return lines


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    if metric.interval is None:
        return f"{metric.value:.4f}"
    low, high = metric.interval
    return f"{metric.value:.4f} (95% {low:.3f} to {high:.3f}, n = {metric.n})"

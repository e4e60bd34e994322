"""The model card beside an adapter: what was trained on what, what it scored, what it cost, under which licence."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.records import ModelScores, Proportion, Results

LIBRARIES = {"adapter_config.json": "peft", "config.json": "transformers", "*.gguf": "gguf", "*": "cyberlm"}
"""Libraries that load a folder, by the files in it; the first that fits."""


def write_card(
    folder: Path,
    config: TrainConfig,
    base: str,
    results: Results,
    more: Sequence[str] = (),
) -> None:
    """Writes README.md into an adapter's (or fully tuned model's) folder.

    Args:
        more: Lines about an export, before the provenance.
    """
    method = {**(asdict(config.method.lora) if config.method.lora else {}), **config.method.settings}
    settings = [
        f"- method: {results.method}, base weights {results.quant}",
        *(f"- {name}: {value}" for name, value in method.items()),
        f"- learning rate {config.optim.learning_rate:g} ({config.optim.schedule.name})",
        f"- {results.steps} optimizer steps",
        f"- seed {config.seed}",
    ]
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {next(name for file, name in LIBRARIES.items() if list(folder.glob(file)))}",
        "tags: [cyberlm, cybersecurity, multiple-choice]",
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
        "| model | accuracy by likelihood | by generation | ROUGE-1 | ROUGE-2 | ROUGE-L |",
        "|---|---|---|---|---|---|",
        *(_row(name, scores) for name, scores in results.scores.items()),
    ]
    if results.comparison is not None:
        lines += ["", *results.comparison.sentences()]
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


def _row(name: str, scores: ModelScores) -> str:
    rouge = scores.rouge
    cells = [name, _share(scores.likelihood), _share(scores.generation)]
    for value in (rouge.rouge1, rouge.rouge2, rouge.rougeL) if rouge else (None, None, None):
        cells.append("-" if value is None else f"{value:.4f}")
    return f"| {' | '.join(cells)} |"


def _share(share: Proportion | None) -> str:
    if share is None:
        return "-"
    return f"{share.value:.4f} (95% {share.ci_lo:.3f} to {share.ci_hi:.3f}, n = {share.n})"

"""A study with answers made up, for tests of what is said, drawn and written of one."""

import functools

import numpy as np

from cyberlm.evaluation.study import SCHEMA_VERSION, Curve, Study, StudyCost, StudyJob, StudyRow, TunedRate
from cyberlm.evaluation.study_analysis import Answers, analyse_all, figures_of
from cyberlm.evaluation.study_words import baseline_sentence, findings, found_power

QUESTIONS, SEEDS = 400, (1, 2, 3)
COST = StudyCost(4_884_480, 139_399_488, 3 * 2**30, "host", 250.0, 420.0, 812.4, 640.2, 19 * 2**20)
SHARES = {
    "base": (0.15, 0.45),
    "base nf4": (0.14, 0.43),
    "sft": (0.32, 0.96),
    "lora": (0.31, 0.95),
    "qlora": (0.24, 0.9),
}
"""Share right by generation, and share of completions that name an option, by row."""


def answers() -> list[Answers]:
    """Questions of unlike difficulty, the same for all rows; each run with its own noise."""
    rng = np.random.default_rng(0)
    hard = rng.random(QUESTIONS)
    rows = []
    for name, (right, named) in SHARES.items():
        base = name.startswith("base")
        shape = (1 if base else len(SEEDS), QUESTIONS)
        hits = (0.8 * hard + 0.2 * rng.random(shape) < right).astype(float)
        names = np.maximum(hits, rng.random(shape) < named)
        by_outcome = {
            "likelihood": (rng.random(shape) < 0.4).astype(float),
            "generation": hits,
            "option_named": names,
            **dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.2 + 0.5 * hits),
            **dict.fromkeys(("gold_nll", "option_nll"), 2.5 - hits),
        }
        rows.append(
            Answers(name, "base" if base else "method", "nf4" if "q" in name or "nf4" in name else "none", by_outcome)
        )
    return rows


@functools.cache
def made_up_study() -> Study:
    """Three methods with three seeds each on 400 questions; decided by generation."""
    rows, clusters = answers(), np.arange(QUESTIONS)
    analyses = analyse_all(rows, "sft", clusters, 0.02)
    main = analyses["generation"]
    table = tuple(
        StudyRow(
            *(row.name, row.kind, row.quant, None if row.kind == "base" else 2e-4, len(row.by_outcome["generation"])),
            figures_of(row.by_outcome, clusters),
            None if row.kind == "base" else COST,
            0.8429 if row.name == "qlora" else None,
        )
        for row in rows
    )
    methods = [row for row in rows if row.kind == "method"]
    floors = {"majority letter": 0.26, "longest option": 0.395, "options only": 0.38}
    pairs = tuple(pair for found in analyses.values() for pair in found.comparisons)
    return Study(
        schema_version=SCHEMA_VERSION,
        name="paper",
        state="finished",
        command="python train.py study=paper -m",
        model="smollm2_135m",
        data="cybermetric 2000",
        prompt="text",
        outcome="generation",
        margin=0.02,
        reference="sft",
        seeds=SEEDS,
        questions={"train": 480, "validation": 64, "test": QUESTIONS},
        clusters=QUESTIONS,
        split="0" * 64,
        tuning=tuple(
            TunedRate("lora", rate, nll, 0.4, rate == 5e-4, f"tune/lora_{rate:g}")
            for rate, nll in ((2e-4, 1.31), (5e-4, 1.25), (1e-3, 1.4))
        ),
        rows=table,
        comparisons=pairs,
        claims=main.claims,
        supported_margin=main.supported_margin,
        findings=(*findings(table, pairs, main.claims, "generation"), *baseline_sentence(table, floors, "generation")),
        power=tuple(found_power(main, 0.02, len(SEEDS))),
        floors=floors,
        notes=(),
        jobs=tuple(
            StudyJob(
                *(f"{row.name}_seed{seed}", "confirm", row.name, seed, 2e-4, "finished", "", f"{row.name}_seed{seed}"),
                {name: float(values[place].mean()) for name, values in row.by_outcome.items()},
                *(240.0 + 10 * seed, 400.0 + 10 * seed, (3 if row.name != "sft" else 5) * 2**30),
            )
            for row in methods
            for place, seed in enumerate(SEEDS)
        ),
        curves=tuple(
            Curve(
                row.name,
                seed,
                (20, 40, 60),
                (1.4 - 0.01 * seed, 1.3, 1.25 + 0.01 * seed),
                (0.3, 0.35, 0.36 + 0.01 * seed),
            )
            for row in methods
            for seed in SEEDS
        ),
        provenance={"weights": "w" * 16, "split": "0" * 64, "test_set_opened": "2026-01-01T00:00:00Z"},
    )

"""Figures of a run in what is printed, at 80 columns and elsewhere than on a terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from results_support import BASE, COST, PAIR, TUNED, results
from rich.console import Console

from cyberlm.evaluation import report
from cyberlm.runs.reporting import flat_figures
from cyberlm.runtime import progress

FILES = Path("outputs/2026-01-01/a_folder_with_a_rather_long_name_that_must_stay_in_one_piece_to_be_copied[1]")


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    recording = Console(
        soft_wrap=True, width=80, file=io.StringIO(), record=True, force_terminal=request.param, color_system=None
    )
    monkeypatch.setattr(progress, "console", recording)
    return recording


def row(text: str, label: str) -> list[str]:
    """Words of the line that starts with `label`, after it."""
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def test_every_figure_is_printed(console: Console) -> None:
    report.print_results(results(), FILES)
    text = console.export_text()
    assert "smollm2_135m, method qlora, quant nf4, prompt text, data sample" in text
    assert "320 train, 32 validation, 150 test" in text
    assert text.index("base") < text.index("tuned")
    shown = {
        "accuracy, likelihood": "37.3% 40.0%",
        "95% interval": "30.0% to 45.3% 32.5% to 48.0%",
        "questions": "56 of 150 60 of 150",
        "accuracy, generation": "24.0% 24.0%",
        "ROUGE-2": "- -",
        "gold answer NLL, nats/token": "4.5123 2.5000",
        "skill above it": "0.12 (0.05, 0.20) 0.12 (0.05, 0.20)",
        "accuracy where it is wrong": "- 50.0% (40-60%)",
        "trainable parameters": "4,884,480 (3.504%)",
        "total parameters": "139,399,488",
        "peak memory, host": "1.50 GiB",
        "peak memory, GPU": "-",
        "wall time, train": "2:00",
        "wall time, score base": "1:01:40",
        "effective tokens/s in training": "166.2",
        "computed tokens/s in training": "183.2",
        "optimizer steps": "40",
        "size of what is saved": "5.0 MiB",
    }
    assert {label: " ".join(row(text, label)) for label in shown} == shown
    assert row(text[text.index("accuracy where it is wrong") :], "questions") == ["-", "30", "of", "60"]
    assert "temperature" not in text
    words = " ".join(text.split())
    assert "Note: ROUGE-2 is undefined." in words
    assert "Tuned against base: +2.7 points of accuracy by likelihood (95% -1.2 to +6.5)" in words
    assert "base: The model answers A to 90.0% of the questions. tuned: The model answers B to 80.0%" in words
    assert "would be found 80 times in 100 from 6.0 points on." in words
    assert row(text[text.index("tuned minus base") :], "accuracy, likelihood")[:1] == ["+2.7"]
    assert f"Files: {FILES}" in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Files"))


def test_a_summary_is_eight_lines(console: Console, tmp_path: Path) -> None:
    report.print_summary(results(), tmp_path)
    assert [line.strip() for line in console.export_text(clear=False).splitlines()][1:] == [
        "smollm2_135m, qlora, sample: 320 train, 32 validation, 150 test questions",
        "base: accuracy, likelihood 37.3% (30-45%), accuracy, generation 24.0% (18-31%)",
        "tuned: accuracy, likelihood 40.0% (32-48%), accuracy, generation 24.0% (18-31%)",
        "Difference: +2.7 points by likelihood (95% -1.2 to +6.5), p = 0.18",
        "No significant difference: 6 gained, 2 lost",
        "Cost: 1:03:46, peak 1.50 GiB; 4,884,480 parameters trained, 5.0 MiB saved",
        "All tables, 3 notes: results.json, or report=full",
        f"Files: {tmp_path}",
    ]
    assert max(map(len, console.export_text().splitlines()[:-1])) <= 80
    (tmp_path / "report.html").touch()
    report.print_summary(results(cost=None), tmp_path)
    assert "3 notes: report.html, results.json, or" in console.export_text()


def test_a_summary_of_many_models_is_as_short(console: Console) -> None:
    names = [f"model_{k}" for k in range(6)]
    pairs = [
        replace(PAIR, first="model_0", second=name, p_holm=p)
        for name, p in zip(names[1:], (0.01, 1, 1, 1, 0.04), strict=True)
    ]
    report.print_summary(results(metrics=dict.fromkeys(names, TUNED), comparisons=tuple(pairs), cost=None), FILES)
    lines = [line.strip() for line in console.export_text().splitlines()][1:]
    assert [line.split(":")[0] for line in lines[1:5]] == [*names[:3], "and 3 more models"]
    assert lines[5] == "Differences by likelihood: 2 of 5 significant (Holm, 5%)" and len(lines) == 8


@pytest.mark.parametrize(("outcome", "suffix"), [("generation", "_generation"), ("likelihood", "")])
def test_loggers_get_every_metric_and_the_accuracy_that_is_compared(outcome: str, suffix: str) -> None:
    named_too = replace(PAIR, outcome="option_named")
    logged = flat_figures(results(comparisons=(replace(PAIR, outcome=outcome), named_too)))
    every = {f"test/{model}/{name}" for model, of in (("base", BASE), ("tuned", TUNED)) for name in of}
    assert every - set(logged) == {"test/base/rouge2", "test/tuned/rouge2"}  # undefined
    assert logged[f"test/difference{suffix}"] == 0.0267 and logged[f"test/p_mid{suffix}"] == 0.18
    assert sum(name.startswith("test/difference") for name in logged) == 1
    assert logged["val/best_option_nll"] == 0.5 and logged["cost/seconds/train"] == 120.3


def test_a_whole_model_is_saved_on_a_gpu(console: Console) -> None:
    cost = replace(COST, peak_device_bytes=17 * 2**30, adapter_bytes=900, predicted_peak_bytes=2**30)
    report.print_results(results(method="sft", cost=cost), Path("outputs/x"))
    text = console.export_text()
    assert row(text, "size of what is saved") == ["0.9", "KiB"]
    assert row(text, "peak memory, GPU") == ["17.00", "GiB", "(planned", "1.00", "GiB)"]


def test_leaderboard_fits_and_hides_nothing(console: Console) -> None:
    best = {"rank": "1", "job": "3", "state": "finished", "val accuracy": "0.4100", "method.lora.rank": "8"}
    best |= {"optim.learning_rate": "0.0002", "test accuracy": "0.4000", "trainable": "4884480", "reason": ""}
    failed = {"rank": "2", "job": "0", "state": "failed", "reason": "RuntimeError: tried to allocate [20 MiB]"}
    report.print_leaderboard([{**best, "resumed": ""}, failed])
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    words = " ".join(text.split())
    assert all(shown in words for shown in (*best, *best.values(), *failed.values()))
    assert "resumed" not in text  # empty in every row
    assert row(text, "rank")[:2] == ["job", "state"]
    report.print_leaderboard([{"rank": "1", "val accuracy": "0.5"}, {"rank": "2", "val accuracy": "0.4"}])
    assert console.export_text().count("rank") == 1  # narrow: one table

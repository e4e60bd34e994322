"""The figures of a run stand in what is printed, at 80 columns and elsewhere than on a terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cyberlm.evaluation import report
from cyberlm.evaluation.records import Comparison, Cost, ModelScores, Proportion, Results, RougeScores
from cyberlm.runs.reporting import flat_figures
from cyberlm.runtime import progress

BASE = ModelScores(
    likelihood=Proportion(0.373333, 56, 150, 0.3000, 0.4530),
    per_letter={},
    gold_nll=4.51234,
    generation=Proportion(0.24, 36, 150, 0.1786, 0.3143),
    generation_note="",
    parse_fail_rate=0.28,
    rouge=RougeScores(0.2512, 0.1004, 0.2487, 150),
)
TUNED = replace(BASE, likelihood=Proportion(0.4, 60, 150, 0.3250, 0.4799), gold_nll=2.5)
RESULTS = Results(
    schema_version=1,
    kind="train",
    model="smollm2_135m",
    method="qlora",
    quant="nf4",
    prompt="text",
    data="sample",
    questions={"train": 320, "validation": 32, "test": 150},
    scores={"base": BASE, "tuned": TUNED},
    comparison=Comparison(0.0267, 2, 6, 0.2890625, "no significant difference (p = 0.289): 6 questions gained, 2 lost"),
    objective=0.5,
    steps=40,
    cost=Cost(
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
    ),
    provenance={},
)
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


def test_ties_are_told_where_there_are_any(console: Console) -> None:
    report.print_results(replace(RESULTS, scores={"base": replace(BASE, ties=7), "tuned": TUNED}), FILES)
    text = " ".join(console.export_text().split())
    assert text.count("equally likely") == 1
    assert "Note: base finds two or more options equally likely in 7 of 150 questions;" in text


def test_every_figure_is_printed(console: Console) -> None:
    report.print_results(RESULTS, FILES)
    text = console.export_text()
    assert "smollm2_135m, method qlora, quant nf4, prompt text, data sample" in text
    assert "320 train, 32 validation, 150 test" in text
    assert text.index("base") < text.index("tuned")
    assert row(text, "accuracy, likelihood") == ["37.3%", "40.0%"]
    assert row(text, "95% interval") == ["30.0%", "to", "45.3%", "32.5%", "to", "48.0%"]
    assert row(text, "right") == ["56", "of", "150", "60", "of", "150"]
    assert row(text, "accuracy, generation") == ["24.0%", "24.0%"]
    assert row(text, "no option named") == ["28.0%", "(21-36%)"] * 2
    assert row(text, "ROUGE-1") == ["0.2512", "0.2512"]
    assert row(text, "ROUGE-2") == ["0.1004", "0.1004"]
    assert row(text, "ROUGE-L") == ["0.2487", "0.2487"]
    assert row(text, "gold answer NLL, nats/token") == ["4.5123", "2.5000"]
    assert row(text, "questions") == ["150", "150"]
    assert (
        "Tuned against base: +2.7 points of accuracy by likelihood, no significant difference (p = 0.289): 6 questions "
        "gained, 2 lost." in " ".join(text.split())
    )
    assert row(text, "trainable parameters") == ["4,884,480", "(3.504%)"]
    assert row(text, "total parameters") == ["139,399,488"]
    assert row(text, "peak memory, host") == ["1.50", "GiB"]
    assert row(text, "peak memory, GPU") == ["-"]
    assert row(text, "wall time, train") == ["2:00"]
    assert row(text, "wall time, score base") == ["1:01:40"]
    assert row(text, "effective tokens/s in training") == ["166.2"]
    assert row(text, "computed tokens/s in training") == ["183.2"]
    assert row(text, "optimizer steps") == ["40"]
    assert row(text, "size of what is saved") == ["5.0", "MiB"]
    assert f"Files: {FILES}" in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Files"))


def test_completions_cut_off_have_a_row_of_their_own(console: Console) -> None:
    scores = replace(BASE, parse_fail_rate=0.02, truncated_rate=0.26)
    report.print_results(replace(RESULTS, scores={"base": scores, "tuned": BASE}), FILES)
    text = console.export_text()
    assert row(text, "no option named") == ["2.0%", "(1-6%)", "28.0%", "(21-36%)"]
    assert row(text, "cut off, none named") == ["26.0%", "(20-34%)", "-"]


def test_what_moved_and_every_difference_are_printed(console: Console) -> None:
    verdict = "significantly better (p = 0.003, exact p = 0.005): 23 questions gained, 7 lost"
    moved = "Format +6.7 points: completions that name no option go from 28.0% to 2.0% (p < 0.001)"
    compared = Comparison(0.1067, 7, 23, 0.00522, verdict, "generation", 0.0374, 0.1808, 0.00333, moved)
    columns = {"": ["accuracy, generation", "ROUGE-L"], "change": ["+10.7", "+0.0500"], "p": ["0.003", "< 0.001"]}
    report.print_results(
        replace(RESULTS, comparison=compared), Path("outputs/x"), differences=[("tuned minus base", columns)]
    )
    text = console.export_text()
    words = " ".join(text.split())
    assert f"+10.7 points of accuracy by generation (95% +3.7 to +18.1), {verdict}. {moved}." in words
    assert row(text[text.index("tuned minus base") :], "ROUGE-L") == ["+0.0500", "<", "0.001"]
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(("metric", "suffix"), [("generation", "_generation"), ("likelihood", "")])
def test_loggers_get_the_difference_under_the_name_of_its_accuracy(metric: str, suffix: str) -> None:
    """A rise by generation beside two accuracies by likelihood that fall would contradict them."""
    results = replace(RESULTS, comparison=replace(RESULTS.comparison, metric=metric, p_mid=0.03))
    logged = flat_figures(results)
    assert logged[f"test/difference{suffix}"] == results.comparison.difference
    assert f"test/tuned/accuracy{suffix}" in logged and logged[f"test/p_mid{suffix}"] == 0.03
    assert sum(name.startswith("test/difference") for name in logged) == 1


def test_what_is_missing_is_explained(console: Console) -> None:
    note = "the options were not shown, so a free answer cannot be matched to one of them"
    rouge = RougeScores(0.25, None, 0.25, 150, "ROUGE-2 is undefined: every reference has fewer than two tokens")
    scores = replace(BASE, generation=None, generation_note=note, parse_fail_rate=None, rouge=rouge)
    report.print_results(
        replace(RESULTS, scores={"base": scores, "tuned": scores}, comparison=None, cost=None), Path("outputs/x")
    )
    text = console.export_text()
    assert row(text, "accuracy, generation") == ["-", "-"]
    assert row(text, "ROUGE-2") == ["undefined", "undefined"]
    words = " ".join(text.split())
    assert words.count(f"Note: no accuracy by generation: {note}.") == 1
    assert words.count("Note: ROUGE-2 is undefined: every reference has fewer than two tokens.") == 1
    assert "no option named" not in text
    assert "Cost" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_one_model_without_generated_answers(console: Console) -> None:
    scores = replace(
        BASE, generation=None, generation_note="no answers were generated", parse_fail_rate=None, rouge=None
    )
    report.print_results(replace(RESULTS, scores={"base": scores}, comparison=None), Path("outputs/x"))
    text = console.export_text()
    assert row(text, "accuracy, likelihood") == ["37.3%"]
    assert row(text, "ROUGE-L") == ["-"]
    assert "tuned" not in text


def test_full_fine_tuning_saves_a_model_on_a_gpu(console: Console) -> None:
    assert RESULTS.cost is not None
    cost = replace(RESULTS.cost, peak_device_bytes=17 * 2**30, adapter_bytes=900)
    report.print_results(replace(RESULTS, method="sft", cost=cost), Path("outputs/x"))
    text = console.export_text()
    assert row(text, "size of what is saved") == ["0.9", "KiB"]
    assert row(text, "peak memory, GPU") == ["17.00", "GiB"]


def test_leaderboard_fits_and_hides_nothing(console: Console) -> None:
    best = {
        "rank": "1",
        "job": "3",
        "state": "finished",
        "val accuracy": "0.4100",
        "method.lora.rank": "8",
        "optim.learning_rate": "0.0002",
        "test accuracy": "0.4000",
        "trainable": "4884480",
        "resumed": "",
        "reason": "",
    }
    failed = {"rank": "2", "job": "0", "state": "failed", "reason": "RuntimeError: tried to allocate [20 MiB]"}
    report.print_leaderboard([best, failed])
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    words = " ".join(text.split())
    for shown in [*(key for key in best if key != "resumed"), *best.values(), *failed.values()]:
        assert shown in words
    assert "resumed" not in text  # empty in every row
    assert row(text, "rank")[:2] == ["job", "state"]


def test_narrow_leaderboard_is_one_table(console: Console) -> None:
    report.print_leaderboard([{"rank": "1", "val accuracy": "0.5"}, {"rank": "2", "val accuracy": "0.4"}])
    assert console.export_text().count("rank") == 1

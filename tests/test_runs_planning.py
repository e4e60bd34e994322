"""plan=true from the command line, the prediction in a run's results, and the screen of a run out of memory."""

import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import config_of, sample_questions, tiny

from cyberlm.evaluation.results import read_results
from cyberlm.planning.activations import MicroBatch
from cyberlm.runs.planning import _micro_batches
from cyberlm.runs.train import train
from cyberlm.training.fit import _data_of

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def typed(folder: Path, *overrides: str, address_space: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python train.py` in a process of its own, with at most so many bytes of address space."""

    def limit() -> None:
        if address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    threads = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "COLUMNS": "100"}
    threads["MALLOC_MMAP_THRESHOLD_"] = "262144"  # a limit on addresses counts what the allocator has not given back
    environment = {**os.environ, **threads, "CYBERLM_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train.py"), *overrides],
        cwd=folder,
        env=environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


def test_plan_loads_nothing_and_leaves_no_folder(tmp_path: Path) -> None:
    done = typed(tmp_path, "plan=true", "model=tiny_random", "prompt=letter", "data.max_train=16")
    assert done.returncode == 0, done.stderr
    for words in ("Parameters: ", "activations", "optimizer states", "keys and values", "host memory", ": fits."):
        assert words in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_model_out_of_reach_is_planned_with_its_published_sizes(tmp_path: Path) -> None:
    checkpointing = "trainer.gradient_checkpointing=true"  # the preset does without: for questions of 300 tokens
    done = typed(tmp_path, "plan=true", "experiment=llama3_qlora", checkpointing, "plan.device_memory_gib=24")
    assert done.returncode == 0, done.stderr
    assert "published sizes" in done.stdout and "data.max_length=1024" in done.stdout
    assert "Parameters: 8,072,204,288, of them trained 41,943,040" in done.stdout
    assert "GPU 24.00 GiB: fits." in done.stdout


def test_a_plan_that_does_not_fit_names_one_that_does(tmp_path: Path) -> None:
    done = typed(tmp_path, "plan=true", "experiment=llama3_sft", "plan.device_memory_gib=24")
    assert done.returncode == 0, done.stderr
    assert "GPU 24.00 GiB: does not fit." in done.stdout
    command = re.search(r"This fits: python train.py (.*)", done.stdout)
    assert command is not None
    again = typed(tmp_path, "plan=true", *shlex.split(command.group(1)), "plan.device_memory_gib=24")
    assert "GPU 24.00 GiB: fits." in again.stdout, again.stdout + again.stderr


def test_a_model_without_published_sizes_is_an_error(tmp_path: Path) -> None:
    done = typed(tmp_path, "plan=true", "model=smollm2_135m", "model.source=hub")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr and "Traceback" not in done.stderr


def test_wrong_sizes_are_errors(tmp_path: Path) -> None:
    done = typed(tmp_path, "plan=true", "model=tiny_random", "plan.device_memory_gib=0")
    assert done.returncode == 1
    assert "plan.device_memory_gib=0" in done.stderr and "above 0" in done.stderr


def test_a_run_tells_what_was_planned_beside_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    small = ("data.max_train=8", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false")
    train(config_of(*small, "plan.device_memory_gib=0.1"), tmp_path / "run")
    cost = read_results(tmp_path / "run").cost
    assert cost is not None and cost.predicted_peak_bytes is not None and cost.predicted_peak_bytes > 2**28
    shown = capsys.readouterr().out
    assert re.search(r"peak memory, host +[\d.]+ [MG]iB \(planned [\d.]+ [MG]iB\)", shown)
    assert "Warning: memory may not suffice." in shown and "host memory 0.10 GiB: does not fit." in shown


@pytest.mark.parametrize("setting", ["method.lora.dropout=0", "method.lora.dropout=0.1"])
def test_micro_batches_are_those_of_training(setting: str) -> None:
    config = config_of("method=lora", setting, "data.micro_batch_size=5", "trainer.accumulate_grad_batches=3")
    loaded, prompt = tiny(config)
    questions = prompt.encode(sample_questions(32))
    data = _data_of(config, loaded, prompt, {"train": questions, "validation": questions}, share_validation=True)
    batches = data.train_dataloader()
    trained = [MicroBatch(*b.input_ids.shape, b.targets.numel(), len(b.prefix_ids)) for b in batches]
    planned = _micro_batches(config, loaded.causal.config, questions, len(prompt.end_ids))
    assert list(planned)[: len(trained)] == trained
    assert {batch.prefix > 0 for batch in trained} == {setting.endswith("=0")}


WIDE = (
    *("model=tiny_random", "prompt=letter", "method=lora", "logger=none", "callbacks=none"),
    *("model.tiny.hidden_size=128", "model.tiny.intermediate_size=2048", "model.tiny.num_hidden_layers=24"),
    *("data.max_train=32", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false"),
    *("data.micro_batch_size=32", "data.max_batch_tokens=1024", "trainer.max_steps=1"),
)
"""Activations of about 400 MiB a question, and little to compute."""


def test_a_run_out_of_memory_says_what_would_fit_and_that_does(tmp_path: Path) -> None:
    limit = 4 * 2**30
    done = typed(tmp_path, *WIDE, address_space=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The run takes more memory than there is:" in done.stderr
    assert "activations" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 45
    command = re.search(r"type: +python train.py (.*)", done.stderr)
    assert command is not None and "data.micro_batch_size=" in command.group(1)
    again = typed(tmp_path, *shlex.split(command.group(1)), address_space=limit)
    assert again.returncode == 0, again.stdout + again.stderr

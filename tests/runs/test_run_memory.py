"""plan=true, the estimate before a run, and the screen of a run out of memory."""

import re
import resource
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from support import compose, config_of, sample_questions, tiny
from typed import TRAIN, run_python, type_line

from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.evaluation.results import read_results
from cyberlm.runs.memory import RunMemory, explain_out_of_memory, show_plan
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ModelError, OutOfMemory
from cyberlm.training.fit import question_data

SMALL = ("data.max_train=8", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # between libraries


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def typed(folder: Path, *overrides: str, address_space: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python train.py` in a process of its own, with at most so many bytes of address space."""

    def limit() -> None:
        if address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    # a limit on addresses counts what the allocator has not given back
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    return run_python(folder, "-W", "ignore", TRAIN, *overrides, before=limit, COLUMNS="100", **allocator)


def test_a_plan_leaves_no_folder(tmp_path: Path) -> None:
    ended = type_line(tmp_path, "train", "plan=true", "model=tiny_random", "prompt=letter", "data.max_train=16")
    assert ended.code == 0, ended.err
    for words in ("Parameters: ", "activations", "optimizer states", "keys and values", "host memory", ": fits."):
        assert words in ended.out
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def planned(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    show_plan(build_config(compose(*overrides), TrainConfig))
    return capsys.readouterr().out


def test_a_model_out_of_reach_is_planned_with_its_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither its weights nor the GPUs nor the processes are here."""
    line = ("experiment=llama3_qlora", "trainer.gradient_checkpointing=true", "plan.device_memory_gib=24")
    shown = planned(capsys, *line)
    assert "published sizes" in shown and "data.max_length=1024" in shown
    assert "Parameters: 8,072,204,288, of them trained 41,943,040" in shown
    assert "GPU 24.00 GiB: fits." in shown
    for preset in ("llama3_sft", "llama3_70b_qlora"):
        shown = planned(capsys, f"experiment={preset}", "trainer.devices=8", "plan.device_memory_gib=24")
        assert "GiB in each of 8 processes; GPU 24.00 GiB: fits." in shown
    with pytest.raises(ModelError, match="cannot be"):  # it has none
        show_plan(config_of("model=smollm2_135m", "model.source=hub"))


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_plan_that_does_not_fit_names_one_that_does(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = (f"experiment=llama3_{method}", "plan.device_memory_gib=24")
    shown = planned(capsys, *line)
    assert "GPU 24.00 GiB: does not fit." in shown
    smaller = re.search(r"This fits: python train.py (.*)", shown).group(1)
    assert "GPU 24.00 GiB: fits." in planned(capsys, *line, *shlex.split(smaller))


def test_a_run_that_does_not_fit_on_a_host_is_refused_unless_told_that_it_does(tmp_path: Path, capsys) -> None:
    with pytest.raises(OutOfMemory) as caught:
        train(config_of(*SMALL, "plan.device_memory_gib=0.1"), tmp_path / "run")
    told = str(caught.value)
    assert "The run takes more memory than there is:" in told and "host memory 0.10 GiB: does not fit." in told
    assert "activations" in told and re.search(r"To run it all the same, add plan\.device_memory_gib=\d+$", told)
    assert not (tmp_path / "run" / "provenance.json").exists()
    train(config_of(*SMALL, "plan.device_memory_gib=100", "report=full"), tmp_path / "run")
    assert read_results(tmp_path / "run").cost.predicted_peak_bytes > 2**28
    shown = capsys.readouterr().out  # what was estimated beside what it took
    assert re.search(r"peak memory, host +[\d.]+ [MG]iB \(planned [\d.]+ [MG]iB\)", shown)


@pytest.mark.parametrize("setting", ["method.lora.dropout=0", "method.lora.dropout=0.1"])
def test_the_first_micro_batch_is_the_one_that_was_estimated(setting: str) -> None:
    config = config_of("method=lora", setting, "data.micro_batch_size=5", "trainer.accumulate_grad_batches=3")
    loaded, prompt = tiny(config)
    questions = prompt.encode(sample_questions(32))
    encoded = {"train": questions, "validation": questions, "test": questions}
    first, *_ = question_data(config, loaded, prompt, encoded).train_dataloader()
    memory = RunMemory(config, loaded.causal.config, encoded, len(prompt.end_ids), torch.device("cpu"))
    batches = memory.batches(config)
    rows, width = first.input_ids.shape
    assert (batches.rows, batches.width + batches.prefix) == (rows, width + len(first.prefix_ids))
    assert batches.labels == first.targets.numel()
    assert (batches.prefix > 0) == (len(first.prefix_ids) > 0) == setting.endswith("=0")


def test_a_failed_allocation_becomes_a_screen() -> None:
    gpu, host = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")
    for error in (MemoryError(), gpu, host):
        with pytest.raises(OutOfMemory) as caught, explain_out_of_memory(config_of(*SMALL)):
            raise error
        told = str(caught.value)
        assert "The run takes more memory than there is" in told and "activations" in told
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory(config_of(*SMALL)):
        raise RuntimeError("something else")


WIDE = (
    *("model=tiny_random", "prompt=letter", "method=lora", "logger=none", "callbacks=none"),
    *("model.tiny.hidden_size=128", "model.tiny.intermediate_size=2048", "model.tiny.num_hidden_layers=24"),
    *("data.max_train=32", "data.max_validation=8", "data.max_test=8", "evaluation.generate=false"),
    *("data.micro_batch_size=32", "data.max_batch_tokens=1024", "trainer.max_steps=1"),
)
"""Activations of about 400 MiB a question, and little to compute."""


@pytest.mark.slow
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

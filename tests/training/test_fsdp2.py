"""Models sharded over processes (FSDP2), or whole in each (DDP): they train and answer as one; any number resumes."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import sharded_ranks
import torch
import torch.distributed as dist
from forks import run_ranks, type_command
from safetensors.torch import load_file
from sharded_ranks import trained
from support import SHORT, TINY, config_of, evaluation_of
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from transformers import LlamaConfig, LlamaForCausalLM

from cyberlm.evaluation.results import read_predictions
from cyberlm.models.methods.method import load_for_training
from cyberlm.models.tiny import tiny_model, tiny_tokenizer
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ModelError
from cyberlm.runtime.signals import EXIT_STOPPED
from cyberlm.training.callbacks.resuming import RandomState
from cyberlm.training.checkpointing import MANIFEST, damage, resume_point, seal

CHECKPOINTED = "trainer.gradient_checkpointing=true"
DDP = "trainer.strategy=auto"
DROPOUT = ["method=lora", "method.lora.dropout=0.2", DDP, "data.batch_size=16"]
EQUAL = {
    "sft": ["method=sft", CHECKPOINTED, "data.batch_size=16"],
    "sft ddp": ["method=sft", DDP, "data.batch_size=8"],
    "lora ddp": ["method=lora", DDP, "data.batch_size=8"],
    "qlora ddp": ["method=qlora", DDP, "data.batch_size=16"],
    "tied": ["method=sft", "model.tiny.tie_word_embeddings=true", "data.batch_size=8"],
    "lora": ["method=lora", CHECKPOINTED, "data.batch_size=16"],
    "qlora": ["method=qlora", CHECKPOINTED, "data.batch_size=8"],
}
REPLICATED = ("sft", "tied", "qlora")
REPLICAS, OFFLOADED = "trainer.replicas=2", "trainer.cpu_offload=true"
STOPPED_AT = 8
"""Micro-batch of each of two processes, which have 5 an epoch: in the second epoch, after its first optimizer step."""


def train_cases(count: int, folder: Path, cases: dict[str, object], *models: str) -> str:
    """Runs `sharded_ranks.py` in several processes; returns what they said."""
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    codes, said = run_ranks(count, sharded_ranks.main, folder, *models, folder=folder)
    assert codes == [0] * count, said
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    cases: dict[str, object] = {name: (overrides, None, False) for name, overrides in EQUAL.items()}
    cases["bf16"] = ([*EQUAL["sft"], "trainer.precision=bf16-mixed"], None, False)
    cases["stopped"] = (EQUAL["sft"], STOPPED_AT, False)
    cases |= {"dropout": (DROPOUT, None, False), "dropout stopped": (DROPOUT, STOPPED_AT, False)}
    cases |= {f"{name} offloaded": ([*EQUAL[name], OFFLOADED], None, False) for name in ("sft", "qlora")}
    train_cases(2, folder, cases)
    return folder


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that four processes have trained, two for each of two replicas."""
    folder = tmp_path_factory.mktemp("replicas")
    stopped = {"stopped": ([*EQUAL["sft"], REPLICAS], 4, False)}  # of 3 an epoch: after the second one's first step
    train_cases(4, folder, {name: ([*EQUAL[name], REPLICAS], None, False) for name in REPLICATED} | stopped)
    return folder


def losses(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has saved."""
    files = [*folder.glob("model/*.safetensors"), *folder.glob("adapter/*.safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_equal_runs(folder: Path, other: Path, tolerance: float) -> None:
    for name in ("train/loss", "val/nll", "val/option_nll", "val/accuracy"):
        assert losses(folder, name) == pytest.approx(losses(other, name), abs=tolerance, rel=0), name
    found, expected = tensors(folder), tensors(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        torch.testing.assert_close(found[name], tensor, atol=10 * tolerance, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_shards_are_as_one_process(name: str, two: Path, tmp_path: Path) -> None:
    """Bit-equal logits of the base, 4-bit ones too; then losses, validation, tuned weights, tokens and answers."""
    one = tmp_path / "one"
    one.mkdir()
    trained(EQUAL[name], None, False, one)
    logits, expected = (load_file(run / "logits.safetensors")["logits"] for run in (two / name, one))
    assert torch.equal(logits, expected)
    assert_equal_runs(two / name, one, 1e-5)
    assert (two / name / "tokens.json").read_text() == (one / "tokens.json").read_text()
    files = {file.name for folder in ("model", "adapter") for file in (one / folder).glob("*")}
    assert files == {file.name for folder in ("model", "adapter") for file in (two / name / folder).glob("*")}
    answers, plain = (json.loads((run / "answers.json").read_text()) for run in (two / name, one))
    assert [answer["id"] for answer in answers] == [answer["id"] for answer in plain]
    for answer, right in zip(answers, plain, strict=True):
        assert answer["option_logprobs"] == pytest.approx(right["option_logprobs"], abs=2e-3)
        assert (answer["choice"], answer["generated"]) == (right["choice"], right["generated"])


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_are_as_one_process(name: str, replicas: Path, tmp_path: Path) -> None:
    trained(EQUAL[name], None, False, tmp_path)
    assert_equal_runs(replicas / name, tmp_path, 1e-5)


@pytest.mark.slow
def test_one_replica_goes_on_with_the_shards_of_two(replicas: Path, tmp_path: Path) -> None:
    shutil.copytree(replicas / "stopped", tmp_path / "stopped")
    train_cases(2, tmp_path, {"stopped": (EQUAL["sft"], None, True)})
    assert_equal_runs(tmp_path / "stopped", replicas / "sft", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "qlora"])
def test_offloaded_shards_are_the_same_arithmetic(name: str, two: Path) -> None:
    assert_equal_runs(two / f"{name} offloaded", two / name, 0)


def test_shards_are_offloaded() -> None:
    """On a CPU nothing moves: the policy that FSDP2 was given tells."""
    config = config_of(*EQUAL["lora"], "trainer.strategy=fsdp2", OFFLOADED)
    try:
        loaded = load_for_training(config, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    groups = [
        module._get_fsdp_state()._fsdp_param_group for module in loaded.root.modules() if isinstance(module, FSDPModule)
    ]
    assert len(groups) > 2
    assert all(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups)


@pytest.mark.slow
def test_weights_are_gathered_in_bfloat16(two: Path) -> None:
    """The losses are those of float32 but for rounding; what is kept and saved stays float32."""
    assert losses(two / "bf16", "train/loss") == pytest.approx(losses(two / "sft", "train/loss"), rel=0.02)
    assert losses(two / "bf16", "train/loss") != losses(two / "sft", "train/loss")
    assert {tensor.dtype for tensor in tensors(two / "bf16").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("stopped", 1), ("stopped", 2), ("stopped", 3), ("dropout stopped", 2)])
def test_any_number_of_processes_goes_on(name: str, count: int, two: Path, tmp_path: Path) -> None:
    """From what two have left, with the same optimizer steps: bit-identical with two, and said not to be otherwise."""
    whole, overrides = ("sft", EQUAL["sft"]) if name == "stopped" else ("dropout", DROPOUT)
    shutil.copytree(two / name, tmp_path / name)
    assert len(losses(tmp_path / name, "train/loss")) == 4
    said = train_cases(count, tmp_path, {name: (overrides, None, True)})
    assert len(losses(tmp_path / name, "train/loss")) == 6
    assert_equal_runs(tmp_path / name, two / whole, 0 if count == 2 else 1e-5)
    assert (f"The checkpoint is of 2 processes, now there are {count}" in said) == (count != 2)


@pytest.mark.slow
def test_processes_draw_numbers_of_their_own(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = max((two / "dropout" / "checkpoints").glob("step_*.ckpt"))
    state = torch.load(newest, weights_only=True)["callbacks"]["RandomState"]
    first, second = state["by_rank"]
    assert not torch.equal(first["torch"], second["torch"])
    RandomState(0).load_state_dict(state)
    assert "The checkpoint is of 2 processes, now there are 1" in caplog.text


@pytest.mark.slow
def test_torn_shard_is_set_aside(two: Path, tmp_path: Path) -> None:
    """Training goes on from the checkpoint before."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(two / "sft" / "checkpoints", checkpoints)
    shard = checkpoints / "step_000006.ckpt" / "shard-00002-model-00001-of-00001.safetensors"
    torn = bytearray(shard.read_bytes())
    torn[-1] ^= 1
    shard.write_bytes(torn)
    assert damage(shard.parent) == f"its bytes are not those that were written (SHA-256 of {shard.name})"
    assert resume_point(tmp_path) == checkpoints / "step_000005.ckpt"
    assert not shard.parent.exists() and (checkpoints / "step_000006.ckpt.damaged" / shard.name).exists()


def test_one_process_shards_too(tmp_path: Path) -> None:
    try:
        for name, overrides in (("plain", []), ("sharded", ["trainer.strategy=fsdp2"])):
            (tmp_path / name).mkdir()
            trained([*EQUAL["lora"], *overrides], None, False, tmp_path / name)
    finally:
        dist.destroy_process_group()
    assert_equal_runs(tmp_path / "sharded", tmp_path / "plain", 1e-5)


def test_each_file_is_sealed_and_best_weights_come_back_that_were_being_replaced(tmp_path: Path) -> None:
    aside = tmp_path / "checkpoints" / ".best.ckpt-k2x_9.old"
    aside.mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors"):
        (aside / name).write_text(name)
    assert MANIFEST in damage(aside)
    seal(aside)
    assert not damage(aside)
    (aside.parent / ".best.ckpt-new").mkdir()
    assert resume_point(tmp_path) is None
    (best,) = aside.parent.iterdir()
    assert best.name == "best.ckpt" and not damage(best)
    (best / "b.safetensors").unlink()
    assert "b.safetensors" in damage(best)


def test_model_that_cannot_be_read_tensor_by_tensor_is_refused(tmp_path: Path) -> None:
    model = tiny_model(config_of().model.tiny, len(tiny_tokenizer()))
    del model.model.norm.weight
    model.save_pretrained(tmp_path)
    config = config_of("method=lora", "model=local", f"model.path={tmp_path}", "trainer.strategy=fsdp2")
    with pytest.raises(ModelError) as caught:
        load_for_training(config, torch.device("cpu"))
    assert "model.norm.weight" in caught.value.screen() and "trainer.strategy=ddp" in caught.value.screen()


@pytest.mark.slow
def test_runs_are_sharded_from_training_to_evaluation(tmp_path: Path) -> None:
    """A run of two processes goes on as three after a signal; its model is scored by two, base and tuned, as by one."""
    run, kill = tmp_path / "run", "+callbacks.of_the_test"

    def typed(count: int, command: str, name: str, *overrides: str) -> list[int]:
        line = (type_command, command, *overrides, f"hydra.run.dir={tmp_path / name}")
        codes, said = run_ranks(count, *line, folder=tmp_path)
        assert "Traceback" not in said, said
        return codes

    few = "evaluation.max_new_tokens=4"
    small = ("data.max_train=21", "data.max_validation=5", "data.max_test=9", few, "trainer.max_epochs=2")
    given = (*TINY, *SHORT, *small, "method=qlora", "data.micro_batch_size=4", "data.batch_size=8")
    stopped = (f"{kill}._target_=training_support.Kill", f"{kill}.signum=15", f"{kill}.batch=2", f"{kill}.rank=1")
    assert typed(2, "train", "run", *given, *stopped, "trainer.strategy=fsdp2") == [EXIT_STOPPED] * 2
    assert typed(3, "train", "run", f"trainer.resume={run}") == [0] * 3
    train(config_of(*given), tmp_path / "one")
    assert losses(run, "train/loss") == pytest.approx(losses(tmp_path / "one", "train/loss"), abs=1e-5)
    assert typed(2, "evaluate", "two", f"run={run}", few, "trainer.strategy=fsdp2") == [0] * 2
    evaluate(evaluation_of(f"run={run}", few), tmp_path / "alone")
    answers = [read_predictions(folder / "predictions.jsonl") for folder in (run, tmp_path / "two", tmp_path / "alone")]
    for name in ("base", "tuned"):
        for found in answers[:2]:
            for answer, right in zip(found[name], answers[2][name], strict=True):
                assert answer.option_logprobs == pytest.approx(right.option_logprobs, abs=1e-4)
                assert (answer.choice, answer.generated) == (right.choice, right.generated)


MB = 2**20
ALLOWANCE, AT_REST = 112 * MB, 32 * MB
"""For copies of a block on its way, activations, keys and values, and what the heap keeps; between two phases."""


@pytest.mark.slow
def test_no_process_holds_the_base(tmp_path: Path) -> None:
    """Load, scoring, saving and end of two processes: half of the base, one block, and the allowance; not the base."""
    tokenizer = tiny_tokenizer()
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=12,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(shape)
    base = 4 * sum(parameter.numel() for parameter in model.parameters())
    block = 4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    model.bfloat16().save_pretrained(tmp_path / "model", max_shard_size="50MB")
    tokenizer.save_pretrained(tmp_path / "model")
    del model
    shard = "trainer.strategy=fsdp2"
    for name, overrides in (
        ("lora", ["method=lora", shard]),
        ("sft", ["method=sft", shard]),
        ("whole", ["method=lora"]),
    ):
        train_cases(2, tmp_path, {name: (overrides, None, False)}, str(tmp_path / "model"))
        for rank in (0, 1):
            found = json.loads((tmp_path / name / f"memory_{rank}.json").read_text())
            print(name, rank, {phase: f"{size / MB:.0f} MB" for phase, size in found.items()})
            for phase in ("load", "score", "save", "end"):
                small = found[phase] < base / 2 + block + ALLOWANCE
                at_rest = found[f"after {phase}"] < base / 2 + block + AT_REST
                assert small == at_rest == (name != "whole"), (name, rank, phase, found)

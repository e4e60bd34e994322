"""An estimate of memory is what PyTorch, PEFT and bitsandbytes really hold, and what it advises fits."""

from pathlib import Path

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from support import config_of, tiny
from transformers import GPT2Config, MixtralConfig

from cyberlm.config.schema import TrainConfig
from cyberlm.data.batches import AnswerBatch
from cyberlm.models import fast_layers, memory
from cyberlm.models.loaded import count_parameters
from cyberlm.models.loading import read_shape
from cyberlm.models.memory import Batches, ModelSizes, activation_bytes, estimate_memory, measure_model
from cyberlm.models.methods.adapters import skip_input_casts
from cyberlm.runtime.errors import ModelError
from cyberlm.training.losses import hidden_states
from cyberlm.training.optim import build_optimizer

CPU, GPU, GIB = torch.device("cpu"), torch.device("cuda"), 2**30


def sizes_of(config: TrainConfig, device: torch.device = CPU) -> ModelSizes:
    shape = config.model.shape
    known = (
        read_shape(config.model) if shape is None else memory.published_shape(shape, bool(config.model.tied_embeddings))
    )
    return measure_model(known, config, device)


def test_parameters_are_those_that_were_published() -> None:
    published = {
        "llama3_8b": 8_030_261_248,
        "llama3_70b_instruct": 70_553_706_496,
        "llama32_1b_instruct": 1_235_814_400,
        "llama32_3b_instruct": 3_212_749_824,
        "mistral_7b_instruct": 7_248_023_552,
        "phi3_mini_instruct": 3_821_079_552,
        "qwen3_4b_instruct": 4_022_468_096 - 36 * 2 * 128,  # norms of queries and keys, which Llama has not
        "gemma3_1b_it": 999_885_952 - 26 * 2 * (1152 + 256),  # these, and norms behind attention and feed-forward
        "olmo2_1b_instruct": 1_484_916_736 - 16 * 2 * 2048,
        "olmo2_7b_instruct": 7_298_617_344 - 32 * 2 * 4096,
    }
    assert {name: sizes_of(config_of(f"model={name}", "method=sft")).parameters for name in published} == published


@pytest.mark.parametrize(
    "method",
    [
        *("sft", "lora", "qlora", "lora method.lora.init=pissa"),
        *("miss", "oft", "shira", "randlora", "ia3", "ln_tuning", "prompt_tuning"),
    ],
)
def test_what_a_method_trains_is_counted_without_weights(method: str) -> None:
    config = config_of(*f"method={method}".split())
    loaded, _ = tiny(config)
    sizes = sizes_of(config)
    assert (sizes.trained, sizes.parameters) == count_parameters(loaded.model)


def test_qlora_keeps_embeddings_and_head_out_of_the_four_bits() -> None:
    sizes = sizes_of(config_of("model=llama3_8b", "method=qlora"), GPU)
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert sizes.weights["weights, nf4"] + sizes.weights[memory.SCALES] == pytest.approx(linear * 4.127 / 8)
    assert sizes.weights["weights, bfloat16"] == 2 * (8_030_261_248 - linear)
    assert sizes.trained == 32 * 16 * (4 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336)) == 41_943_040


def test_other_blocks_are_refused() -> None:
    for shape in (GPT2Config(n_layer=1, n_embd=8, n_head=2), MixtralConfig(num_hidden_layers=1)):
        with pytest.raises(ModelError, match="cannot be estimated"):
            measure_model(shape, config_of("method=sft"), CPU)


LARGER = (
    *("model.tiny.hidden_size=96", "model.tiny.intermediate_size=320", "model.tiny.num_hidden_layers=5"),
    *("model.tiny.num_attention_heads=6", "model.tiny.num_key_value_heads=2"),
)
WHOLE, SHARED = Batches(4, 105, 0, 0, 0, 0, 0), Batches(6, 30, 50, 0, 0, 0, 0)
"""Prompts that share nothing, and 50 tokens."""


def saved_bytes(config: TrainConfig, batches: Batches, device: torch.device) -> int:
    """What autograd saves in a forward pass, each storage once, parameters and buffers left out."""
    loaded, _ = tiny(config)
    loaded.model.train()
    if device.type == "cuda":  # the set-up of a run there; the numbers are computed here
        skip_input_casts(loaded.model)
    held = {tensor.untyped_storage().data_ptr() for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(0, 250, (batches.rows, batches.width))
    none, prefix = torch.zeros(0, dtype=torch.long), torch.arange(batches.prefix)
    batch = AnswerBatch(prefix, ids, torch.ones_like(ids), none, none, 0, questions=batches.rows, tokens=ids.numel())
    mixed = config.trainer.precision == "bf16-mixed"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        hidden = hidden_states(loaded, batch)
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


MIXED = "trainer.precision=bf16-mixed"
EVERY = ("sft", "lora", "qlora", "lora method.lora.target_modules=[q_proj,v_proj]")


@pytest.mark.parametrize(
    ("overrides", "batches", "onednn", "device"),
    [
        *((f"method={method}", WHOLE, onednn, CPU) for method in EVERY for onednn in (True, False)),
        *((f"method={method}", SHARED, True, CPU) for method in EVERY),
        ("method=lora method.lora.dropout=0.1", WHOLE, None, CPU),
        ("method=lora method.lora.use_dora=true", WHOLE, None, CPU),
        ("method=lora model.attention=eager", WHOLE, None, CPU),
        ("method=lora model.dtype=bfloat16", WHOLE, None, CPU),
        (f"method=sft {MIXED}", WHOLE, None, CPU),
        (f"method=lora {MIXED} model.dtype=bfloat16", WHOLE, None, CPU),
        (f"method=lora {MIXED} model.dtype=bfloat16", WHOLE, None, GPU),
    ],
)
def test_activations_are_what_autograd_saves(
    overrides: str, batches: Batches, onednn: bool | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn is not None:
        monkeypatch.setattr(fast_layers, "onednn_is_faster", lambda: onednn)
    config = config_of(*overrides.split(), *LARGER)
    estimated = activation_bytes(sizes_of(config, device), config, batches)
    assert estimated == pytest.approx(saved_bytes(config, batches, device), rel=0.15)


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer(method: str) -> None:
    config = config_of(f"method={method}", "trainer.gradient_checkpointing=true", *LARGER)
    sizes = sizes_of(config)
    layer = activation_bytes(sizes, config_of(f"method={method}", *LARGER), WHOLE) / sizes.shape.num_hidden_layers
    assert activation_bytes(sizes, config, WHOLE) == pytest.approx(saved_bytes(config, WHOLE, CPU) + layer, rel=0.15)


@pytest.mark.parametrize("double_quant", [True, False])
def test_four_bit_weights_take_what_bitsandbytes_takes(double_quant: bool) -> None:
    packed, state = quantize_4bit(torch.randn(1024, 1024), compress_statistics=double_quant, quant_type="nf4")
    parts = [packed, state.absmax, state.code]
    parts += [state.offset, state.state2.absmax, state.state2.code] if double_quant else []
    assert 2**20 * (4 + memory.SCALE_BITS[double_quant]) / 8 == pytest.approx(
        sum(part.nbytes for part in parts), rel=0.005
    )


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_gradients_and_states_of_adamw(method: str) -> None:
    config = config_of(f"method={method}", *LARGER)
    loaded, _ = tiny(config)
    optimizer = build_optimizer(loaded.model, config.optim, fused=False)
    hidden = loaded.backbone(input_ids=torch.arange(6)[None], use_cache=False).last_hidden_state
    loaded.head(hidden).sum().backward()
    optimizer.step()
    sizes = sizes_of(config)
    states = [value for s in optimizer.state.values() for name, value in s.items() if name.startswith("exp_avg")]
    assert sizes.gradients == sum(p.grad.nbytes for p in loaded.model.parameters() if p.grad is not None)
    assert sizes.trained * memory.STATE_BYTES == sum(state.nbytes for state in states)


def test_states_of_eight_bits() -> None:
    parameter = torch.nn.Parameter(torch.zeros(512, 512))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = bitsandbytes.optim.AdamW8bit([parameter])
    optimizer.initialized = True
    optimizer.check_overrides()
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
    states = [value.nbytes for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert parameter.numel() * memory.STATE_BYTES_8BIT == pytest.approx(sum(states), rel=0.01)


FSDP2 = ("trainer.strategy=fsdp2", "trainer.devices=2")


def estimate_of(config: TrainConfig, sizes: ModelSizes | None = None, width: int = 512) -> memory.MemoryEstimate:
    size, rows = config.data.micro_batch_size, config.data.max_batch_tokens // width
    batches = Batches(size, width, 0, 2 * size, rows * width, rows * width, rows)
    return estimate_memory(sizes or sizes_of(config, GPU), config, batches, GPU, runtime=0)


def test_full_fine_tuning_is_spread_over_the_processes_of_each_replica() -> None:
    """Sixteen bytes a weight: it in float32, its gradient and two means; little is whole for a moment."""
    line = ("model=llama3_8b", "method=sft", "trainer.devices=8", "trainer.strategy=fsdp2")
    one, two = (estimate_of(config_of(*line, f"trainer.replicas={number}")).phases["train"] for number in (1, 2))
    spread = ("weights, float32", "gradients", "optimizer states")
    assert sum(one[name] for name in spread) == pytest.approx(16 * 8_030_261_248 / 8)
    layer, head = 2 * 218_112_000, 2 * 128_256 * 4096
    assert one["gathered layers"] == head + max(2 * layer, head) + head
    assert {name: two[name] for name in spread} == {name: 2 * one[name] for name in spread}
    assert two["activations"] == one["activations"]


def test_offloaded_shards_are_in_host_memory() -> None:
    """A GPU holds what is gathered for a moment, and what FSDP2 does not spread; a host holds all in any case."""
    line = ("model=llama3_8b", "method=qlora", "trainer.devices=2", "trainer.strategy=fsdp2")
    config = config_of(*line, "trainer.cpu_offload=true")
    there, offloaded = estimate_of(config_of(*line)), estimate_of(config)
    assert there.host == 0
    train, less = there.phases["train"], offloaded.phases["train"]
    moved = ("weights, nf4", "weights, bfloat16", "adapter weights", "gradients", "optimizer states")
    assert not set(moved) & less.keys()
    assert offloaded.host == sum(train[name] for name in moved)
    assert {name: less[name] for name in (memory.SCALES, "gathered layers")} == {
        name: train[name] for name in (memory.SCALES, "gathered layers")
    }
    batches = Batches(8, 512, 0, 16, 512, 512, 1)
    on_host = [estimate_memory(sizes_of(c, CPU), c, batches, CPU, runtime=0) for c in (config, config_of(*line))]
    assert on_host[0] == on_host[1]


def test_scales_of_four_bits_are_in_every_process() -> None:
    config = config_of("model=llama3_70b_instruct", "method=qlora", *FSDP2)
    parts = estimate_of(config).phases["train"]
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert parts["weights, nf4"] == linear / 2 / 2
    assert parts[memory.SCALES] == pytest.approx(linear * 0.127 / 8)
    assert parts["weights, bfloat16"] == 70_553_706_496 - linear
    assert parts["gathered layers"] > 2 * linear / 80 / 2


@pytest.mark.parametrize(
    ("overrides", "gib", "found"),
    [
        (("method=qlora",), 200, []),
        (("method=qlora",), 24, ["data.micro_batch_size=4", "trainer.accumulate_grad_batches=2"]),
        (("method=qlora", "data.micro_batch_size=1"), 9, ["trainer.gradient_checkpointing=true"]),
        (("method=sft",), 24, ["method=lora", "data.micro_batch_size=2", "trainer.accumulate_grad_batches=4"]),
        (("method=lora",), 12, ["method=qlora", "data.micro_batch_size=1", "trainer.accumulate_grad_batches=8"]),
        (("method=lora",), 2, []),
        (("method=lora", *FSDP2), 18, ["data.micro_batch_size=2", "trainer.accumulate_grad_batches=4"]),
        (
            *(("method=lora", *FSDP2), 12),
            ["trainer.gradient_checkpointing=true", "data.micro_batch_size=4", "trainer.accumulate_grad_batches=2"],
        ),
    ],
)
def test_overrides_that_fit(overrides: tuple[str, ...], gib: int, found: list[str]) -> None:
    config = config_of("model=llama3_8b", *overrides, "trainer.accelerator=auto")
    sizes: dict[str, ModelSizes] = {}

    def total(candidate: TrainConfig) -> int:
        method = candidate.method.name
        if method not in sizes:
            sizes[method] = sizes_of(candidate, GPU)
        return estimate_of(candidate, sizes[method]).total

    assert memory.overrides_that_fit(config, total, gib * GIB, on_gpu=True) == found
    if found:  # typed, they make the run that was estimated
        kept = [item for item in overrides if item.split("=")[0] not in str(found)]
        assert estimate_of(config_of("model=llama3_8b", *kept, *found)).total <= gib * GIB


def test_a_containers_limit_counts_without_its_cache_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**26 < memory.resident_bytes() < memory.available_bytes(CPU)
    files = {"max": "1000\n", "current": "990\n", "stat": "anon 200\nfile 790\nactive_file 300\ninactive_file 480\n"}
    for name, content in files.items():
        (tmp_path / f"memory.{name}").write_text(content)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes(CPU) == pytest.approx(memory.resident_bytes() + 790, abs=2**20)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(CPU) > memory.resident_bytes() + 2**20

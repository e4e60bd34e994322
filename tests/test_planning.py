"""What is planned is what PyTorch, PEFT and bitsandbytes really hold."""

from dataclasses import replace

import bitsandbytes
import pytest
import torch
from support import config_of, tiny

from cyberlm.config.schema import OptimizerName, TrainConfig
from cyberlm.data.batches import AnswerBatch, plan_epoch
from cyberlm.models import cpu_kernels
from cyberlm.models.adapters import keep_inputs_narrow
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_base, read_shape
from cyberlm.models.meta_model import build_skeleton, published_shape
from cyberlm.planning.activations import MicroBatch, saved_activations
from cyberlm.planning.footprint import GenerationBatch, ScoringBatch, Workload, optimizer_states
from cyberlm.planning.network import Network, read_network
from cyberlm.planning.plans import GIB, Device, Plan, Planner
from cyberlm.planning.remedies import find_fit
from cyberlm.training.losses import answer_nll_sum, hidden_states
from cyberlm.training.optim import build_optimizer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LABELS = 19

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def network_of(config: TrainConfig, device: torch.device = CPU, mixed: bool = False) -> Network:
    shape = config.model.shape
    known = read_shape(config.model) if shape is None else published_shape(shape, bool(config.model.tied_embeddings))
    skeleton = build_skeleton(known, config.model, config.quant.name, config.method.lora, device)
    on_gpu = device.type == "cuda"
    return read_network(skeleton, config.quant, config.method.lora, config.model.attention, on_gpu=on_gpu, mixed=mixed)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b_instruct", 70_553_706_496),
        ("llama32_1b_instruct", 1_235_814_400),
        ("llama32_3b_instruct", 3_212_749_824),
    ],
)
def test_parameters_are_those_that_were_published(model: str, published: int) -> None:
    assert network_of(config_of(f"model={model}", "method=sft")).parameters == published


def test_qlora_keeps_embeddings_and_head_out_of_the_four_bits() -> None:
    network = network_of(config_of("model=llama3_8b", "method=qlora"), GPU)
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert network.weights["weights, nf4"] == linear // 2
    assert network.weights["weights, bfloat16"] == 2 * (8_030_261_248 - linear)
    rank_and_shapes = 16 * (4 * 4096 + 2 * (4096 + 1024) + 4 * 4096 - 4 * 4096 + 2 * 4096 * 2 - 4 * 4096 + 3 * 18432)
    assert network.trainable == 32 * rank_and_shapes == 41_943_040


# ----------------------------------------------------------------------------------------------------- activations

LARGER = (
    "model.tiny.hidden_size=96",
    "model.tiny.intermediate_size=320",
    "model.tiny.num_hidden_layers=5",
    "model.tiny.num_attention_heads=6",
    "model.tiny.num_key_value_heads=2",
)
WITHOUT_GROUPS = (
    "model.tiny.num_hidden_layers=3",
    "model.tiny.num_key_value_heads=4",
    "model.tiny.tie_word_embeddings=true",
)


def saved_bytes(loaded: LoadedModel, rows: int, width: int, prefix: int, mixed: bool) -> int:
    """What autograd saves in a forward pass and the loss, each storage once, parameters and buffers left out."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(0, 250, (rows, width))
    places = torch.randint(0, rows * width, (LABELS,))
    targets = torch.randint(0, 250, (LABELS,))
    batch = AnswerBatch(
        torch.arange(prefix), ids, torch.ones_like(ids), places, targets, LABELS, questions=rows, tokens=ids.numel()
    )
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        hidden = hidden_states(loaded.backbone, loaded.causal.config, batch)
        answer_nll_sum(hidden, loaded.head, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Layers as they are on processors where oneDNN is faster, and as they are elsewhere."""
    monkeypatch.setattr(cpu_kernels, "onednn_is_faster", lambda: request.param)
    chosen: bool = request.param
    return chosen


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("rows_width_prefix", [(4, 105, 0), (3, 40, 0), (6, 30, 50)])
@pytest.mark.parametrize("shape", [(), LARGER, WITHOUT_GROUPS], ids=["small", "larger", "without groups"])
@pytest.mark.parametrize(
    "method", ["method=sft", "method=lora", "method=qlora", "method=lora method.lora.target_modules=[q_proj,v_proj]"]
)
def test_activations_are_what_autograd_saves(
    method: str, shape: tuple[str, ...], rows_width_prefix: tuple[int, int, int]
) -> None:
    check_activations(config_of(*method.split(), *shape), *rows_width_prefix)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("method", ["sft", "lora"])
def test_checkpointing_keeps_block_inputs(method: str) -> None:
    check_activations(config_of(f"method={method}", "trainer.gradient_checkpointing=true", *LARGER), 4, 105)


def test_what_checkpointing_computes_again_is_one_block() -> None:
    network = network_of(config_of("method=sft", *LARGER))
    batch = MicroBatch(4, 105, LABELS)
    again = saved_activations(network, batch, checkpointing=True)["recomputed block"]
    plain = saved_activations(network, batch, checkpointing=False)
    others = ("last norm", "logits and loss")
    assert again * network.blocks == sum(size for name, size in plain.items() if name not in others)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(
    "method",
    [
        "method=sft",
        "method=lora model.dtype=bfloat16",
        "method=lora model.dtype=bfloat16 method.lora.dropout=0.1",
    ],
)
def test_mixed_precision_converts_inputs(method: str) -> None:
    check_activations(config_of(*method.split(), *LARGER), 4, 105, mixed=True)


def test_adapters_on_a_gpu_share_their_inputs() -> None:
    """As a run sets them up there: bfloat16 goes into adapters as it is."""
    check_activations(config_of("method=lora", "model.dtype=bfloat16", *LARGER), 4, 105, mixed=True, on_gpu=True)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("setting", ["method.lora.dropout=0.1", "method.lora.use_dora=true", "model.dtype=bfloat16"])
def test_variants_of_adapters(setting: str) -> None:
    check_activations(config_of("method=lora", setting, *LARGER), 4, 105)


def test_eager_attention_keeps_its_weights() -> None:
    check_activations(config_of("method=lora", "model.attention=eager", *LARGER), 4, 105)


def check_activations(
    config: TrainConfig, rows: int, width: int, prefix: int = 0, mixed: bool = False, on_gpu: bool = False
) -> None:
    loaded, _ = tiny(config)
    loaded.causal.set_attn_implementation(config.model.attention.value)
    loaded.model.train()
    if on_gpu:
        keep_inputs_narrow(loaded.model)
    network = network_of(config, GPU if on_gpu else CPU, mixed=mixed)
    batch = MicroBatch(rows, width, LABELS, prefix)
    planned = saved_activations(network, batch, checkpointing=config.trainer.gradient_checkpointing)
    planned.pop("recomputed block", None)
    kept = sum(planned.values()) + network.half_copies
    assert kept == pytest.approx(saved_bytes(loaded, rows, width, prefix, mixed), rel=0.1)


def test_an_adapter_is_fused_where_a_run_would_fuse_it(onednn: bool) -> None:
    def fused(*overrides: str, device: torch.device = CPU, mixed: bool = False) -> set[bool]:
        return {layer.fused for layer in network_of(config_of(*overrides), device, mixed).projections}

    assert fused("method=lora") == {onednn}
    for other in ("method=qlora", "method=sft"):
        assert fused(other) == {False}
    assert fused("method=lora", "method.lora.dropout=0.1") == {False}
    assert fused("method=lora", "model.dtype=bfloat16") == {False}
    assert fused("method=lora", mixed=True) == fused("method=lora", device=GPU) == {False}


# ----------------------------------------------------------------------------------------- weights, gradients, states


@pytest.mark.parametrize("double_quant", [True, False])
def test_four_bit_weights_take_what_bitsandbytes_takes(double_quant: bool) -> None:
    config = config_of("method=qlora", f"quant.double_quant={str(double_quant).lower()}", *LARGER)
    causal = load_base(config.model, config.quant, CPU).causal
    packed = constants = 0
    for parameter in causal.parameters():
        if isinstance(parameter, bitsandbytes.nn.Params4bit):
            packed += parameter.nbytes
            state = parameter.quant_state
            parts = [state.absmax, state.code]
            if state.nested:
                parts += [state.offset, state.state2.absmax, state.state2.code]
            constants += sum(part.nbytes for part in parts)
    network = network_of(config)
    assert (network.weights["weights, nf4"], network.weights["nf4 constants"]) == (packed, constants)


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_gradients_and_states_of_adamw(method: str) -> None:
    config = config_of(f"method={method}", *LARGER)
    loaded, _ = tiny(config)
    optimizer = build_optimizer(loaded.model, config.optim, fused=False)
    hidden = loaded.backbone(input_ids=torch.arange(6)[None], use_cache=False).last_hidden_state
    loaded.head(hidden).sum().backward()
    optimizer.step()
    network = network_of(config)
    gradients = [p.grad for p in loaded.model.parameters() if p.grad is not None]
    states = [
        value for state in optimizer.state.values() for name, value in state.items() if name.startswith("exp_avg")
    ]
    assert network.gradients == sum(gradient.nbytes for gradient in gradients)
    assert optimizer_states(network, OptimizerName.adamw) == sum(state.nbytes for state in states)


def test_states_of_eight_bits() -> None:
    config = config_of("method=sft", *LARGER)
    network = network_of(config)
    parameters = [torch.nn.Parameter(torch.zeros(count)) for count in network.trained]
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    optimizer.initialized = True
    optimizer.check_overrides()
    distinct = {}
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor):
                distinct[value.data_ptr()] = value.nbytes
    assert optimizer_states(network, OptimizerName.adamw_8bit) == sum(distinct.values())


# ------------------------------------------------------------------------------------------------------------ phases


def work(config: TrainConfig, width: int = 512) -> Workload:
    accumulate = config.trainer.accumulate_grad_batches
    rows = max(1, config.data.max_batch_tokens // width)
    scoring = ScoringBatch(rows, width, 4, 1, 0)
    micro = MicroBatch(config.data.micro_batch_size, width, 2 * config.data.micro_batch_size)
    return Workload(
        (micro,) * (2 * accumulate), accumulate, (scoring,), (GenerationBatch(rows, width, 32),), (scoring,)
    )


def planner_for(config: TrainConfig, device: Device) -> Planner:
    assert config.model.shape is not None
    return Planner(published_shape(config.model.shape, False), device)


def plan_for(config: TrainConfig, device: Device) -> Plan:
    return planner_for(config, device).plan(config, work(config))


def test_a_second_step_holds_states_and_the_gradients_of_the_first() -> None:
    config = config_of("model=llama3_8b", "method=sft")
    device = Device("GPU", GPU, 80 * GIB)
    plan = plan_for(config, device)
    parameters = 4 * 8_030_261_248
    assert plan.phases["train"]["optimizer states"] == 2 * parameters
    assert plan.phases["train"]["gradients"] >= parameters
    first = planner_for(config, device).plan(config, replace(work(config), accumulate=9))
    assert sum(first.phases["train"].values()) < sum(plan.phases["train"].values())


def test_smaller_batches_and_checkpointing_take_less() -> None:
    device = Device("GPU", GPU, 24 * GIB)
    base = ("model=llama3_8b", "method=qlora")
    full = plan_for(config_of(*base), device).phases["train"]["activations"]
    half = plan_for(config_of(*base, "data.micro_batch_size=4"), device).phases["train"]["activations"]
    again = plan_for(config_of(*base, "trainer.gradient_checkpointing=true"), device).phases["train"]["activations"]
    assert half == pytest.approx(full / 2, rel=0.01)
    assert again < full / 10


@pytest.mark.parametrize(
    ("overrides", "gib", "found"),
    [
        (("method=qlora",), 200, ()),
        (("method=qlora",), 24, ("data.micro_batch_size=4", "trainer.accumulate_grad_batches=2")),
        (("method=qlora", "data.micro_batch_size=1"), 9, ("trainer.gradient_checkpointing=true",)),
        (("method=sft",), 24, ("method=lora", "data.micro_batch_size=2", "trainer.accumulate_grad_batches=4")),
        (("method=lora",), 12, ("method=qlora", "data.micro_batch_size=1", "trainer.accumulate_grad_batches=8")),
        (("method=lora",), 2, ()),
    ],
)
def test_the_change_that_fits(overrides: tuple[str, ...], gib: int, found: tuple[str, ...]) -> None:
    config = config_of("model=llama3_8b", *overrides, "trainer.accelerator=auto")
    device = Device("GPU", GPU, gib * GIB)

    planner = planner_for(config, device)

    def peak(candidate: TrainConfig) -> int:
        return planner.plan(candidate, work(candidate)).peak

    changes = find_fit(config, peak, device.capacity, on_gpu=True)
    assert changes == found
    if changes:  # typed, they make the run that was planned
        typed = config_of("model=llama3_8b", *(o for o in overrides if o.split("=")[0] not in str(changes)), *changes)
        assert plan_for(typed, device).fits


def test_the_first_micro_batch_holds_the_longest_question() -> None:
    lengths = [20 + (k * 37) % 101 for k in range(400)]
    for seed in range(5):
        first, *_ = plan_epoch(lengths, [2] * 400, 8, 2, seed, epoch=0)
        assert max(lengths[row] for row in first.rows) == max(lengths)

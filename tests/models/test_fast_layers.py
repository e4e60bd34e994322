"""oneDNN's products and fused LoRA layers against a reference in float64, and PyTorch's and PEFT's own layers."""

import copy
import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
import torch.utils.checkpoint
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from safetensors.torch import load_file, save_file
from support import config_of, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cyberlm.models import fast_layers
from cyberlm.models.fast_layers import (
    CACHE_LINE,
    CACHE_SIZES,
    FusedLora,
    FusedLora4bit,
    OneDnnLinear,
    OneDnnLinear4bit,
    align_weights,
    onednn_is_faster,
    use_fast_layers,
)


@pytest.fixture(autouse=True)
def _as_on_a_processor_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "onednn_is_faster", lambda: True)


def test_what_onednn_does_not_do_is_left_to_pytorch() -> None:
    """Layers on a GPU, other types, autocast, batches without a row."""
    with FakeTensorMode():
        layer = nn.Sequential(nn.Linear(8, 8, device="meta"))
        layer[0].weight = nn.Parameter(torch.empty(8, 8, device="cuda"))
        use_fast_layers(layer)
    assert type(layer[0]) is nn.Linear
    layer = nn.Sequential(nn.Linear(32, 32))
    use_fast_layers(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 32)).dtype is torch.bfloat16
    assert layer.double()(torch.randn(2, 32, dtype=torch.float64)).dtype is torch.float64
    assert layer.float()(torch.empty(0, 32)).shape == (0, 32)


def test_mapped_weights_are_moved_to_whole_cache_lines_with_what_is_tied(tmp_path) -> None:
    torch.manual_seed(0)
    values = {"a": torch.randn(5), "b": torch.randn(48, 16)}
    save_file(values, tmp_path / "w.safetensors")
    mapped = load_file(tmp_path / "w.safetensors")
    model = nn.ModuleDict({"one": nn.Linear(16, 48, bias=False), "two": nn.Linear(16, 48, bias=False)})
    model["one"].weight = model["two"].weight = nn.Parameter(mapped["b"], requires_grad=False)
    assert model["one"].weight.data_ptr() % CACHE_LINE
    align_weights(model)
    assert model["one"].weight.data_ptr() % CACHE_LINE == 0
    assert model["one"].weight is model["two"].weight
    assert torch.equal(model["one"].weight, values["b"])
    place = model["one"].weight.data_ptr()
    align_weights(model)
    assert model["one"].weight.data_ptr() == place


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_and_its_gradients_equal_float64(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(96, 160, bias=bias))
    exact = copy.deepcopy(layer).double()
    use_fast_layers(layer)
    assert isinstance(layer[0], OneDnnLinear)
    x = torch.randn(3, 7, 96, requires_grad=True)
    y = x.detach().double().requires_grad_()
    out, expected = layer(x).mul_(2).add_(1), 2 * exact(y) + 1  # in place, as Llama 4 adds its experts' output
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    (out**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-3, rtol=1e-4)
    for got, reference in zip(layer.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(got.grad.double(), reference.grad, atol=2e-3, rtol=1e-4)


MANY_SHAPES = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from cyberlm.models import fast_layers
from cyberlm.models.memory import resident_bytes

torch.set_num_threads(1)
fast_layers.onednn_is_faster = lambda: True
layer = nn.Sequential(nn.Linear(64, 64))
fast_layers.use_fast_layers(layer)
with torch.inference_mode():
    for rows in range(1, 1001):
        layer(torch.zeros(rows, 64))
        if rows in (500, 1000):
            print(resident_bytes())
"""


@pytest.mark.slow
def test_new_shapes_do_not_fill_memory() -> None:
    """400 more of them took 228 MiB where 1,024 compiled products were kept."""
    environment = {name: value for name, value in os.environ.items() if name not in CACHE_SIZES}
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES], env=environment, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after - before < 60 * 2**20


def test_the_choice_is_the_processors(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for faster in (True, False):
        monkeypatch.setattr(fast_layers, "onednn_is_faster", lambda faster=faster: faster)
        kinds = {type(module) for module in tiny(config_of("method=lora"))[0].model.modules()}
        assert (OneDnnLinear in kinds) == faster
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for vendor, expected in (("AuthenticAMD", torch.backends.mkldnn.is_available()), ("GenuineIntel", False)):
        info = tmp_path / vendor
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        monkeypatch.setattr(fast_layers, "CPU_INFO", info)
        assert onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert onednn_is_faster.__wrapped__() is False


def adapted(**settings) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(OrderedDict(q=nn.Linear(64, 48), act=nn.SiLU(), v=nn.Linear(48, 80, bias=False)))
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q", "v"], init_lora_weights=False, **settings)
    return get_peft_model(model, config)


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    out = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return out, list(torch.autograd.grad((out**2).sum(), [x, *trained]))


@pytest.mark.parametrize("onednn", [True, False])
def test_output_gradients_and_merge_equal_pefts(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    monkeypatch.setattr(fast_layers, "onednn_is_faster", lambda: onednn)
    plain = adapted()
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert sum(isinstance(module, FusedLora) for module in fast.modules()) == 2
    x = torch.randn(5, 9, 64, requires_grad=True)
    (out, grads), (expected, references) = gradients(fast, x), gradients(plain, x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for got, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(got, reference, atol=1e-3, rtol=1e-4)
    with plain.disable_adapter(), fast.disable_adapter():
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.merge_and_unload()(x), expected, atol=1e-4, rtol=1e-4)


def test_mixed_precision_is_as_near_to_float64_as_pefts() -> None:
    """bfloat16 weights and numbers, a float32 adapter, autocast: a GPU's training. Gradients come in float32."""
    plain = adapted()
    for module in plain.modules():
        if isinstance(module, lora.Linear):
            module.base_layer.bfloat16()
            module.cast_input_dtype_enabled = False  # as `skip_input_casts`
    exact, fast = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    use_fast_layers(fast)
    x = torch.randn(5, 9, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (out, grads), (theirs, their_grads) = gradients(fast, x), gradients(plain, x)
    assert out.dtype == torch.bfloat16 and out.grad_fn is not None
    assert all(grad.dtype == torch.float32 for grad in grads[1:])
    right, references = gradients(exact, x.detach().double().requires_grad_())
    for ours, peft, reference in zip([out, *grads], [theirs, *their_grads], [right, *references], strict=True):
        off, theirs_off = ((got.double() - reference).norm() / reference.norm() for got in (ours, peft))
        assert off <= 1.1 * theirs_off + 1e-4


@pytest.mark.parametrize("double_quant", ["true", "false"])
@pytest.mark.parametrize(
    ("fast", "theirs", "function"), [(OneDnnLinear4bit, Linear4bit, "_Linear4bit"), (FusedLora4bit, Lora4bit, "_Lora")]
)
def test_4bit_layers_equal_those_of_bitsandbytes_and_peft(fast, theirs, function: str, double_quant: str) -> None:
    loaded, _ = tiny(config_of("method=qlora", f"quant.double_quant={double_quant}"))
    layer = next(module for module in loaded.model.modules() if isinstance(module, fast))
    for parameter in layer.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    x = torch.randn(4, 5, layer.in_features, requires_grad=True)
    out, grads = gradients(layer, x)
    layer.__class__ = theirs
    expected, references = gradients(layer, x)
    assert out.grad_fn is not None and function in out.grad_fn.next_functions[0][0].name()  # behind a view
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5)
    for got, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(got, reference, atol=1e-3 * float(reference.abs().max()), rtol=1e-4)


def test_what_is_more_than_plain_lora_stays_with_peft() -> None:
    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}):
        model = adapted(**settings)
        use_fast_layers(model)
        assert any(type(module) is lora.Linear for module in model.modules())
        assert not any(isinstance(module, FusedLora) for module in model.modules())

"""LoRA layers as one operation, against PEFT's own layers."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from support import config_of, tiny
from torch import nn

from cyberlm.models import cpu_kernels
from cyberlm.models.fused_lora import FusedLora, FusedLora4bit, fuse_lora


def adapted(**settings) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential()
    model.add_module("q", nn.Linear(64, 48))
    model.add_module("act", nn.SiLU())
    model.add_module("v", nn.Linear(48, 80, bias=False))
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q", "v"], init_lora_weights=False, **settings)
    return get_peft_model(model, config)


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    out = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return out, list(torch.autograd.grad((out**2).sum(), [x, *trained]))


@pytest.mark.parametrize("onednn", [True, False])
def test_output_gradients_and_merge_equal_pefts(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    monkeypatch.setattr(cpu_kernels, "onednn_is_faster", lambda: onednn)
    plain = adapted()
    fast = copy.deepcopy(plain)
    cpu_kernels.use_fast_products(fast)
    fuse_lora(fast)
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
            module.cast_input_dtype_enabled = False  # as `keep_inputs_narrow`
    exact, fast = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    fuse_lora(fast)
    x = torch.randn(5, 9, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (out, grads), (theirs, their_grads) = gradients(fast, x), gradients(plain, x)
    assert out.dtype == torch.bfloat16 and out.grad_fn is not None
    assert all(grad.dtype == torch.float32 for grad in grads[1:])
    right, references = gradients(exact, x.detach().double().requires_grad_())
    for ours, peft, reference in zip([out, *grads], [theirs, *their_grads], [right, *references], strict=True):
        off, theirs_off = ((got.double() - reference).norm() / reference.norm() for got in (ours, peft))
        assert off <= 1.1 * theirs_off + 1e-4


def test_4bit_layer_equals_pefts() -> None:
    loaded, _ = tiny(config_of("method=qlora"))
    layer = next(module for module in loaded.model.modules() if isinstance(module, FusedLora4bit))
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(4, 5, layer.in_features, requires_grad=True)
    out, grads = gradients(layer, x)
    layer.__class__ = Lora4bit
    expected, references = gradients(layer, x)
    assert out.grad_fn is not None and "_Lora" in out.grad_fn.next_functions[0][0].name()  # behind a view
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for got, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(got, reference, atol=1e-3, rtol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    model = adapted()
    fuse_lora(model)
    x = torch.randn(5, 64, requires_grad=True)
    trained = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    again = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    for one, other in zip(
        torch.autograd.grad(model(x).sum(), trained), torch.autograd.grad(again.sum(), trained), strict=True
    ):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_what_is_more_than_plain_lora_stays_with_peft() -> None:
    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}):
        model = adapted(**settings)
        fuse_lora(model)
        assert any(type(module) is lora.Linear for module in model.modules())
        assert not any(isinstance(module, FusedLora) for module in model.modules())

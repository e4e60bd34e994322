"""Tokens that all prompts share, encoded once: the same results and gradients as whole prompts, with less work."""

from typing import Any

import pytest
import torch
from support import config_of, sample_questions, tiny
from torch import nn

from cyberlm.data.batches import AnswerBatch, AnswerCollator
from cyberlm.models.loaded import LoadedModel, check_causal
from cyberlm.models.prefix_cache import MAX_ROUNDING, shared_length
from cyberlm.training.losses import answer_nll_sum


def test_what_all_rows_begin_with_is_shared() -> None:
    begin = tuple(range(20))
    assert shared_length([(*begin, 5, 6), (*begin, 7), (*begin, 5)]) == 20
    assert shared_length([(*begin, 5), begin]) == 19, "every row keeps a token"
    assert shared_length([begin]) == 0, "nothing is saved with one row"
    assert shared_length([(1, 2, 3), (1, 2, 4)]) == 0, "so few are not worth a pass of their own"
    assert shared_length([(1, *begin), (2, *begin)]) == 0


def loss_and_gradients(loaded: LoadedModel, batch: AnswerBatch) -> tuple[float, list[torch.Tensor]]:
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    loss = answer_nll_sum(loaded, batch)
    return float(loss.detach()), list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["sft", "lora", "qlora", "prompt_tuning"])
@pytest.mark.parametrize("protocol", ["letter", "text"])
def test_loss_and_gradients_are_those_of_whole_prompts(protocol: str, method: str, attention: str) -> None:
    loaded, prompt = tiny(config_of(f"method={method}", f"prompt={protocol}", f"model.attention={attention}"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    questions = prompt.encode(sample_questions(6))
    shared = AnswerCollator(prompt.end_ids, share_prefix=True)((questions, 1))
    whole = AnswerCollator(prompt.end_ids, share_prefix=False)((questions, 1))
    assert len(shared.prefix_ids) > 50 and not len(whole.prefix_ids)
    assert shared.tokens == whole.tokens and shared.computed_tokens < whole.computed_tokens

    loss, gradients = loss_and_gradients(loaded, shared)
    expected, expected_gradients = loss_and_gradients(loaded, whole)
    assert loss == pytest.approx(expected, rel=1e-5)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5 * float(reference.abs().max()) + 1e-6, rtol=1e-4)


@pytest.mark.parametrize("noise", [0.04, 0.5])
def test_rounding_that_depends_on_the_shape_hides_no_cache(noise: float) -> None:
    """A GPU computes other shapes by other kernels, and deep models in few bits multiply what these round apart."""
    loaded, _ = tiny(config_of("method=lora"))

    def round_by_shape(layer: nn.Module, inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hidden[0].numel())
        apart = torch.randn(hidden.shape[1:], generator=generator)
        return hidden + noise * hidden.norm(dim=-1, keepdim=True) * nn.functional.normalize(apart, dim=-1)

    for layer in loaded.causal.model.layers:
        layer.register_forward_hook(round_by_shape)
    check_causal(loaded)
    assert (loaded.cacheable_tokens > 0) == (noise < MAX_ROUNDING)

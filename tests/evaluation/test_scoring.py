"""Scores and completions against the plain way: one question at a time, without padding or shared work."""

import copy
from collections import Counter, OrderedDict
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support import config_of, sample_questions, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cyberlm.data.batches import collate_scoring, pad_right, plan_batches
from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.scoring import (
    OPTIONS_AT_ONCE,
    eval_mode,
    generate,
    head_logits,
    next_logits,
    option_log_probs,
    widened_product,
)
from cyberlm.tasks.task import Example

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers deprecates a name that peft still uses


def uneven_questions() -> list[Example]:
    """2 to 8 options, answers of 1 to 40 characters, prompts of different lengths."""
    texts = ("a", "a firewall", "some longer answer about key rotation", "x y", "port 22", "TLS", "no", "zero trust")
    return [Example(f"u:{k}", "What is it? " * (1 + 3 * k % 7), texts[: 2 + k % 7], k % 2) for k in range(14)]


def questions_of_many_options() -> list[Example]:
    """More options than continue from the prompt at once, of 1 to 5 tokens."""
    labels = tuple("T1" + "059"[: k % 4] + chr(97 + k) for k in range(2 * OPTIONS_AT_ONCE + 3))
    return [Example(f"u:{k}", "What is it? " * (1 + k), labels, 2 * k) for k in range(3)]


def plain_log_probs(loaded, encoded) -> list[float]:
    scores = []
    for ids in encoded.option_ids:
        whole = torch.tensor([list(encoded.prompt_ids) + list(ids)])
        log_probs = torch.log_softmax(loaded.model(input_ids=whole).logits[0], -1)
        start = len(encoded.prompt_ids) - 1
        scores.append(sum(float(log_probs[start + k, token]) for k, token in enumerate(ids)))
    return scores


CASES = [(uneven_questions, prompt, method) for prompt in ("letter", "text") for method in ("sft", "lora", "qlora")]


@pytest.mark.parametrize(("made", "protocol", "method"), [*CASES, (questions_of_many_options, "text", "lora")])
def test_option_log_probs_equal_one_question_at_a_time(made, protocol: str, method: str) -> None:
    loaded, prompt = tiny(config_of(f"method={method}", f"prompt={protocol}"))
    encoded = prompt.encode(made())
    loaded.model.train()
    with eval_mode(loaded.model):
        assert torch.is_inference_mode_enabled()
        together = option_log_probs(loaded, collate_scoring(encoded))
        for row, item in enumerate(encoded):
            expected = plain_log_probs(loaded, item)
            assert together[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
            assert torch.isinf(together[row, len(expected) :]).all()
    assert loaded.model.training  # as it was before


# ---------------------------------------------------------------------------------------------- float32 logits


def heads() -> dict[str, nn.Module]:
    """Output heads in bfloat16: plain, with a bias, and below an adapter."""
    torch.manual_seed(0)
    plain, biased = nn.Linear(64, 40_000, bias=False).bfloat16(), nn.Linear(64, 50).bfloat16()
    adapted = nn.Sequential(OrderedDict(head=nn.Linear(64, 50, bias=False).bfloat16()))
    model = inject_adapter_in_model(LoraConfig(r=4, target_modules=["head"], init_lora_weights=False), adapted)
    return {"plain": plain, "biased": biased, "adapted": model.head.eval()}


@pytest.mark.parametrize("kind", ["plain", "biased", "adapted"])
def test_logits_are_not_rounded_under_autocast(kind: str) -> None:
    """Against the product in float64; in bfloat16 the largest of these logits would be off by up to 0.06."""
    head = heads()[kind]
    hidden = (4 * torch.randn(7, 64)).bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = head_logits(head, hidden)
        rounded = head(hidden).float()
    exact = copy.deepcopy(head).double()
    with torch.inference_mode():
        expected = exact(hidden.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    assert (rounded.double() - expected).abs().max() > 5e-3


def test_a_gpu_multiplies_bfloat16_with_a_float32_result_and_copies_no_head() -> None:
    """Recorded on tensors that say they are on a GPU."""
    ops: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            ops.append(str(function))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.device("cuda"), torch.inference_mode():
        hidden, weight = (torch.empty(rows, 64, dtype=torch.bfloat16) for rows in (7, 40_000))
        with Record():
            logits = widened_product(hidden, weight)
    assert (logits.dtype, logits.device.type, tuple(logits.shape)) == (torch.float32, "cuda", (7, 40_000))
    assert [op for op in ops if "mm" in op or "_to_copy" in op] == ["aten.mm.dtype"]


@pytest.mark.parametrize("protocol", ["letter", "text"])
def test_near_options_are_told_apart_in_bfloat16(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a bfloat16 model as on a GPU: log-softmax of a float64 product of the same hidden states."""
    half = lambda device: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    monkeypatch.setattr("cyberlm.evaluation.scoring.autocast", half)
    monkeypatch.setattr("cyberlm.evaluation.scoring.LOGITS_AT_ONCE", 3 * 288)  # a few rows at a time
    loaded, prompt = tiny(config_of("method=lora", "model.dtype=bfloat16", f"prompt={protocol}"))
    with torch.no_grad():
        loaded.head.weight.mul_(8)  # logits of a trained model are near 20
    encoded = prompt.encode(uneven_questions())
    batch, seen = collate_scoring(encoded), []
    loaded.backbone.register_forward_hook(lambda *given: seen.append(given[2].last_hidden_state))
    with eval_mode(loaded.model):
        found = option_log_probs(loaded, batch)
        logits = next_logits(loaded, [item.prompt_ids for item in encoded])
    prompts = next(hidden for hidden in seen if hidden.shape[:2] == batch.prompt_ids.shape)
    ends = prompts[torch.arange(len(encoded)), batch.prompt_mask.sum(1) - 1].double()
    exact = torch.log_softmax(ends @ loaded.head.weight.double().t(), -1).gather(1, batch.option_ids[:, :, 0])
    single = (batch.option_mask.sum(-1) == 1).bool()
    assert single.any()
    torch.testing.assert_close(found[single].double(), exact[single], atol=1e-4, rtol=0)
    assert (logits != logits.bfloat16()).float().mean() > 0.9


def test_rows_that_stop_leave_the_batch_and_change_nothing() -> None:
    """tests/models/test_families.py holds completions against those of one row at a time."""
    loaded, prompt = tiny(config_of())
    prompts = [item.prompt_ids for item in prompt.encode(uneven_questions())]
    sizes: list[int] = []
    with eval_mode(loaded.model):
        free = generate(loaded, prompts, [], 12)
        stops = [free[0][0], free[5][4], free[9][8]]
        loaded.backbone.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        stopped = generate(loaded, prompts, stops, 12)
    for row, ids in zip(stopped, free, strict=True):
        end = next((k for k, token in enumerate(ids) if token in stops), len(ids))
        assert row == ids[:end]
    assert len({len(row) for row in stopped}) > 2, stopped
    assert sizes[-1] < len(prompts)


def test_predictions_do_not_depend_on_the_batch_and_say_why_a_completion_ended() -> None:
    """`length` where more tokens would have come, `stop` where the end of turn did."""
    config = config_of("prompt=text", "evaluation.max_new_tokens=6")
    loaded, prompt = tiny(config)
    questions = sample_questions(12)
    encoded = prompt.encode(questions)
    with eval_mode(loaded.model):
        free = generate(loaded, [item.prompt_ids for item in encoded], [], 6)
    counts = Counter(token for row in free for token in set(row))
    end = max((token for token in counts if counts[token] < len(free)), key=counts.get)  # in many, but not in all
    prompt.stop_ids = (end,)
    few, many = (
        predict(loaded, prompt, questions, encoded, config.evaluation, tokens, "it") for tokens in (300, 20000)
    )
    assert [p.id for p in few] == [q.id for q in questions]
    for one, other in zip(few, many, strict=True):
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-4)
        assert (one.choice, one.generated, one.prompt_hash) == (other.choice, other.generated, other.prompt_hash)
    assert [answer.finish_reason for answer in few] == ["stop" if end in row else "length" for row in free]
    assert {answer.finish_reason for answer in few} == {"stop", "length"}
    likelihood = replace(config.evaluation, generate=False)
    silent = predict(loaded, prompt, questions, encoded, likelihood, 4096, "it")
    assert {answer.finish_reason for answer in silent} == {None}


def test_batches_are_sorted_within_the_budget_and_padded() -> None:
    lengths = [5, 100, 7, 40, 40, 3]
    batches = plan_batches(lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(6)) and batches[0] == [1]
    assert all(len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= 100 for batch in batches)
    assert plan_batches([], 10) == []
    ids, mask = pad_right([[0, 0, 5], [7]])
    assert (ids.tolist(), mask.tolist()) == ([[0, 0, 5], [7, 0, 0]], [[1, 1, 1], [1, 0, 0]])

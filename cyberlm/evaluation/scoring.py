"""Log-probability of every option, and greedy completions.

Work is shared: the common prefix of a batch's prompts is encoded once; letters need one forward pass a question; option
texts continue from their prompt's keys and values. A model whose cache does not hold all keys and values of a batch
(`LoadedModel.cacheable_tokens`) reads prompt and option together. Neither batch size nor padding changes a result.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache, GenerationConfig

from cyberlm.data.batches import ScoringBatch, pad_right
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.memory import LOGITS_AT_ONCE
from cyberlm.models.prefix_cache import encode_prefix, saves_enough, shared_length

OPTIONS_AT_ONCE = 8
"""Options of a question that continue from its prompt together: each takes a copy of the prompt's keys and values."""

SHARE_ALIVE = 0.75
"""Largest share of unfinished rows at which finished ones leave the batch; that copies keys and values."""

HEAD_ROWS_AT_ONCE = 16_384
"""Rows of an output head that are widened to float32 at a time."""


def option_log_probs(loaded: LoadedModel, batch: ScoringBatch) -> Tensor:
    """Summed log-probability of each option's tokens after its prompt.

    Returns:
        (B, K) float32; -inf for rows of padding.
    """
    one_token_each = batch.option_ids.shape[2] == 1
    too_long = batch.longest > loaded.cacheable_tokens
    if too_long and not one_token_each:
        return _whole_rows(loaded, batch.without_prefix())
    if too_long or not saves_enough(len(batch.prefix_ids), len(batch.gold), loaded.device):
        batch = batch.without_prefix()
    with autocast(loaded.device):
        past = encode_prefix(loaded.backbone, loaded.causal.config, batch.prefix_ids, rows=len(batch.gold))
        # Right padding needs no mask here: no token attends to later ones.
        prompt = loaded.backbone(
            input_ids=batch.prompt_ids, past_key_values=past, use_cache=past is not None or not one_token_each
        )
        last = batch.prompt_mask.sum(1) - 1  # (B,)
        rows = torch.arange(len(last), device=last.device)
        ends = prompt.last_hidden_state[rows, last]  # (B, H)
        scores = _log_probs(loaded.head, ends, batch.option_ids[:, :, 0])
        if not one_token_each:
            scores = scores + _continued(loaded, batch, prompt.past_key_values)
    return scores.masked_fill(batch.option_mask[:, :, 0] == 0, -torch.inf)


def _whole_rows(loaded: LoadedModel, batch: ScoringBatch) -> Tensor:
    """`option_log_probs` without a cache: of each question's options one at a time, behind its prompt."""
    width = batch.option_ids.shape[2]
    ids = F.pad(batch.prompt_ids, (0, width))  # (B, P+O)
    places = batch.prompt_mask.sum(1, keepdim=True) + torch.arange(width, device=ids.device)  # (B, O)
    totals = []
    for option in range(batch.option_ids.shape[1]):
        tokens, wanted = batch.option_ids[:, option], batch.option_mask[:, option].bool()  # (B, O)
        with autocast(loaded.device):
            # Right padding needs no mask here: no token attends to later ones.
            rows = ids.scatter(1, places, tokens)
            hidden = loaded.backbone(input_ids=rows, use_cache=False).last_hidden_state
            before = hidden.gather(1, (places - 1)[:, :, None].expand(-1, -1, hidden.shape[2]))  # (B, O, H)
            log_probs = _log_probs(loaded.head, before[wanted], tokens[wanted][:, None])[:, 0]
        total = torch.zeros(wanted.shape, device=log_probs.device).masked_scatter(wanted, log_probs)
        totals.append(total.sum(1).masked_fill(~wanted[:, 0], -torch.inf))
    return torch.stack(totals, 1)


def next_logits(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V), in float32, of the first token after each prompt."""
    ids, mask = (part.to(loaded.device) for part in pad_right(prompts))
    with autocast(loaded.device):
        hidden = loaded.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, T, H)
        ends = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]  # (B, H)
        return head_logits(loaded.head, ends)


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (N, V), in float32, of hidden states (N, H).

    Autocast would round them to bfloat16, whose steps near 20 are 0.125: options that differ by less became equal.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        narrow = [p for p in head.parameters() if p.is_floating_point() and p.dtype != torch.float32]
        if not narrow:
            logits: Tensor = head(hidden.float())
            return logits
        if not isinstance(head, nn.Linear) or head.weight not in set(narrow):  # an adapter, or packed weights
            wide = {name: p.float() if p.is_floating_point() else p for name, p in head.named_parameters()}
            return functional_call(head, wide, (hidden.float(),)).float()
        logits = widened_product(hidden, head.weight)
        return logits if head.bias is None else logits + head.bias.float()


def widened_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (N, H) weightᵀ in float32, for a weight (V, H) in a narrower type; the whole weight is never copied."""
    if hidden.device.type == "cuda" and hidden.dtype == weight.dtype and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    wide = hidden.float()
    return torch.cat([F.linear(wide, rows.float()) for rows in weight.split(HEAD_ROWS_AT_ONCE)], dim=-1)


def _log_probs(head: nn.Module, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (N, K), in float32, of tokens (N, K) after hidden states (N, H)."""
    rows = max(1, LOGITS_AT_ONCE // int(head.out_features))  # type: ignore[arg-type]  # torch types modules' attributes
    pairs = zip(hidden.split(rows), tokens.split(rows), strict=True)
    return torch.cat([torch.log_softmax(head_logits(head, part), dim=-1).gather(1, own) for part, own in pairs])


def _continued(loaded: LoadedModel, batch: ScoringBatch, cache: DynamicCache) -> Tensor:
    """Summed log-probability (B, K) of each option's tokens from the second on, from the prompt's keys and values."""
    count, options, width = batch.option_ids.shape
    if options > OPTIONS_AT_ONCE:
        ids, mask = batch.option_ids.split(OPTIONS_AT_ONCE, 1), batch.option_mask.split(OPTIONS_AT_ONCE, 1)
        groups = (batch._replace(option_ids=own, option_mask=seen) for own, seen in zip(ids, mask, strict=True))
        return torch.cat([_continued(loaded, group, copy.deepcopy(cache)) for group in groups], dim=1)
    inputs = batch.option_ids[:, :, :-1].reshape(count * options, width - 1)
    mask = batch.option_mask.reshape(count * options, width)
    cache.batch_repeat_interleave(options)
    shared = len(batch.prefix_ids)
    start = shared + batch.prompt_mask.sum(1).repeat_interleave(options)  # (B*K,)
    positions = start[:, None] + torch.arange(width - 1, device=start.device)
    seen = [mask.new_ones(count * options, shared), batch.prompt_mask.repeat_interleave(options, 0), mask[:, :-1]]
    hidden = loaded.backbone(
        input_ids=inputs,
        attention_mask=torch.cat(seen, dim=1),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    wanted = mask[:, 1:].bool()  # (B*K, O-1)
    targets = batch.option_ids.reshape(count * options, width)[:, 1:][wanted]  # (N,)
    log_probs = _log_probs(loaded.head, hidden[wanted], targets[:, None])[:, 0]
    total = torch.zeros(wanted.shape, device=log_probs.device).masked_scatter(wanted, log_probs)
    return total.sum(1).view(count, options)


def generate(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Token ids of greedy completions, batched with left padding; each stops before the first of `stop_ids`.

    Rows that have stopped leave the batch, so that short answers do not wait for long ones.
    """
    if max(map(len, prompts)) + max_new_tokens > loaded.cacheable_tokens:
        return _generate_unpadded(loaded, prompts, stop_ids, max_new_tokens)
    with autocast(loaded.device):
        tokens, mask, cache = _first_tokens(loaded, prompts)
        completions: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # prompts that are still in the batch
        stopped: set[int] = set()
        for length in range(1, max_new_tokens + 1):
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if token in stop_ids:
                    stopped.add(row)
                elif row not in stopped:
                    completions[row].append(token)
            alive = [k for k, row in enumerate(rows) if row not in stopped]
            if not alive or length == max_new_tokens:
                break
            if len(alive) <= SHARE_ALIVE * len(rows):
                kept = torch.tensor(alive, device=tokens.device)
                cache.batch_select_indices(kept)
                tokens, mask, rows = tokens[kept], mask[kept], [rows[k] for k in alive]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            hidden = loaded.backbone(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            tokens = head_logits(loaded.head, hidden[:, -1]).argmax(-1)
    return completions


def _generate_unpadded(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """`generate` by transformers with the model's own cache, in batches of prompts of one length."""
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids) or None, pad_token_id=0)
    completions: dict[int, list[int]] = {}
    for length in dict.fromkeys(map(len, prompts)):
        rows = [row for row, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[row] for row in rows], device=loaded.device)
        own, loaded.causal.generation_config = loaded.causal.generation_config, GenerationConfig()
        try:  # without the model's own settings (a repetition penalty, for example), which transformers would mix in
            with autocast(loaded.device):
                sequences = loaded.causal.generate(  # type: ignore[operator]
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
                )
        finally:
            loaded.causal.generation_config = own
        for row, new in zip(rows, sequences[:, length:].tolist(), strict=True):
            end = next((k for k, token in enumerate(new) if token in stop_ids), len(new))
            completions[row] = new[:end]
    return [completions[row] for row in range(len(prompts))]


def _first_tokens(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, DynamicCache]:
    """The likeliest first token (B,) of each completion, with the mask (B, P) and the cache of the prompts."""
    width, shared = max(len(ids) for ids in prompts), shared_length(prompts)
    shared = shared if saves_enough(shared, len(prompts), loaded.device) else 0
    rows = [[0] * (width - len(ids)) + list(ids[shared:]) for ids in prompts]  # padding comes after the shared prefix
    seen = [[1] * shared + [0] * (width - len(ids)) + [1] * (len(ids) - shared) for ids in prompts]
    input_ids, mask = torch.tensor(rows, device=loaded.device), torch.tensor(seen, device=loaded.device)
    prefix_ids = torch.tensor(prompts[0][:shared], dtype=torch.long, device=loaded.device)
    past = encode_prefix(loaded.backbone, loaded.causal.config, prefix_ids, rows=len(prompts))
    prompt = loaded.backbone(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, shared:],
        past_key_values=past,
        use_cache=True,
    )
    return head_logits(loaded.head, prompt.last_hidden_state[:, -1]).argmax(-1), mask, prompt.past_key_values


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Turns off dropout and gradients, and restores training mode."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()

"""Virtual tokens before every text: prompt tuning (arXiv 2104.08691) and p-tuning (arXiv 2103.10385).

PEFT puts them before the embeddings in its own forward pass. Training and scoring call the backbone itself, with or
without a cache: there the same is done by hooks.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, PeftType

from cyberlm.models.loaded import LoadedModel
from cyberlm.runtime.errors import ModelError, Problem


def put_virtual_tokens(loaded: LoadedModel) -> None:
    """Puts `VirtualTokens` on the backbone of a PEFT model whose adapter is of such tokens, and nothing on others.

    Raises:
        ModelError: If the model's cache is more than keys and values of all tokens: positions would not be known.
    """
    assert isinstance(loaded.model, PeftModel)
    config = loaded.model.active_peft_config
    if config.peft_type not in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
        return
    if loaded.cacheable_tokens < sys.maxsize and loaded.device.type != "meta":
        what = f"{loaded.name}: its attention has a window, or its layers a state"
        problem = Problem(what, "a model with full attention, or another method", "method=lora")
        raise ModelError(f"{config.peft_type} does not go with this model.", [problem])
    virtual = VirtualTokens(loaded.model, config.num_virtual_tokens)
    loaded.backbone.register_forward_pre_hook(virtual.before, with_kwargs=True)
    loaded.backbone.register_forward_hook(virtual.after)
    loaded.model.virtual_tokens = virtual  # type: ignore[assignment]


class VirtualTokens:
    """Hooks of a backbone: N embeddings go in before the tokens of each row, and their hidden states are left out."""

    def __init__(self, model: PeftModel, count: int) -> None:
        self._model, self._count = model, count
        self._on, self._added = True, 0

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def before(self, backbone: Any, _: Any, given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        ids, cache, self._added = given.get("input_ids"), given.get("past_key_values"), 0
        if not self._on or ids is None:  # PEFT's own forward pass comes with embeddings
            return None
        rows, begins = len(ids), cache is None or not cache.get_seq_length()
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None:
            given = {**given, "attention_mask": torch.cat([mask.new_ones(rows, self._count), mask], dim=1)}
        if positions is not None:
            before = torch.arange(self._count if begins else 0, device=ids.device).expand(rows, -1)
            given = {**given, "position_ids": torch.cat([before, positions + self._count], dim=1)}
        if begins:
            embedded = backbone.get_input_embeddings()(ids)  # (B, T, H)
            virtual = self._model.get_prompt(batch_size=rows).to(embedded.dtype)  # (B, N, H)
            given = {**given, "input_ids": None, "inputs_embeds": torch.cat([virtual, embedded], dim=1)}
            self._added = self._count
        return (), given

    def after(self, _: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, self._added :]
        return output

"""Where loss is computed: cross-entropy on answer tokens only, normalised over the whole optimizer step."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, masking_utils

from cyberlm.prefixes import encode_prefix


class AnswerBatch(NamedTuple):
    """Right-padded training examples, with the places whose next token is trained on.

    Padding needs no mask in attention: it stands behind an example's tokens, which see only what is before them.

    Attributes:
        prefix_ids: (P,) int64, tokens that all examples begin with (`cyberlm.prefixes`); may be empty.
        input_ids: (B, T) int64, what follows; the last token of an example is a target only, so it is not an input.
        attention_mask: (B, T) int64, 1 on tokens.
        answer_index: (N,) int64, places in the flattened (B*T) hidden states that predict an answer token.
        targets: (N,) int64, the answer tokens, end of turn included.
        step_label_tokens: Answer tokens of the whole optimizer step that this micro-batch belongs to.
        questions: Examples; a filler (`cyberlm.data.batching`) has none. Counts are ints: to read one from a GPU, the
            host would wait for it.
        tokens: Of the examples, those that they share counted in each.
    """

    prefix_ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    answer_index: Tensor
    targets: Tensor
    step_label_tokens: int
    questions: int
    tokens: int

    @property
    def computed_tokens(self) -> int:
        """Places that go through the model: padding included, shared tokens once."""
        return self.input_ids.numel() + len(self.prefix_ids)


def hidden_states(backbone: nn.Module, config: PretrainedConfig, batch: AnswerBatch) -> Tensor:
    """Hidden states (B, T, H) of what follows the shared tokens, which go through the model once.

    Args:
        backbone: Token ids to hidden states.
        config: Of the model.
    """
    past = encode_prefix(backbone, config, batch.prefix_ids, rows=len(batch.input_ids))
    with _nothing_packed():
        output = backbone(input_ids=batch.input_ids, past_key_values=past, use_cache=past is not None)
    hidden: Tensor = output.last_hidden_state
    return hidden


@contextlib.contextmanager
def _nothing_packed() -> Iterator[None]:
    """Spares transformers its search for packed sequences, whose outcome the host would wait for."""
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def answer_nll_sum(hidden: Tensor, head: nn.Module, batch: AnswerBatch) -> Tensor:
    """Summed negative log-likelihood of the answer tokens; the output head is applied to their places only.

    Args:
        hidden: (B, T, H) hidden states of the backbone.
        head: Maps (N, H) to logits (N, V).

    Returns:
        Scalar, float32.
    """
    chosen = hidden.flatten(0, 1)[batch.answer_index]  # (N, H)
    return F.cross_entropy(head(chosen).float(), batch.targets, reduction="sum")


def step_loss(nll_sum: Tensor, batch: AnswerBatch, accumulate: int) -> Tensor:
    """This micro-batch's share of the optimizer step's mean over answer tokens.

    Lightning divides every micro-batch's loss by its own accumulation, in a last partial window too, and several
    processes average their gradients; multiplying by both here leaves exactly sum(nll) / sum(tokens) over the step,
    however its questions are laid out in batches and processes.

    Args:
        accumulate: Micro-batches in a full optimizer step, those of all processes.
    """
    return nll_sum * (accumulate / batch.step_label_tokens)

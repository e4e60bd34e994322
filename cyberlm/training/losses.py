"""Loss: cross-entropy on answer tokens only, normalised over the whole optimizer step."""

import torch.nn.functional as F
from torch import Tensor
from transformers import masking_utils

from cyberlm.data.batches import AnswerBatch
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.prefix_cache import encode_prefix


def hidden_states(loaded: LoadedModel, batch: AnswerBatch) -> Tensor:
    """Hidden states (B, T, H) of the tokens behind the shared ones, which go through the model once."""
    past = encode_prefix(loaded.backbone, loaded.causal.config, batch.prefix_ids, rows=len(batch.input_ids))
    search = masking_utils.find_packed_sequence_indices  # whose result the host would wait for; nothing is packed here
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        output = loaded.backbone(input_ids=batch.input_ids, past_key_values=past, use_cache=past is not None)
    finally:
        masking_utils.find_packed_sequence_indices = search
    hidden: Tensor = output.last_hidden_state
    return hidden


def answer_nll_sum(loaded: LoadedModel, batch: AnswerBatch) -> Tensor:
    """Summed negative log-likelihood of the answer tokens; the output head is applied to their places only.

    Returns:
        Scalar, float32.
    """
    chosen = hidden_states(loaded, batch).flatten(0, 1)[batch.answer_index]  # (N, H)
    return F.cross_entropy(loaded.head(chosen).float(), batch.targets, reduction="sum")


def step_loss(nll_sum: Tensor, batch: AnswerBatch, accumulate: int) -> Tensor:
    """This micro-batch's share of the optimizer step's mean over answer tokens.

    Lightning divides every micro-batch's loss by its own accumulation, in a last partial window too, and several
    processes average their gradients; multiplying by both here leaves exactly sum(nll) / sum(tokens) over the step,
    however its questions are laid out in batches and processes.

    Args:
        accumulate: Micro-batches in a full optimizer step, those of all processes.
    """
    return nll_sum * (accumulate / batch.step_label_tokens)

"""Liger's Triton kernels for norms, rotary embeddings and gated feed-forward layers (`model.use_liger_kernel`)."""

import sys
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from cyberlm.runtime.errors import ModelError, Problem

_ROTARY = "apply_rotary_pos_emb"
_plain_rotary: dict[ModuleType, Any] = {}
"""By the module of an architecture: its own function, which Liger replaces for every model of that architecture."""


def choose_kernels(causal: PreTrainedModel, *, liger: bool) -> None:
    """Lets a model that was just loaded onto a GPU compute with Liger's kernels, or with its own.

    Raises:
        ModelError: If Liger is not installed, or has no kernels for this model.
    """
    modeling = sys.modules[type(causal).__module__]
    if not liger:
        if modeling in _plain_rotary:
            setattr(modeling, _ROTARY, _plain_rotary.pop(modeling))
        return
    if not is_liger_kernel_available():
        raise ModelError(
            "Liger's kernels cannot be used: the package liger-kernel is not installed.",
            [Problem("model.use_liger_kernel=true", fix="model.use_liger_kernel=false")],
            "To install it, type: pip install 'cyberlm[liger]'",
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if causal.config.model_type not in KNOWN:  # transformers would change nothing and say nothing
        what = f"model.use_liger_kernel=true with a model of type {causal.config.model_type}"
        problem = Problem(what, ", ".join(sorted(KNOWN)), "model.use_liger_kernel=false")
        raise ModelError("Liger has no kernels for this model.", [problem])
    before = dict(vars(modeling))
    apply_liger_kernel(causal, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if _ROTARY in before:
        _plain_rotary.setdefault(modeling, before[_ROTARY])
    for name, value in before.items():
        if isinstance(value, type):  # Liger's classes are for this model, not for others that are loaded later
            setattr(modeling, name, value)

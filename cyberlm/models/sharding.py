"""FSDP2: a model whose weights, gradients and optimizer states are spread over processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from cyberlm.models.bases import LoadedModel


class Whole(nn.Module):
    """Runs what uses parts of a model within one call of the whole.

    FSDP2 gathers weights when a module is called. Training and scoring call the backbone and the output head one after
    the other; what belongs to neither a layer nor a part alone (tied embeddings) is gathered by this call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        return compute(*arguments)


def shard(loaded: LoadedModel, mesh: DeviceMesh) -> Callable[..., Any]:
    """Shards a loaded model in place: each decoder layer on its own, and the rest together.

    Returns:
        Calls a function with arguments; what uses the model's parts must be called through it, by all processes.
    """
    for layer in loaded.backbone.layers:  # type: ignore[union-attr]  # torch types modules' attributes
        fully_shard(layer, mesh=mesh)
    whole = Whole(loaded.model)
    fully_shard(whole, mesh=mesh)
    return whole.__call__


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The whole of each trained parameter of a sharded model, in every process; called by all of them."""
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    return {
        name: value for name, value in get_model_state_dict(model, options=options).items() if torch.is_tensor(value)
    }

"""FSDP2: a model whose weights, gradients and optimizer states are spread over processes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cyberlm.models.loaded import LoadedModel


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
    """Gathers each trained parameter of a sharded model, whole, in the host memory of every process.

    Called by all of them; the device holds one whole parameter at a time.
    """
    trained = ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).cpu() for name, p in trained}

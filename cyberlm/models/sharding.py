"""FSDP2: a model whose weights, gradients and optimizer states are spread over processes.

Each block is read, quantised where it is to be, and sharded before the next is read. What a method adds is sharded with
the block that it is in.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bitsandbytes.nn import Params4bit
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cyberlm.models.loaded import LoadedModel
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ModelError, Problem
from cyberlm.runtime.files import write_json

FILE_BYTES = 2**25
"""Of a saved model's file, or as much as its largest tensor. Rank 0's host holds one at a time, for a moment twice."""
M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 2**17
"""Name and default value of what glibc raises whenever a large tensor is freed."""

Attach = Callable[[LoadedModel], LoadedModel]


@dataclass(frozen=True)
class Sharding:
    """Settings by which a model is spread over the processes.

    Attributes:
        compute_dtype: Type that weights are gathered and computed in; None for the type that they are kept in.
        replicas: Groups of processes that hold a whole model each, spread within the group (HSDP).
        cpu_offload: Shards, their gradients and optimizer states are kept in host memory.
    """

    compute_dtype: torch.dtype | None = None
    replicas: int = 1
    cpu_offload: bool = False


class ShardedRoot(nn.Module):
    """Runs what uses parts of a model within one call of the whole.

    FSDP2 gathers weights when a module is called. Training and scoring call the backbone and the output head one after
    the other; what belongs to neither a layer nor a part alone (tied embeddings) is gathered by this call.

    Attributes:
        stays_whole: What was gathered by a call without gradients is kept for the next one (`equal_calls`).
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.stays_whole = False

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        return compute(*arguments)


def shard(
    bare: LoadedModel, attach: Attach, files: Mapping[str, Path], device: torch.device, sharding: Sharding
) -> LoadedModel:
    """Attaches what a method trains, then reads and shards a model: each decoder layer on its own, the rest together.

    Args:
        bare: Its parameters are on the meta device, its buffers are real.
        attach: Called while every parameter has its shape and device, but no memory: it must not read the base.
        files: Safetensors file of each tensor of the base, by its name.

    Raises:
        ModelError: If the files do not hold the model's tensors under its own names.
    """
    if device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
            # else glibc keeps freed memory: room for all the layers that are gathered one after the other
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    else:
        torch.cuda.set_device(device)  # collectives of Python objects go there
    names = _put_placeholders(bare, files, device)
    loaded = attach(bare)
    if not dist.is_initialized():  # one process can shard, too, as when it resumes what several began
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    size, replicas = dist.get_world_size(), sharding.replicas
    rows, names_of_dims = ((size,), None) if replicas == 1 else ((replicas, size // replicas), ("replica", "shard"))
    mesh = init_device_mesh(device.type, rows, mesh_dim_names=names_of_dims)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if sharding.cpu_offload else OffloadPolicy()
    spread = partial(fully_shard, mesh=mesh, offload_policy=offload)
    policy = MixedPrecisionPolicy(sharding.compute_dtype, torch.float32 if sharding.compute_dtype else None)
    embeddings = loaded.causal.get_input_embeddings()
    lists = (module for module in loaded.backbone.children() if isinstance(module, nn.ModuleList))
    blocks: list[nn.Module] = [*max(lists, key=len)]  # the decoder layers
    if embeddings.weight is not loaded.head.weight:
        blocks.append(embeddings)
    for block in blocks:
        _fill(block, names, files, device)
        spread(block, mp_policy=policy)
    root = ShardedRoot(loaded.model, device)
    _fill(root, names, files, device)
    # what the halves are called with (token ids, scores) keeps its types
    spread(root, mp_policy=replace(policy, cast_forward_inputs=False))
    loaded = replace(loaded, root=root)
    loaded.model.eval()
    with torch.no_grad():  # FSDP2 makes its buffers now: those that are made in inference mode cannot be trained with
        loaded.within(loaded.backbone, torch.zeros(1, 1, dtype=torch.long, device=device))
    return loaded


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with the module that holds it and its name there; a tied one as often as it is held."""
    for module in model.modules():
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield module, leaf, parameter


def _put_placeholders(bare: LoadedModel, files: Mapping[str, Path], device: torch.device) -> dict[nn.Parameter, str]:
    """Gives every parameter its device, and one number of memory in all; returns the names of the new ones."""
    causal = bare.causal
    names: dict[nn.Parameter, str] = {}
    for name, parameter in causal.named_parameters(remove_duplicate=False):
        if parameter not in names or name in files:  # of tied ones, files hold either
            names[parameter] = name
    buffers = causal.state_dict().keys() - dict(causal.named_parameters(remove_duplicate=False)).keys()
    lacking = sorted({*names.values(), *buffers} - files.keys()) or sorted(buffers)
    if lacking:
        what = f"{bare.name}: {lacking[0]} ({len(lacking)} of {len(names)} tensors) cannot be read on its own"
        allowed = "safetensors files with the names of the model's own parameters"
        raise ModelError("The model cannot be sharded.", [Problem(what, allowed, "trainer.strategy=ddp")])
    for module in causal.modules():
        for leaf, buffer in module._buffers.items():
            module._buffers[leaf] = buffer if buffer is None else buffer.to(device)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module, leaf, parameter in _parameters(causal):
        if parameter not in made:
            shape = torch.empty(1, dtype=parameter.dtype, device=device).expand(parameter.shape)
            made[parameter] = _like(parameter, shape)
        module._parameters[leaf] = made[parameter]
    return {made[parameter]: name for parameter, name in names.items()}


def _like(parameter: nn.Parameter, data: Tensor) -> nn.Parameter:
    """A parameter of the same kind with other data; a 4-bit one is quantised when it is moved to its device."""
    if isinstance(parameter, Params4bit):
        return Params4bit(data, requires_grad=False, **vars(parameter))
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


def _fill(block: nn.Module, names: Mapping[nn.Parameter, str], files: Mapping[str, Path], device: torch.device) -> None:
    """Reads each placeholder's tensor; what a method has added is made the same in all processes, that of rank 0."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module, leaf, parameter in _parameters(block):
        if isinstance(parameter, DTensor):  # sharded already
            continue
        if parameter not in names:
            if distributed.world_size() > 1:
                dist.broadcast(parameter.data, src=0)
            continue
        if parameter not in made:
            name = names[parameter]
            with safe_open(files[name], framework="pt") as tensors:
                value = tensors.get_tensor(name)
            if value.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, the model has {tuple(parameter.shape)}")
            own = _like(parameter, value.to(device, parameter.dtype))
            made[parameter] = own.to(device)  # type: ignore[assignment]  # quantises, and stays a parameter
        module._parameters[leaf] = made[parameter]


@contextlib.contextmanager
def equal_calls(loaded: LoadedModel) -> Iterator[None]:
    """Lets the processes of a sharded model call its backbone as often as each needs, always in `LoadedModel.within`.

    A layer's weights are gathered by all processes at once: before each call they agree that one comes, and those that
    are through with their own work take part with a token that counts for nothing. The head is gathered once.
    """
    if not loaded.sharded:
        yield
        return

    def help_others() -> None:
        filler = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
        while distributed.world_size() > 1 and distributed.all_reduce(0)[0]:
            loaded.backbone(input_ids=filler, use_cache=False)

    def announce(*_: Any) -> None:
        distributed.all_reduce(1)

    hook = loaded.backbone.register_forward_pre_hook(announce)
    loaded.root.stays_whole = True
    try:
        yield
    finally:
        hook.remove()
    loaded.within(help_others)
    loaded.root.stays_whole = False
    loaded.root.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the processes; called by all of them."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


@contextlib.contextmanager
def full_tensors(model: nn.Module) -> Iterator[None]:
    """Puts whole tensors, on rank 0's host, in the place of sharded ones that are trained; called by all processes."""
    kept = [slot for slot in _parameters(model) if isinstance(slot[2], DTensor) and slot[2].requires_grad]
    for module, leaf, parameter in kept:
        full = full_tensor(parameter.detach())
        if distributed.rank() == 0:
            module._parameters[leaf] = nn.Parameter(full.cpu())
    try:
        yield
    finally:
        for module, leaf, parameter in kept:
            module._parameters[leaf] = parameter


def save_sharded(causal: PreTrainedModel, folder: Path) -> None:
    """Writes a sharded model as `save_pretrained` would: rank 0 is given one tensor after the other, and holds no more
    than a file of them. Called by all processes."""
    tensors = dict(causal.named_parameters())
    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    largest = max(shape.nbytes for shape in shapes.values())
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=max(FILE_BYTES, largest))
    if distributed.rank() == 0:
        causal.save_pretrained(str(folder), state_dict={})
    for file, names in split.filename_to_tensors.items():
        held = {}
        for name in names:
            full = full_tensor(tensors[name].detach())
            if distributed.rank() == 0:
                held[name] = full.cpu().contiguous()
        if distributed.rank() == 0:
            save_file(held, folder / file, {"format": "pt"})
    if split.is_sharded and distributed.rank() == 0:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)

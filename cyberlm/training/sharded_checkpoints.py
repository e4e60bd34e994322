"""Checkpoints of a sharded model: folders to which each process writes its shards of what trains, with SHA-256 hashes.

The shards are safetensors files as torch.distributed.checkpoint writes them, and any number of processes reads them.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

from cyberlm.runtime import distributed
from cyberlm.runtime.files import new_folder
from cyberlm.training.checkpointing import STATE, AtomicCheckpointIO, not_written, read_checkpoint, seal

FILE_BYTES = 2**27
"""Of a shard's file, about: so much is copied to host memory at a time."""
OPTIMIZER = "optimizer."
"""Before the name of a parameter, in the name of a tensor of its optimizer state."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2, with these checkpoints. Every method is called by all processes."""

    def model_to_device(self) -> None:
        """Moves the metrics alone: the model stays where it was loaded, which may be host memory."""
        assert self.lightning_module is not None
        for name, part in self.lightning_module.named_children():
            if name != "model":
                part.to(self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return trained_shards(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.lightning_module is not None
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.lightning_module.named_parameters()}
        state = {
            f"{OPTIMIZER}{names[parameter]}.{key}": value
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        return {"state": state, "param_groups": groups}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Writes a folder atomically.

        Raises:
            RunError: If a process cannot write, a full disk included.
        """
        path, tensors = Path(filepath), checkpoint.pop("state_dict")
        for state in checkpoint.get("optimizer_states", []):
            tensors |= state.pop("state")
        first = distributed.rank() == 0
        try:
            with new_folder(path, existing="replace") if first else contextlib.nullcontext() as made:
                building = distributed.broadcast(made)
                assert building is not None
                files, size = {}, 0  # number, from 1, of the file that each process writes its part of a tensor to
                for name, tensor in tensors.items():
                    size += tensor.nbytes // distributed.world_size()
                    files[name] = 1 + size // FILE_BYTES
                dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(building), files, save_distributed=True))
                if first:
                    AtomicCheckpointIO().save_checkpoint(checkpoint, building / STATE)
                seal(building)
        except CheckpointException as error:
            failed = next(iter(error.failures.values()))[0]
            raise not_written(path, failed if isinstance(failed, OSError) else OSError(str(failed))) from error
        except OSError as error:
            raise not_written(path, error) from error

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads each process's shards into the model and its optimizer; returns the rest."""
        checkpoint = read_checkpoint(Path(checkpoint_path))
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        tensors = trained_shards(self.lightning_module)
        (optimizer,), (saved,) = self.optimizers, checkpoint["optimizer_states"]
        for name, stored in checkpoint["optimizer_shapes"].items():
            owner, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            parameter = parameters[owner]
            spread = stored.shape == parameter.shape
            zeros = torch.zeros_like(stored, device=parameter.device)
            tensors[name] = torch.zeros_like(parameter, dtype=stored.dtype) if spread else zeros
            optimizer.state[parameter][key] = tensors[name]
        for group, values in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group.update(values)
        load_shards(Path(checkpoint_path), tensors)
        return checkpoint


def trained_shards(module: nn.Module) -> dict[str, Tensor]:
    """Each trained parameter by name, as this process has it."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors, which may be spread over the processes, from a checkpoint that any number of them has written."""
    dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))

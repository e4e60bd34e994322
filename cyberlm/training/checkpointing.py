"""Checkpoints: written atomically, and read only where their checksums hold.

A checkpoint is what `torch.save` writes: a zip archive that has a CRC-32 of each tensor. `torch.load` opens it without
cyberlm. That of a sharded model is a folder (`cyberlm.training.sharded_checkpoints`) with the SHA-256 of each file.
"""

import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from cyberlm.runtime import distributed
from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import read_json, sha256_of, write_atomic, write_json
from cyberlm.runtime.signals import resume_command

CHECKPOINTS = "checkpoints"
BEST_NAME = "best.ckpt"
STEP_NAME = "step_{:06d}.ckpt"
ORIGIN = "cyberlm"
"""Key, in a checkpoint, of what belongs to the run rather than to Lightning."""
STATE, MANIFEST = "state.ckpt", "manifest.json"
"""Files of a sharded checkpoint: all that is no tensor of the model or the optimizer, and the SHA-256 of each file."""

log = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of tensors and plain values, mapped into memory: only what is used of it is read.

    Of a sharded one, `state_dict` and `optimizer_shapes` hold tensors on the meta device, with their full shapes.
    """
    file = path / STATE if path.is_dir() else path
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if path.is_dir():
        checkpoint |= {"state_dict": {}, "optimizer_shapes": {}}
        shards: dict[str, Any] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        for name, stored in shards.items():
            part = "optimizer_shapes" if name.startswith("optimizer.") else "state_dict"
            checkpoint[part][name] = torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
    return checkpoint


def seal(folder: Path) -> None:
    """Writes the SHA-256 of each file of a folder beside them; called by all processes, which hash a share each."""
    names = distributed.broadcast(sorted(file.name for file in folder.iterdir()))
    digests = [sha256_of([folder / names[row]]) for row in distributed.rows_of_rank(len(names))]
    found = distributed.gather_rows(digests, len(names))
    if distributed.rank() == 0:
        write_json(folder / MANIFEST, dict(zip(names, found, strict=True)))


class _Stream:
    """A file for `torch.save`, which cannot handle failed writes: the first error is kept, the rest only counted."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.count += len(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """torch asks for it; `write_atomic` does it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to checkpoint files: a temporary file in the same folder, synced, then renamed."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            RunError: If it cannot be written, a full disk included; an earlier file of this name is left as it is.
        """
        size = 0

        def write(file: BinaryIO) -> None:
            nonlocal size
            stream = _Stream(file)
            torch.save(checkpoint, stream)  # type: ignore[arg-type]  # torch needs write and flush alone
            size = stream.count
            if stream.error is not None:
                raise stream.error

        try:
            write_atomic(Path(path), write)
        except OSError as error:
            raise not_written(Path(path), error, size) from error


def not_written(path: Path, error: OSError, size: int = 0) -> RunError:
    """The screen for a checkpoint that could not be written: the free space, and the checkpoint to resume from."""
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
    needed = f"{size:,} bytes needed, " if size else ""
    good = newest_intact(path.parent)
    kept = f"The last good checkpoint stays: {good}." if good else "There is no earlier checkpoint."
    return RunError(
        f"A checkpoint could not be written: {error.strerror or error}.",
        [Problem(f"{path}: {needed}{free:,} bytes free there", "room for the new file beside the ones that are kept")],
        f"{kept} When there is room, type:\n{resume_command(path.parent.parent)}",
    )


def damage(path: Path) -> str:
    """Reason why a checkpoint cannot be used; empty where it is intact. Reads all of the file."""
    if path.is_dir():
        return _damaged_shard(path)
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        if part is None:
            read_checkpoint(path)["state_dict"]
    except Exception as error:  # zipfile and torch raise a dozen types
        first = (str(error).splitlines() or [""])[0].split(". ")[0]
        return f"it is not a whole checkpoint of tensors and plain values ({type(error).__name__}: {first})"
    return f"its bytes are not those that were written (checksum of {part})" if part else ""


def _damaged_shard(folder: Path) -> str:
    """`damage` of a sharded checkpoint: a file that is missing, or is not as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        for name, digest in manifest.items():
            if sha256_of([folder / name]) != digest:
                return f"its bytes are not those that were written (SHA-256 of {name})"
    except (OSError, RunError) as error:
        return f"it is not a whole checkpoint ({' '.join(str(error).split())})"
    return ""


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints with a step in their name, the newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def newest_intact(folder: Path) -> Path | None:
    return next((file for file in _by_step(folder) if not damage(file)), None)


def resume_point(folder: Path) -> Path | None:
    """The newest intact checkpoint; a damaged one is renamed, with a warning.

    Args:
        folder: Of the run. No other process may be writing there.

    Returns:
        None where training has to start from its beginning: no checkpoint, or the best weights so far are lost.
    """
    checkpoints = folder / CHECKPOINTS
    for aside in checkpoints.glob(".*.ckpt-*.old"):  # killed while a folder was replaced
        place = checkpoints / aside.name.removeprefix(".").rpartition("-")[0]
        if not place.exists():
            aside.replace(place)
    for leftover in (*checkpoints.glob("*.tmp"), *checkpoints.glob(".*.ckpt-*")):  # a write that was killed
        remove(leftover)
    for file in sorted(checkpoints.glob("*.ckpt")):
        if wrong := damage(file):
            file.replace(file.with_name(f"{file.name}.damaged"))
            log.warning("%s is damaged: %s. It is set aside as %s.damaged.", file, wrong, file.name)
    intact = _by_step(checkpoints)
    if not (checkpoints / BEST_NAME).exists():
        usable = [file for file in intact if not _had_best(file)]
        if len(usable) < len(intact):
            log.warning("The best weights so far are lost with best.ckpt: what came after them is trained again.")
        intact = usable
    return intact[0] if intact else None


def _had_best(file: Path) -> bool:
    """True where validation had already chosen weights (best.ckpt) when this checkpoint was written."""
    states = read_checkpoint(file)["callbacks"].items()
    (best,) = (state for name, state in states if name.startswith("BestWeights"))
    return bool(best.get("figures") or best.get("best_model_path"))  # the latter in older runs


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` numbered checkpoints."""
    for path in _by_step(folder)[keep:]:
        remove(path)


def remove(path: Path) -> None:
    """Deletes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Checkpoint files: written whole or not at all, and read only where their checksums hold.

A checkpoint is what `torch.save` writes: a zip archive that has a CRC-32 of each tensor. `torch.load` opens it without
cyberlm.
"""

import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.files import write_whole
from cyberlm.runtime.signals import resume_command

CHECKPOINTS = "checkpoints"
BEST_NAME = "best.ckpt"
STEP_NAME = "step_{:06d}.ckpt"
ORIGIN = "cyberlm"
"""Key, in a checkpoint, of what belongs to the run rather than to Lightning."""

log = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of tensors and plain values, mapped into memory: only what is used of it is read."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


class _Stream:
    """A file for `torch.save`, which cannot bear a write that fails: the first error is kept, the rest only counted."""

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
        """torch asks for it; `write_whole` does it."""


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
            write_whole(Path(path), write)
        except OSError as error:
            raise _not_written(Path(path), error, size) from error


def _not_written(path: Path, error: OSError, size: int) -> RunError:
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
    needed = f"{size:,} bytes needed, " if size else ""
    good = newest_whole(path.parent)
    kept = f"The last good checkpoint stays: {good}." if good else "There is no earlier checkpoint."
    return RunError(
        f"A checkpoint could not be written: {error.strerror or error}.",
        [Problem(f"{path}: {needed}{free:,} bytes free there", "room for the new file beside the ones that are kept")],
        f"{kept} When there is room, type:\n{resume_command(path.parent.parent)}",
    )


def damage(path: Path) -> str:
    """Reason why a checkpoint cannot be used; empty where it is whole. Reads all of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        if part is None:
            read_checkpoint(path)["state_dict"]
    except Exception as error:  # zipfile and torch raise what they meet: a dozen types
        first = (str(error).splitlines() or [""])[0].split(". ")[0]
        return f"it is not a whole checkpoint of tensors and plain values ({type(error).__name__}: {first})"
    return f"its bytes are not those that were written (checksum of {part})" if part else ""


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints with a step in their name, the newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def newest_whole(folder: Path) -> Path | None:
    return next((file for file in _by_step(folder) if not damage(file)), None)


def resume_point(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is set aside under another name, with a warning.

    Args:
        folder: Of the run. No other process may be writing there.

    Returns:
        None where training has to start from its beginning: no checkpoint, or the best weights so far are lost.
    """
    checkpoints = folder / CHECKPOINTS
    for leftover in checkpoints.glob("*.tmp"):  # a write that was killed
        leftover.unlink()
    for file in sorted(checkpoints.glob("*.ckpt")):
        if wrong := damage(file):
            file.replace(file.with_name(f"{file.name}.damaged"))
            log.warning("%s is damaged: %s. It is set aside as %s.damaged.", file, wrong, file.name)
    whole = _by_step(checkpoints)
    if not (checkpoints / BEST_NAME).is_file():
        usable = [file for file in whole if not _had_best(file)]
        if len(usable) < len(whole):
            log.warning("The best weights so far are lost with best.ckpt: what came after them is trained again.")
        whole = usable
    return whole[0] if whole else None


def _had_best(file: Path) -> bool:
    """True where validation had already chosen weights, which lie in best.ckpt, when this checkpoint was written."""
    states = read_checkpoint(file)["callbacks"].items()
    (best,) = (state for name, state in states if name.startswith("BestWeights"))
    return bool(best.get("figures") or best.get("best_model_path"))  # the latter in older runs


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` numbered checkpoints."""
    for path in _by_step(folder)[keep:]:
        path.unlink(missing_ok=True)

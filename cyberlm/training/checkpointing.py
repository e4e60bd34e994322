"""Checkpoint files: written whole or not at all, sealed with a hash, and read only where the seal holds.

A checkpoint is what `torch.save` writes, a zip archive, whose comment holds the SHA-256 of all that stands before it.
`torch.load` opens it like any other; a file that was cut off, or of which one bit has turned, is told from a whole one.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cyberlm.runtime.errors import Problem, RunError
from cyberlm.runtime.signals import resume_command

CHECKPOINTS = "checkpoints"
BEST = "best"
STEP_NAME = "step_{:06d}.ckpt"
ORIGIN = "cyberlm"
"""Key, in a checkpoint, of what belongs to the run rather than to Lightning."""

_SEAL = b"cyberlm sha256="
_DIGEST_BYTES = 64
_SEAL_BYTES = len(_SEAL) + _DIGEST_BYTES
_COUNT_BYTES = 2
"""Of the length of a zip archive's comment, the archive's last field."""
_READ_BYTES = 1 << 22


class _Sealed:
    """Writes through to a file and hashes; after a failed write it only counts, so that torch ends in peace.

    The last two bytes are held back: they are the length of the archive's comment, which `seal` sets.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.hash = hashlib.sha256()
        self.held = b""
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.count += len(data)
        together = self.held + data
        self.held = together[-_COUNT_BYTES:]
        self._put(together[:-_COUNT_BYTES])
        return len(data)

    def flush(self) -> None:
        """torch asks for it; `seal` is followed by fsync."""

    def seal(self) -> None:
        self._put(_SEAL_BYTES.to_bytes(_COUNT_BYTES, "little"))
        self._put(_SEAL)
        self._put(self.hash.hexdigest().encode(), hashed=False)
        self.count += _SEAL_BYTES

    def _put(self, data: bytes, hashed: bool = True) -> None:
        if self.error is not None:
            return
        if hashed:
            self.hash.update(data)
        try:
            self.stream.write(data)
        except OSError as error:
            self.error = error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of tensors and plain values, mapped into memory: only what is used of it is read."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


class SealedCheckpoints(TorchCheckpointIO):
    """Lightning's way to checkpoint files: a temporary file in the same folder, synced, sealed, renamed."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            RunError: If it cannot be written, a full disk included; what stood under this name before still does.
        """
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        sealed: _Sealed | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb", buffering=0) as stream:
                sealed = _Sealed(stream)
                torch.save(checkpoint, sealed)  # type: ignore[arg-type]  # torch needs write and flush alone
                sealed.seal()
                if sealed.error is not None:
                    raise sealed.error
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _not_written(path, error, sealed.count if sealed else None) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(path: Path, error: OSError, needed: int | None) -> RunError:
    bytes_needed = f"{needed:,} bytes needed" if needed is not None else "it could not be opened"
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} bytes free there"
    except OSError:
        free = "how much is free there is not known"
    good = [file.name for file in _numbered(path.parent) if not damage(file)]
    kept = f"The last good checkpoint stays: {path.parent / good[0]}." if good else "There is no earlier checkpoint."
    return RunError(
        f"A checkpoint could not be written: {error.strerror or error}.",
        [Problem(f"{path}: {bytes_needed}, {free}", "room for the new file beside the ones that are kept")],
        f"{kept} When there is room, type:\n{resume_command(path.parent.parent)}",
    )


def damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty where its seal holds. Reads the whole file."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(size - _SEAL_BYTES, 0))
            seal, digest = stream.read(len(_SEAL)), stream.read().decode("ascii", "replace")
            if seal != _SEAL or len(digest) != _DIGEST_BYTES:
                return f"its end is missing ({size:,} bytes are there)"
            hashed = hashlib.sha256()
            stream.seek(0)
            left = size - _DIGEST_BYTES
            while left:
                data = stream.read(min(left, _READ_BYTES))
                hashed.update(data)
                left -= len(data)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return "" if hashed.hexdigest() == digest else "its bytes are not those that were written (SHA-256 differs)"


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints with a step in their name, the newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def resume_point(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; what is not is set aside under another name, and said.

    Args:
        folder: Of the run. No other process may be writing there.
        say: Called with a line for each file that is not used.

    Returns:
        None where training has to start from its beginning: no checkpoint, or the best weights so far are lost.
    """
    checkpoints = folder / CHECKPOINTS
    for leftover in checkpoints.glob("*.tmp"):  # a write that was killed
        leftover.unlink()
    wrong = {file: damage(file) for file in checkpoints.glob("*.ckpt")}
    whole = [file for file in _numbered(checkpoints) if not wrong[file]]
    for file in sorted(file for file in wrong if wrong[file]):
        file.replace(file.with_name(f"{file.name}.damaged"))
        say(f"{file} is damaged: {wrong[file]}. It is set aside as {file.name}.damaged.")
    if not (checkpoints / f"{BEST}.ckpt").is_file():
        usable = [file for file in whole if not _had_best(file)]
        if len(usable) < len(whole):
            say(f"The best weights so far are lost with {BEST}.ckpt: what came after them is trained again.")
        whole = usable
    return whole[0] if whole else None


def _had_best(file: Path) -> bool:
    """Whether validation had already chosen weights, which lie in best.ckpt, when this checkpoint was written."""
    callbacks = read_checkpoint(file)["callbacks"]
    return any(state.get("best_model_path") for state in callbacks.values() if isinstance(state, dict))


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` numbered checkpoints."""
    for path in _numbered(folder)[keep:]:
        path.unlink(missing_ok=True)


def newest_settings(folder: Path) -> dict[str, str] | None:
    """The configuration by dotted key that the newest whole checkpoint of a run holds; None where there is none."""
    for file in _numbered(folder / CHECKPOINTS):
        if not damage(file):
            settings = read_checkpoint(file)[ORIGIN]["settings"]
            assert isinstance(settings, dict)
            return settings
    return None

"""Atomic writes of files and folders, JSON read with errors that name the file, and hashes of files."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cyberlm.runtime.errors import Problem, RunError


def write_json(path: Path, value: Any) -> None:
    """Writes a file of indented JSON atomically; keys keep their order.

    Raises:
        RunError: If a number is infinite or not a number: JSON has no such thing.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RunError(f"{path} cannot be written.", [Problem(str(error), allowed="finite numbers")]) from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file, then renames it: a reader, a crash or a power cut never finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_folder(path: Path, *, existing: Literal["refuse", "keep", "replace"] = "refuse") -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes `path` if nothing fails, and is deleted otherwise.

    Args:
        existing: What happens to a folder at `path` once the new one is complete; one that is kept is taken for equal.

    Raises:
        OSError: If that folder is to be replaced and cannot be moved.
        RunError: If there is one that is neither to be kept nor replaced.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp's folders are for one user alone
        if existing == "replace" and path.is_dir():
            aside = draft.with_name(f"{draft.name}.old")  # a kill leaves one of the two, here or under this name
            path.replace(aside)
            draft.replace(path)
            shutil.rmtree(aside, ignore_errors=True)
            return
        if existing != "replace" and path.exists():
            if existing == "keep":
                return
            raise RunError(f"{path} is there already.", [Problem("it was made meanwhile", "a folder of its own")])
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def read_json(path: Path, hint: str = "") -> Any:
    """Reads a file that `write_json` wrote."""
    return parse_json(read_text(path, hint), str(path), hint)


def read_text(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read.", [Problem(error.strerror or str(error))], hint) from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} cannot be read.", [Problem("it is not text", allowed="JSON in UTF-8")], hint) from error


def parse_json(text: str, where: str, hint: str) -> Any:
    """JSON to values; neither torn text nor NaN is accepted."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise RunError(f"{where} cannot be read.", [Problem(str(error), allowed="complete JSON")], hint) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()

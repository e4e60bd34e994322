"""Files of weights from outside, looked at before a library opens them: counts and sizes in a GGUF are only claims.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (magic, version, counts, metadata, tensor list, data).
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from cyberlm.runtime.errors import ModelError, Problem, lfs_problems

VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
"""Of one entry of the tensor list: length of its name, count of dimensions, one of them, type, place."""
LEAST_KEY_BYTES = 8 + 4 + 1
MOST_STRINGS = 2_000_000
LARGEST_NUMBER = 1 << 31
"""Of a whole number in the metadata: none that is real comes near, and loaders allocate by some."""

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class _Torn(Exception):
    """Why a file is not what it says."""


@dataclass
class _Header:
    """What the file claims; an array is kept as its length, and as its strings nowhere."""

    keys: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def check_gguf(path: Path) -> dict[str, Any]:
    """Refuses a file that is torn, or whose claims do not fit its size and its tensors.

    Returns:
        Its metadata; an array is given as its length.

    Raises:
        ModelError: With the first thing that does not fit.
    """
    pointers = lfs_problems([path])
    if pointers:
        raise ModelError(f"{path} is not a GGUF file that can be read:", pointers)
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _read(_Reader(data))
        _check_claims(header)
    except (OSError, ValueError, struct.error, _Torn) as error:
        raise ModelError(
            f"{path} is not a GGUF file that can be read:",
            [Problem(str(error) or type(error).__name__, "a whole GGUF file, version 2 or 3, of a Llama-like model")],
            "Download it again, or take a folder that save_pretrained wrote: model=local model.path=FOLDER",
        ) from error
    return header.keys


class _Reader:
    """Reads on from a place, never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place, self.size = data, 0, len(data)

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self.data[self.place - count : self.place]

    def skip(self, count: int) -> None:
        if count > self.size - self.place:
            raise _Torn(f"byte {self.place:,} claims {count:,} more bytes, and the file ends at {self.size:,}")
        self.place += count

    def number(self, format_: str) -> Any:
        return struct.unpack(format_, self.take(struct.calcsize(format_)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of the metadata; of an array, its length."""
        if kind in _FORMATS:
            return self.number(_FORMATS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth:
            raise _Torn(f"byte {self.place:,} holds a value of the unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _FORMATS:
            self.skip(count * struct.calcsize(_FORMATS[inner]))
        else:
            if count > MOST_STRINGS or count * 8 > self.size - self.place:
                raise _Torn(f"byte {self.place:,} claims {count:,} strings, more than the file has room for")
            for _ in range(count):
                self.value(inner, depth + 1)
        return count


def _read(reader: _Reader) -> _Header:
    if reader.take(4) != b"GGUF":
        raise _Torn("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in VERSIONS:
        raise _Torn(f"its version is {version}")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    for what, count, least, most in (
        ("tensors", tensors, LEAST_TENSOR_BYTES, MOST_TENSORS),
        ("keys", keys, LEAST_KEY_BYTES, MOST_KEYS),
    ):
        if count > most or count * least > reader.size:
            raise _Torn(f"it claims {count:,} {what}, and has {reader.size:,} bytes")
    header = _Header()
    for _ in range(keys):
        name = reader.string()
        if name in header.keys:
            raise _Torn(f"the key {name!a} stands twice")
        header.keys[name] = reader.value(reader.number("<I"))
    places = list(_tensors(reader, tensors, header))
    _check_places(reader, header, places)
    return header


def _tensors(reader: _Reader, count: int, header: _Header) -> Iterator[tuple[str, int, int]]:
    """Name, place and bytes of each tensor."""
    for _ in range(count):
        name, dimensions = reader.string(), reader.number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Torn(f"the tensor {name!a} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
        kind, place = reader.number("<I"), reader.number("<Q")
        if kind not in {item.value for item in GGML_QUANT_SIZES}:
            raise _Torn(f"the tensor {name!a} is of the unknown type {kind}")
        if name in header.shapes:
            raise _Torn(f"the tensor {name!a} stands twice")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not all(shape) or shape[0] % block:
            raise _Torn(f"the tensor {name!a} has the shape {shape}")
        header.shapes[name] = shape
        yield name, place, prod(shape) // block * size


def _check_places(reader: _Reader, header: _Header, places: list[tuple[str, int, int]]) -> None:
    alignment = header.keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise _Torn(f"general.alignment is {alignment!r}")
    start = -(-reader.place // alignment) * alignment
    for name, place, size in places:
        if place % alignment or start + place + size > reader.size:
            raise _Torn(f"the tensor {name!a} claims {size:,} bytes at {start + place:,} of {reader.size:,}")


def _check_claims(header: _Header) -> None:
    """Numbers that loaders allocate by must be those of the tensors."""
    keys, shapes = header.keys, header.shapes
    parts = keys.get("split.count", 1)
    if parts != 1:
        raise _Torn(
            f"it is part {keys.get('split.no', 0) + 1} of {parts} of a split model; llama.cpp joins them: "
            "llama-gguf-split --merge FIRST_PART OUT.gguf"
        )
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _Torn("it does not say its architecture (general.architecture)")
    for name, value in keys.items():
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise _Torn(f"{name} is {value:,}")
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise _Torn("it has no embedding (token_embd.weight)")
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blk.")}
    expected = {
        f"{architecture}.embedding_length": embedding[0],
        f"{architecture}.block_count": len(blocks),
        f"{architecture}.feed_forward_length": shapes.get("blk.0.ffn_up.weight", (0, None))[1],
        f"{architecture}.vocab_size": embedding[1],
        "tokenizer.ggml.tokens": embedding[1],
    }
    for name, right in expected.items():
        found = keys.get(name)
        if found is None and name.endswith(("embedding_length", "block_count", "tokens")):
            raise _Torn(f"it does not say {name}")
        if found is not None and right is not None and found != right:
            raise _Torn(f"{name} is {found!r}, its tensors say {right:,}")
    for name in ("attention.head_count", "attention.head_count_kv", "rope.dimension_count"):
        found = keys.get(f"{architecture}.{name}")
        if found is not None and not (isinstance(found, int) and 1 <= found <= embedding[0]):
            raise _Torn(f"{architecture}.{name} is {found!r}")


def check_fetched(folder: Path) -> None:
    """Refuses a folder that holds Git LFS pointers in place of files.

    Raises:
        ModelError: With every such file.
    """
    pointers = lfs_problems(file for file in sorted(folder.iterdir()) if file.is_file())
    if pointers:
        raise ModelError(f"Files of {folder} have not been fetched:", pointers)


def lacking(folder: Path) -> str:
    """What makes a folder no model's; pickled weights are named: opening them would run what is in them."""
    pickled = pickled_weights(folder)
    if pickled:
        return f"it holds {', '.join(pickled)}: pickled weights can run code, and are never opened"
    missing = [name for name in ("config.json", "*.safetensors") if not list(folder.glob(name))]
    return f"there is no {' and no '.join(missing)} in it"


def pickled_weights(folder: Path) -> list[str]:
    return sorted(file.name for end in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for file in folder.glob(end))

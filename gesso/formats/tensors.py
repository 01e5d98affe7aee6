"""safetensors files: equal arrays and metadata give equal bytes, and a damaged file is named, not half read.

The library's own writer orders metadata by a randomly seeded hash map, so two runs give two files, and it makes them
mode 0600. The format is an unsigned 64-bit little-endian header length, a JSON header padded with spaces to a multiple
of 8, and the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gesso.arrays import Array
from gesso.errors import StorageError
from gesso.storage import guard, replacing

_CODES = {
    np.dtype(kind).name: code
    for kind, code in (
        ("bool", "BOOL"), ("u1", "U8"), ("i1", "I8"), ("u2", "U16"), ("i2", "I16"), ("f2", "F16"),
        ("u4", "U32"), ("i4", "I32"), ("f4", "F32"), ("u8", "U64"), ("i8", "I64"), ("f8", "F64"),
    )
}  # fmt: skip
_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
_MOST_DIMS = 32


Writer = Callable[[Path], object]
"""What writes one file at the path that it is given. A `Sized` one also tells its bytes beforehand."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A writer with the bytes of the tensors that it will write."""

    write: Writer
    nbytes: int

    def __call__(self, path: Path) -> object:
        return self.write(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor in a file: safetensors' type code ("F32"), its shape, and where its bytes lie in the file."""

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file holds, read without its tensors."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int
    """Where the tensors' bytes begin."""
    stop: int
    """Where the file ends."""


def save(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write `arrays` of any shape to `path`, which keeps its old content until the new is whole and on the disk.

    The bytes depend on the names, arrays and metadata alone, not on their order. Raises StorageError when the disk
    refuses, TypeError for a type of number that safetensors does not have.
    """
    # Widest first, so that every tensor starts at a multiple of its own width.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    listing: dict[str, Any] = {}
    at = 0
    for name in order:
        code = _CODES.get(arrays[name].dtype.newbyteorder("=").name)
        if code is None:
            raise TypeError(f"{name}: safetensors has no type for numpy's {arrays[name].dtype}")
        listing[name] = {
            "dtype": code,
            "shape": list(arrays[name].shape),
            "data_offsets": [at, at + arrays[name].nbytes],
        }
        at += arrays[name].nbytes
    if metadata:
        listing = {"__metadata__": dict(sorted(metadata.items())), **listing}
    head = json.dumps(listing, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with guard(path.parent, what=path.name, needed=8 + len(head) + at), replacing(path) as sink:
        sink.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            plain = np.ascontiguousarray(arrays[name])
            if plain.dtype.byteorder == ">" or (plain.dtype.byteorder == "=" and sys.byteorder == "big"):
                plain = plain.astype(plain.dtype.newbyteorder("<"))
            sink.write(plain.reshape(-1).view(np.uint8).data)


def writer(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Sized:
    """`save` for a checkpoint, which chooses the path."""
    write = partial(save, arrays=arrays, metadata={"format": "pt"} if metadata is None else metadata)
    return Sized(write, nbytes(arrays))


def nbytes(arrays: Mapping[str, Array]) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())


def header(path: Path) -> Header:
    """Names, types, shapes and metadata of a file; raises StorageError for one that is damaged or not safetensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise _damaged(path, f"its header would be {length} bytes of a file of {size}")
            text = data.read(length)
        listing = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(listing, dict):
            raise ValueError("its header is no JSON object")
        metadata = listing.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts by name")
        base = 8 + length
        tensors = {
            name: Entry(
                code=str(entry["dtype"]),
                shape=_whole(entry["shape"]),
                start=base + _whole(entry["data_offsets"])[0],
                stop=base + _whole(entry["data_offsets"])[1],
            )
            for name, entry in listing.items()
        }
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    for name, entry in tensors.items():
        if not base <= entry.start <= entry.stop <= size:
            raise _damaged(path, f'tensor "{name}" lies outside the file, which may be cut off')
    return Header(tensors=tensors, metadata=metadata, start=base, stop=size)


def load(path: Path, *, finite: bool = False, widen: bool = False) -> dict[str, Array]:
    """Every tensor of a file by name, in the shapes and types stored.

    finite: refuse a tensor that holds a NaN or an infinity. widen: give float16 and bfloat16 as float32 (exact), which
    bfloat16 needs, as numpy has no such type. Raises StorageError naming the file.
    """
    entries = header(path).tensors
    arrays: dict[str, Array] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name, entry in entries.items():
                if entry.code == "BF16":
                    arrays[name] = _bfloat16(path, name, entry, widen=widen)
                else:
                    value = file.get_tensor(name)
                    arrays[name] = value.astype(np.float32) if widen and entry.code == "F16" else value
    except (SafetensorError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if finite:
        for name, value in arrays.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise StorageError(
                    f'tensor "{name}" holds numbers that are not finite',
                    where=str(path),
                    todo="use an earlier checkpoint, or fetch the file again",
                )
    return arrays


def _bfloat16(path: Path, name: str, entry: Entry, *, widen: bool) -> Array:
    if not widen:
        raise StorageError(f'tensor "{name}" is bfloat16, which must be read as float32 here', where=str(path))
    raw = np.fromfile(path, dtype="<u2", count=(entry.stop - entry.start) // 2, offset=entry.start)
    # A bfloat16 is the upper half of a float32.
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)


def _whole(numbers: Any) -> tuple[int, ...]:
    """A list of whole numbers, as shapes and offsets are: not 2.7, "2" or true."""
    if not isinstance(numbers, list) or len(numbers) > _MOST_DIMS:
        raise ValueError(f"a shape is no list of at most {_MOST_DIMS} numbers")
    if not all(type(number) is int for number in numbers):
        raise ValueError("a shape or an offset is not of whole numbers")
    return tuple(numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'the name "{next(name for name in names if names.count(name) > 1)}" is there twice')
    return found


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"this is not a whole safetensors file: {why}",
        where=str(path),
        todo="fetch or export it again, or use an earlier checkpoint",
    )

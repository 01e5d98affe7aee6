"""Tensors that stay in their file until they are asked for, so that models larger than the memory can be rewritten.

numpy has no bfloat16 and no 8-bit floats: their values are kept as the bits that the file has, in an unsigned integer
of the same width, and every conversion here moves bits only.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import StorageError
from gesso.formats import tensors
from gesso.storage import guard, replacing

TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
"""safetensors' type codes, and the numpy type that holds their values or bits."""
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor with its type code and shape; `read` gives its values, or its bits, in the numpy type of TYPES."""

    code: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(TYPES[self.code]).itemsize

    def widened(self) -> Float32:
        """The values as float32: exact for float16 and bfloat16, rounded for float64."""
        if self.code == "BF16":
            return (self.read().astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        if self.code not in FLOATS:
            raise StorageError(f"a tensor of type {self.code} is not one of floating-point numbers")
        return self.read().astype(np.float32)


Tensors = Mapping[str, Stored]


def of(array: Array) -> Stored:
    """An array in memory as a stored tensor."""
    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).reshape(array.shape)
    for code, kind in TYPES.items():
        if code not in ("BF16", "F8_E4M3", "F8_E5M2") and np.dtype(kind) == plain.dtype:
            return Stored(code=code, shape=plain.shape, read=lambda: plain)
    raise TypeError(f"safetensors has no type for numpy's {array.dtype}")


def slice_of(path: Path, code: str, shape: tuple[int, ...], start: int) -> Stored:
    """A tensor whose bytes lie in a file from `start` on, without a gap; the file is mapped each time it is read."""

    def read() -> Array:
        kind = np.dtype(TYPES[code])
        if 0 in shape:
            return np.zeros(shape, kind)
        return np.memmap(path, kind, mode="r", offset=start, shape=(math.prod(shape),)).reshape(shape)

    return Stored(code=code, shape=shape, read=read)


def open_safetensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by name, none of them read.

    Raises StorageError for a damaged file, and for one whose header gives a tensor other bytes than its shape takes,
    two tensors the same bytes, or some bytes no tensor.
    """
    found = {}
    header = tensors.header(path)
    end = header.start
    for name, entry in sorted(header.tensors.items(), key=lambda pair: (pair[1].start, pair[1].stop)):
        if entry.code not in TYPES:
            raise StorageError(f'tensor "{name}" is of the type {entry.code}, which is not known', where=str(path))
        if any(side < 0 for side in entry.shape):
            raise StorageError(f'tensor "{name}" has the shape {list(entry.shape)}', where=str(path))
        tensor = slice_of(path, entry.code, entry.shape, entry.start)
        if entry.stop - entry.start != tensor.nbytes:
            raise StorageError(
                f'tensor "{name}" should have {tensor.nbytes} bytes for its shape {list(entry.shape)}, '
                f"but the header gives it {entry.stop - entry.start}",
                where=str(path),
                todo="fetch or export it again",
            )
        if entry.start < end:
            raise StorageError(f'tensor "{name}" lies on another one\'s bytes', where=str(path))
        _no_gap(path, entry.start - end)
        end = entry.stop
        found[name] = tensor
    _no_gap(path, header.stop - end)
    return found


def _no_gap(path: Path, length: int) -> None:
    """The library's readers refuse such a file too: what no tensor owns could be anything."""
    if length:
        raise StorageError(
            f"this is not a whole safetensors file: {length} bytes in it belong to no tensor",
            where=str(path),
            todo="fetch or export it again",
        )


def save_safetensors(path: Path, arrays: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors one after another, so that memory holds one of them; otherwise as `tensors.save`."""
    start = head(arrays, metadata)
    with guard(path.parent, what=path.name, needed=len(start) + nbytes(arrays)), replacing(path) as sink:
        sink.write(start)
        for name in order(arrays):
            sink.write(data(arrays[name], name))


def head(arrays: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """What a safetensors file has in front of the tensors' bytes."""
    listing: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name in order(arrays):
        tensor = arrays[name]
        listing[name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(listing, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def order(arrays: Tensors) -> list[str]:
    """The names in the order in which a file has the tensors: the widest numbers first, so that all are aligned."""
    return sorted(arrays, key=lambda name: (-np.dtype(TYPES[arrays[name].code]).itemsize, name))


def data(tensor: Stored, name: str) -> memoryview:
    """The bytes of a tensor in C order, little-endian; `name` is for messages."""
    values = tensor.read()
    if values.shape != tensor.shape or values.dtype != np.dtype(TYPES[tensor.code]):
        raise TypeError(f"{name}: {values.dtype} {values.shape} is not {tensor.code} {tensor.shape}")
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def nbytes(arrays: Tensors) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in arrays.values())

"""Tensors of bare pickles and of PyTorch's files before 1.6; `python -I -m gesso.formats.old_pickles FILE TARGET`.

The machine of torch_file.py reads them, which can call nothing; here it also knows numpy's arrays and the storages that
lie in such a pickle. Any other name in it is refused. `gesso convert --unsafe-pickle` runs this as a process of its own
with limits (unsafe_pickle.py): should the reading be wrong somewhere, that process can write one file and no more.

    1.1 to 1.5   magic number, version, machine, what was saved, names of storages: five pickles; then each storage
                 with its length, int64, in that order
    bare         one pickle; a tensor's storage is such a file in itself, as bytes
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from gesso.errors import GessoError, StorageError
from gesso.formats import pickles, stored
from gesso.formats.stored import TYPES, Stored
from gesso.formats.torch_file import Malformed, Opaque, Storage, build, placed

MAGIC = 0x1950A86A20F9469CFC6C
"""The first of an old file's pickles."""
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_BUFFERS = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_INERT = ("pytorch_lightning.",)
_PLAIN = ("torch.Size", "torch.device", "__builtin__.set", "builtins.set")
_DEEPEST = 2


@dataclass(eq=False)
class _Array:
    """numpy's array: made first, told its values later."""

    value: Stored | None = None


@dataclass(eq=False)
class _Kind:
    """numpy's type of numbers."""

    text: str


@dataclass(frozen=True)
class _Later:
    """A tensor in a storage that comes behind the pickle."""

    storage: Storage
    place: tuple[Any, Any, Any]


@dataclass(frozen=True)
class _Inside:
    """A storage that lies in the pickle itself."""

    code: str
    data: bytes = field(repr=False)


class _Tensors:
    """What the machine makes of calls in such pickles."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth

    def make(self, storage: object, offset: Any, sides: Any, steps: Any) -> object:
        if isinstance(storage, Storage):
            return _Later(storage, (offset, sides, steps))
        if not isinstance(storage, _Inside):
            raise Malformed("a tensor is not put together as PyTorch does it")
        return _within(storage, (offset, sides, steps))

    def call(self, name: str, arguments: Any) -> object:
        if name in _ARRAYS:
            return _Array()
        if name in _BUFFERS and len(arguments) == 4:  # protocol 5
            data, kind, shape, order = arguments
            return _Array(_filled((1, shape, kind, order == "F", data)))
        if name == "numpy.dtype" and arguments and isinstance(arguments[0], str):
            return _Kind(arguments[0])
        if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] == "latin1":
            return str(arguments[0]).encode("latin1")
        if name == "torch.storage._load_from_bytes" and self._depth < _DEEPEST and isinstance(arguments[0], bytes):
            return _storage_in(arguments[0], self._depth + 1)
        if name in _SCALARS or name in _PLAIN or name.startswith(_INERT):
            return Opaque(name)
        raise Malformed(f"it would call {name or 'what has no name'}, which makes no tensor")

    def fill(self, target: object, state: Any) -> None:
        if isinstance(target, _Kind):
            if len(state) < 2 or state[1] not in ("<", "|", "="):
                raise Malformed("its numbers are big-endian")
        elif isinstance(target, _Array):
            target.value = _filled(state)


def read(path: Path) -> dict[str, Stored]:
    """The tensors by name of such a file, or of the dictionary under "state_dict" in it.

    Raises StorageError for what is damaged, for names that make no tensor, and for what holds none.
    """
    try:
        with path.open("rb") as opened, pickles.quiet():
            made, storages = _opened(opened, _Tensors())
            found = made.get("state_dict", made.get("string_to_param", made)) if isinstance(made, dict) else {}
            named = _named(found, storages)
    except (Malformed, ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error, OSError) as error:
        raise StorageError(f"this pickle is left alone: {error}", where=str(path)) from error
    if not named:
        raise StorageError("this pickle holds no tensors by name", where=str(path))
    return named


def _named(found: Any, storages: Mapping[str, bytes]) -> dict[str, Stored]:
    named = {}
    for name, each in found.items() if isinstance(found, dict) else ():
        value = each.value if isinstance(each, _Array) else each
        if isinstance(value, _Later):
            data = storages.get(value.storage.key)
            if data is None:
                raise Malformed(f"the storage {value.storage.key} is not there")
            value = _within(_Inside(value.storage.code, data), value.place)
        if isinstance(name, str) and isinstance(value, Stored):
            named[name] = value
    return named


def _opened(opened: IO[bytes], tensors: _Tensors) -> tuple[Any, dict[str, bytes]]:
    """What was saved, and the storages behind it by name."""
    made = build(opened, tensors)
    if made != MAGIC:
        return made, {}
    build(opened, tensors)  # the version
    machine = build(opened, tensors)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Malformed("its numbers are big-endian")
    made = build(opened, tensors)
    names = build(opened, tensors)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Malformed("the list of its storages is not one of names")
    widths = _widths(made)
    storages = {}
    for name in names:
        (count,) = struct.unpack("<q", opened.read(8))
        wanted = count * widths.get(name, 0)
        data = opened.read(wanted) if 0 <= wanted <= _left(opened) else b""
        if len(data) != wanted or name not in widths:
            raise Malformed(f"the storage {name} is cut off")
        storages[name] = data
    return made, storages


def _left(opened: IO[bytes]) -> int:
    """Bytes that the file still has, so that no number in it makes memory."""
    at = opened.tell()
    end = opened.seek(0, io.SEEK_END)
    opened.seek(at)
    return end - at


def _widths(made: Any) -> dict[str, int]:
    """Bytes of a number in each storage that is spoken of; dictionaries inside of dictionaries are followed."""
    found: dict[str, int] = {}
    left = [made]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)
        elif isinstance(each, _Later):
            each = each.storage
        if isinstance(each, Storage):
            found[each.key] = np.dtype(TYPES[each.code]).itemsize
    return found


def _storage_in(data: bytes, depth: int) -> _Inside:
    made, storages = _opened(io.BytesIO(data), _Tensors(depth))
    if not isinstance(made, Storage) or made.key not in storages:
        raise Malformed("what stands for a storage is none")
    return _Inside(made.code, storages[made.key])


def _within(storage: _Inside, place: tuple[Any, Any, Any]) -> Stored:
    values = np.frombuffer(storage.data, dtype=TYPES[storage.code])

    def numbers(first: int, shape: tuple[int, ...]) -> Stored:
        count = int(np.prod(shape, dtype=np.int64))
        part = values[first : first + count].reshape(shape)
        return Stored(code=storage.code, shape=shape, read=lambda: part)

    return placed(storage.code, len(storage.data), numbers, *place)


def _filled(state: Any) -> Stored:
    """An array by what numpy writes of it: (version, shape, type, whether by columns, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Kind):
        raise Malformed("an array is not put together as numpy does it")
    _, shape, kind, columns, data = state
    dtype = np.dtype(kind.text)
    if dtype.hasobject or not isinstance(data, bytes) or not all(isinstance(side, int) for side in shape):
        raise Malformed("an array is not one of numbers")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if columns else "C")
    try:
        return stored.of(values)
    except TypeError as error:
        raise Malformed(f"an array is of {kind.text}, which safetensors does not have") from error


def main(arguments: list[str]) -> int:
    """The process of its own: FILE's tensors into the safetensors file TARGET."""
    try:
        found = read(Path(arguments[0]))
        stored.save_safetensors(Path(arguments[1]), found)
    except (GessoError, MemoryError, RecursionError) as error:
        print(getattr(error, "what", f"it asks for too much: {type(error).__name__}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""PyTorch's zip files (`.ckpt`, `.bin`, `.pt`), read for their tensors without running the pickle inside.

A pickle is a program for a small stack machine that can call any function. The machine here has no function to call:
it puts together dictionaries, lists and numbers, knows two names of PyTorch's as "a tensor in that storage", and keeps
everything else as an inert mark. The instructions come from pickletools, which only lists them. A storage is a member
of the archive, not compressed, so its bytes are read from the file where they lie. PyTorch writes this form since 1.6
(2020): https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from gesso.arrays import Array
from gesso.errors import StorageError
from gesso.formats import pickles
from gesso.formats.stored import TYPES, Stored, slice_of

_CODES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_INERT = "pytorch_lightning."
"""Its training state stands in the first Stable Diffusion files; here it is a mark like any other."""
PARAMETERS = "torch.nn.modules.container.ParameterDict"
"""In it the first textual inversions keep their vectors; here it is a dictionary."""
_MARK = object()
_MOST_DIMS = 32


class Malformed(ValueError):
    """A pickle that is not of PyTorch's writing."""


@dataclass(frozen=True, slots=True)
class Name:
    """What the pickle would import."""

    text: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """What something else than a tensor would be made of."""

    what: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the numbers of tensors are: their type code, and the storage's name in the file."""

    code: str
    key: str


class _Parameters(dict[Any, Any]):
    """A ParameterDict: made first, told its tensors later."""


class Maker(Protocol):
    """What the machine asks where a pickle would call something; it answers with values, and calls nothing."""

    def make(self, storage: object, offset: Any, sides: Any, steps: Any) -> object:
        """The tensor of this shape in a storage; offset and steps count numbers, not bytes."""
        ...

    def call(self, name: str, arguments: Any) -> object:
        """What stands for the result of any other call; Malformed for one that is not allowed."""
        ...

    def fill(self, target: object, state: Any) -> None:
        """What is told of an object after it was made."""
        ...


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict (or of what stands under "state_dict") by name; none is read.

    Raises StorageError for a file that would import anything but what tensors need, for one that is damaged, and for
    the form before PyTorch 1.6.
    """
    unusual = refused(pickles.named(path))
    if unusual:
        raise StorageError(
            f"this pickle would import {', '.join(unusual[:5])}, which can run any code; it is left alone",
            where=str(path),
            todo="fetch the model as safetensors",
        )
    if not zipfile.is_zipfile(path):
        raise StorageError(
            "this is a bare pickle, or of the form before PyTorch 1.6",
            where=str(path),
            todo="gesso convert --unsafe-pickle reads it in a separate, limited process",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = {one.filename.partition("/")[2]: one for one in archive.infolist()}
            inside = members["data.pkl"]
            if "byteorder" in members and archive.open(members["byteorder"]).read(10) != b"little":
                raise Malformed("its numbers are big-endian")
            with pickles.quiet():
                made = build(archive.read(inside), _Tensors(path, members))
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from error
    except pickles.BROKEN_ZIP as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    # The second: what A1111 calls the vectors of a learned word.
    found = made.get("state_dict", made.get("string_to_param", made)) if isinstance(made, dict) else {}
    found = found if isinstance(found, dict) else {}
    named = {name: each for name, each in found.items() if isinstance(name, str) and isinstance(each, Stored)}
    if not named:
        raise StorageError("this file of PyTorch's holds no tensors by name", where=str(path))
    return named


def refused(names: list[str]) -> list[str]:
    """Those of a pickle's imports for which a file is left alone."""
    return [name for name in pickles.unusual(names) if not name.startswith(_INERT)]


class _Tensors:
    """Makes tensors of storages in the archive's members."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        self._path, self._members = path, members
        self._starts: dict[str, int] = {}

    def make(self, storage: object, offset: Any, sides: Any, steps: Any) -> Stored:
        """The tensor of this shape in a storage; offset and steps count numbers, not bytes."""
        if not isinstance(storage, Storage):
            raise Malformed("a tensor is not put together as PyTorch does it")
        member = self._members[f"data/{storage.key}"]
        if member.compress_type != zipfile.ZIP_STORED:
            raise Malformed(f"{member.filename} is compressed")
        start = self._start(member)

        def numbers(first: int, shape: tuple[int, ...]) -> Stored:
            return slice_of(self._path, storage.code, shape, start + first * np.dtype(TYPES[storage.code]).itemsize)

        return placed(storage.code, member.file_size, numbers, offset, sides, steps)

    def call(self, name: str, arguments: Any) -> object:
        """An inert mark."""
        return Opaque(name)

    def fill(self, target: object, state: Any) -> None:
        """Attributes, such as OrderedDict's _metadata, are left out."""

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin: after its local header, whose two last lengths the directory does not know."""
        if member.filename not in self._starts:
            with self._path.open("rb") as opened:
                opened.seek(member.header_offset)
                head = opened.read(30)
            if head[:4] != b"PK\x03\x04":
                raise Malformed(f"{member.filename} is not where the archive says")
            lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            start = member.header_offset + 30 + lengths
            if start + member.file_size > self._path.stat().st_size:
                raise Malformed(f"{member.filename} goes on behind the end of the file")
            self._starts[member.filename] = start
        return self._starts[member.filename]


def placed(
    code: str,
    nbytes: int,
    numbers: Callable[[int, tuple[int, ...]], Stored],
    offset: Any,
    sides: Any,
    steps: Any,
) -> Stored:
    """A tensor in a storage of `nbytes`; `numbers` gives those from one on. Malformed where it cannot be."""
    if not _numbers(sides, steps, (offset,)):
        raise Malformed("a tensor is not put together as PyTorch does it")
    width = np.dtype(TYPES[code]).itemsize
    last = offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) if 0 not in sides else -1
    # The second: a step of 0 would let a short storage claim any size.
    if max(last + 1, math.prod(sides)) * width > nbytes:
        raise Malformed(f"a tensor of {list(sides)} does not lie in its storage of {nbytes} bytes")
    plain = _plain_strides(sides)
    if 0 in sides or all(a == b or side == 1 for a, b, side in zip(steps, plain, sides, strict=True)):
        return numbers(offset, sides)
    whole = numbers(offset, (last - offset + 1,))

    def strided() -> Array:
        flat = np.ascontiguousarray(whole.read())
        view = np.lib.stride_tricks.as_strided(flat, sides, [step * width for step in steps], writeable=False)
        return np.ascontiguousarray(view)

    return Stored(code=code, shape=sides, read=strided)


def build(raw: bytes | IO[bytes], tensors: Maker) -> Any:
    """What the pickle builds, of dictionaries, lists, tuples, numbers, texts and tensors alone.

    Of an open file it reads one pickle and leaves off behind it.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:  # IndexError where there is none
            at -= 1
            if at < 0:
                raise Malformed("a mark is missing")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    try:
        for code, argument, _ in pickles.steps(io.BytesIO(raw) if isinstance(raw, bytes) else raw):
            name = code.name
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                return stack.pop()
            if name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in pickles.PUTS:
                memo[int(str(argument))] = stack[-1]
            elif name in pickles.GETS:
                stack.append(memo[int(str(argument))])
            elif name in _VALUES:
                stack.append(_VALUES[name](argument))
            elif name in _FROM_MARK:
                _FROM_MARK[name](stack, marked())
            elif name in _CALLS:
                _CALLS[name](stack, tensors)
            else:
                raise Malformed(f"it has the instruction {name}, which PyTorch does not write")
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Malformed(f"its instructions make no sense ({error})") from error
    raise Malformed("it has no end")


def _pairs(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], dict):
        stack[-1].update(_plain_keys(zip(items[::2], items[1::2], strict=True)))


def _plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of these; a key that is nested could take for ever to hash."""
    made = {}
    for key, value in pairs:
        if not isinstance(key, str | int | float):
            raise Malformed("a key is neither a text nor a number")
        made[key] = value
    return made


def _items(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)


def _top(count: int) -> Callable[[list[Any], Maker], None]:
    """The tuple of the topmost `count`."""

    def run(stack: list[Any], tensors: Maker) -> None:
        items = tuple(stack[-count:])
        if len(items) < count:
            raise Malformed("its stack is empty")
        del stack[-count:]
        stack.append(items)

    return run


def _named(stack: list[Any], tensors: Maker) -> None:
    name, module = stack.pop(), stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Malformed("a name is no text")
    stack.append(Name(f"{module}.{name}"))


def _storage(stack: list[Any], tensors: Maker) -> None:
    found = stack.pop()
    if len(found) == 4 and found[0] == "module" and isinstance(found[1], Name):
        stack.append(found[1])  # before 1.6, with the text of its source file, which is left alone
        return
    # The sixth, of files before PyTorch 1.6: a storage that is part of another one.
    usual = len(found) == 5 or (len(found) == 6 and found[5] is None)
    kind = found[1].text.rpartition(".")[2] if usual and isinstance(found[1], Name) else ""
    if kind not in _CODES or not isinstance(found[2], str):
        raise Malformed(f"a storage is of the kind {kind or 'that has no name'}")
    stack.append(Storage(_CODES[kind], found[2]))


def _call(stack: list[Any], tensors: Maker) -> None:
    """Nothing is called: two names mean a tensor, one a dictionary; any other result is an inert mark."""
    arguments, called = stack.pop(), stack.pop()
    name = called.text if isinstance(called, Name) else ""
    if name == "torch._utils._rebuild_tensor_v2":
        stack.append(tensors.make(*arguments[:4]))
    elif name == "torch._utils._rebuild_parameter":
        stack.append(arguments[0])
    elif name == PARAMETERS:
        stack.append(_Parameters())
    elif name == "collections.OrderedDict":
        stack.append(_plain_keys(arguments[0]) if arguments else {})
    else:
        stack.append(tensors.call(name, arguments))


def _one_pair(stack: list[Any], tensors: Maker) -> None:
    value, key = stack.pop(), stack.pop()
    _pairs(stack, [key, value])


def _one_item(stack: list[Any], tensors: Maker) -> None:
    item = stack.pop()
    _items(stack, [item])


def _state(stack: list[Any], tensors: Maker) -> None:
    state = stack.pop()
    if isinstance(stack[-1], _Parameters):
        own = state.get("_parameters") if isinstance(state, dict) else None
        stack[-1].update(own if isinstance(own, dict) else {})
    else:
        tensors.fill(stack[-1], state)


_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (*pickles.TEXTS, "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "LONG", "BINFLOAT", "INT", "FLOAT"),
        lambda a: a,
    ),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), bytes),
    "GLOBAL": lambda a: Name(str(a).replace(" ", ".", 1)),
    "MARK": lambda a: _MARK,
    "NONE": lambda a: None,
    "NEWTRUE": lambda a: True,
    "NEWFALSE": lambda a: False,
    "EMPTY_DICT": lambda a: {},
    "EMPTY_LIST": lambda a: [],
    "EMPTY_TUPLE": lambda a: (),
}
_FROM_MARK: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "SETITEMS": _pairs,
    "APPENDS": _items,
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "LIST": lambda stack, items: stack.append(items),
    "DICT": lambda stack, items: stack.append(_plain_keys(zip(items[::2], items[1::2], strict=True))),
}
_CALLS: dict[str, Callable[[list[Any], Maker], None]] = {
    "TUPLE1": _top(1),
    "TUPLE2": _top(2),
    "TUPLE3": _top(3),
    "STACK_GLOBAL": _named,
    "BINPERSID": _storage,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "SETITEM": _one_pair,
    "APPEND": _one_item,
    "BUILD": _state,
}


def _numbers(*groups: Any) -> bool:
    """Whether these are tuples of whole numbers from 0 on, the first two equally long and not too many."""
    plain = all(isinstance(group, tuple) for group in groups)
    return (
        plain
        and len(groups[0]) == len(groups[1]) <= _MOST_DIMS
        and all(type(number) is int and 0 <= number < 1 << 62 for group in groups for number in group)
    )


def _plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for side in shape[:0:-1]:
        strides.append(strides[-1] * side)
    return tuple(strides[::-1])[: len(shape)] if shape else ()


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(f"this is not a whole file of PyTorch's: {why}", where=str(path), todo="fetch it again")

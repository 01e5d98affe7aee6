"""MindSpore's checkpoint files (`.ckpt`), read and written without MindSpore and without a protobuf library.

A file is a plain concatenation of protobuf messages, which is one message with a repeated field:

    Checkpoint   1 value: Value (repeated)
    Value        1 tag: string (the parameter's name)      2 tensor: TensorProto      3 maptensor (not read here)
    TensorProto  1 dims: int64 (repeated, packed or not)   2 tensor_type: string      3 tensor_content: bytes

The content is little-endian and in C order. A tensor over 512 MiB is cut into consecutive values of the same tag with
the whole dims each. dims [0] with content is a single number; tensor_type "str" is text in UTF-32LE. After the last
message may stand `crc_num` and ten bytes, the big-endian CRC-32 of everything before. protobuf's own limit is 2 GiB a
message, so the wire format is read here by hand, on a mapped file. The schema is that of checkpoint.proto of
https://github.com/mindspore-ai/mindspore.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gesso.arrays import Array
from gesso.errors import StorageError
from gesso.formats.protobuf import LENGTH, NUMBER, Malformed, encoded, fields, text, varint
from gesso.formats.stored import TYPES, Stored, Tensors, data
from gesso.storage import CHUNK, guard, replacing

SLICE = 512 << 20
"""Bytes of one value; a longer tensor is cut."""
_CODES = {
    "Bool": "BOOL", "UInt8": "U8", "Int8": "I8", "UInt16": "U16", "Int16": "I16", "Float16": "F16", "BFloat16": "BF16",
    "UInt32": "U32", "Int32": "I32", "Float32": "F32", "UInt64": "U64", "Int64": "I64", "Float64": "F64",
}  # fmt: skip
_KINDS = {code: kind for kind, code in _CODES.items()}
_TEXTS = ("str", "random_op")
_TRAILER = b"crc_num"
_TRAILER_LENGTH = len(_TRAILER) + 10
_ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
"""First four bytes, little-endian, of a file that MindSpore encrypted."""
_MOST_DIMS = 32
_LONGEST_NAME = 4096
"""Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file holds: tensors by name in the file's order, texts by name, and whether a checksum was there."""

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str]
    checked: bool


@dataclass(slots=True)
class _Value:
    tag: str
    kind: str
    dims: tuple[int, ...]
    pieces: list[tuple[int, int]]
    """(first byte, byte after the last) of each piece of the content."""
    length: int
    """Bytes of all pieces."""


def looks_like(head: bytes) -> bool:
    """Whether a file that begins so can be a MindSpore checkpoint: a value with a tag first, or an encrypted file."""
    if int.from_bytes(head[:4], "little") in _ENCRYPTED:
        return True
    if head[:1] != b"\x0a":
        return False
    at = 1
    while at < len(head) and head[at] & 0x80 and at < 10:
        at += 1
    return head[at + 1 : at + 2] == b"\x0a"


def read(path: Path, *, verify: bool = True) -> Checkpoint:
    """Names, types and shapes of everything in a file; a tensor's content is read when it is asked for.

    verify: compare the checksum, where there is one, with the file, which reads all of it. Raises StorageError for a
    file that is encrypted, truncated, damaged, or says of itself what cannot be, before any tensor is allocated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            head = opened.read(4)
            if int.from_bytes(head, "little") in _ENCRYPTED and len(head) == 4:
                raise StorageError(
                    f"this checkpoint is encrypted ({_ENCRYPTED[int.from_bytes(head, 'little')]})",
                    where=str(path),
                    todo="load it in MindSpore with its key and save it again without one",
                )
            if not size:
                raise _damaged(path, "it is empty")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                end, checked = _end(whole, size, path, verify=verify)
                values = _joined(_values(whole, end))
        texts = {value.tag: _text(value, path) for value in values if value.kind in _TEXTS}
    except Malformed as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    return Checkpoint(
        tensors={value.tag: _stored(value, path) for value in values if value.kind not in _TEXTS},
        texts=texts,
        checked=checked,
    )


def write(path: Path, arrays: Tensors, texts: Mapping[str, str] | None = None, *, checksum: bool = False) -> None:
    """Write tensors in the order given, one in memory at a time; texts as MindSpore's append_dict leaves them.

    checksum: end the file with the CRC-32, which MindSpore compares when `crc_check` is asked for. Raises StorageError
    when the disk refuses, TypeError for a type of number that MindSpore does not have.
    """
    for name, tensor in arrays.items():
        if tensor.code not in _KINDS:
            raise TypeError(f"{name}: MindSpore has no type for {tensor.code}")
    total = 0
    needed = sum(tensor.nbytes + len(name) + 64 for name, tensor in arrays.items())
    with guard(path.parent, what=path.name, needed=needed), replacing(path) as sink:

        def put(piece: bytes | memoryview) -> None:
            nonlocal total
            total = zlib.crc32(piece, total) if checksum else 0
            sink.write(piece)

        for name, tensor in arrays.items():
            content = data(tensor, name)
            for start in range(0, len(content), SLICE) or (0,):
                piece = content[start : start + SLICE]
                put(_head(name, _KINDS[tensor.code], tensor.shape or (0,), len(piece)))
                put(piece)
        for name, words in (texts or {}).items():
            content = memoryview(words.encode("utf-32-le"))
            put(_head(name, "str", (0,), len(content)))
            put(content)
        if checksum:
            sink.write(_TRAILER + total.to_bytes(10, "big"))


def _end(whole: mmap.mmap, size: int, path: Path, *, verify: bool) -> tuple[int, bool]:
    """Where the messages end, and whether a checksum was there and right."""
    trailer = whole[max(size - _TRAILER_LENGTH, 0) : size]
    if len(trailer) < _TRAILER_LENGTH or not trailer.startswith(_TRAILER):
        return size, False
    end = size - _TRAILER_LENGTH
    if not verify:
        return end, False
    total = 0
    for start in range(0, end, CHUNK):
        total = zlib.crc32(whole[start : min(start + CHUNK, end)], total)
    said = int.from_bytes(trailer[len(_TRAILER) :], "big")
    if said != total:
        raise _damaged(path, f"its checksum is {total:08x}, but should be {said:08x}")
    return end, True


def _values(whole: mmap.mmap, end: int) -> Iterator[_Value]:
    for number, wire, start, stop in fields(whole, 0, end):
        if (number, wire) != (1, LENGTH):
            raise Malformed(f"it has the field {number} before byte {stop}, which no checkpoint has")
        yield _value(whole, start, stop)


def _value(whole: mmap.mmap, start: int, stop: int) -> _Value:
    tag, tensor = "", None
    for number, wire, first, last in fields(whole, start, stop):
        if (number, wire) == (1, LENGTH) and not tag:
            tag = _short(whole, first, last)
        elif (number, wire) == (2, LENGTH) and tensor is None:
            tensor = (first, last)
        elif number == 3:
            raise Malformed("it holds a hash table (MapParameter), which diffusion models do not have")
        else:
            raise Malformed(f"the value at byte {start} has the field {number} twice, or not as a checkpoint has it")
    if not tag or tensor is None:
        raise Malformed(f"the value at byte {start} has no {'tensor' if tag else 'name'}")
    kind, dims, content = "", _dims(whole, *tensor), None
    for number, wire, first, last in fields(whole, *tensor):
        if number == 1:
            continue
        if (number, wire) == (2, LENGTH) and not kind:
            kind = _short(whole, first, last)
        elif (number, wire) == (3, LENGTH) and content is None:
            content = (first, last)
        else:
            raise Malformed(f'"{tag}" has the field {number} twice, or not as a checkpoint has it')
    if not kind or content is None:
        raise Malformed(f'"{tag}" has no {"content" if kind else "type"}')
    return _Value(tag, kind, dims, [content], content[1] - content[0])


def _dims(whole: mmap.mmap, start: int, stop: int) -> tuple[int, ...]:
    """The dimensions of the tensor in bytes [start, stop), each a field of its own, or packed into one."""
    dims: list[int] = []
    for number, wire, first, last in fields(whole, start, stop):
        if number != 1:
            continue
        if wire == NUMBER:
            dims.append(first)
        while wire == LENGTH and first < last and len(dims) <= _MOST_DIMS:
            side, first = varint(whole, first, last)
            dims.append(side)
        if len(dims) > _MOST_DIMS or max(dims, default=0) >= 1 << 63:
            raise Malformed(f"the tensor at byte {start} would have over {_MOST_DIMS} dimensions or a negative one")
    return tuple(dims)


def _joined(values: Iterator[_Value]) -> list[_Value]:
    """The values with the pieces of each cut tensor put together, each whole and there once."""
    found: dict[str, _Value] = {}
    last: _Value | None = None
    for value in values:
        if last is not None and value.tag == last.tag and last.kind not in _TEXTS and last.length < _expected(last):
            if (value.kind, value.dims) != (last.kind, last.dims):
                raise Malformed(f'the pieces of "{value.tag}" are not of one type and shape')
            last.pieces += value.pieces
            last.length += value.length
            continue
        if value.tag in found:
            whole = value.kind in _TEXTS or found[value.tag].length >= _expected(found[value.tag])
            odd = "is there twice" if whole else "stands over pieces that do not follow one another"
            raise Malformed(f'the name "{value.tag}" {odd}')
        found[value.tag] = last = value
    for value in found.values():
        if value.kind not in _TEXTS and value.length != _expected(value):
            raise Malformed(
                f'"{value.tag}" has {value.length} bytes, but its shape {list(value.dims)} of {value.kind} '
                f"takes {_expected(value)}"
            )
    if not found:
        raise Malformed("it holds nothing")
    return list(found.values())


def _expected(value: _Value) -> int:
    """Bytes that the type and shape take."""
    if value.kind not in _CODES:
        raise Malformed(f'"{value.tag}" is of the type "{value.kind[:40]}", which is not known')
    width = np.dtype(TYPES[_CODES[value.kind]]).itemsize
    return width if value.dims == (0,) and value.length else math.prod(value.dims) * width


def _stored(value: _Value, path: Path) -> Stored:
    code = _CODES[value.kind]
    shape = () if value.dims == (0,) and value.length else value.dims
    pieces = tuple(value.pieces)

    def read() -> Array:
        kind = np.dtype(TYPES[code])
        if len(pieces) == 1 and value.length:
            return np.memmap(path, kind, mode="r", offset=pieces[0][0], shape=(math.prod(shape),)).reshape(shape)
        raw = np.empty(value.length, np.uint8)
        at = 0
        for start, stop in pieces:
            raw[at : at + stop - start] = np.fromfile(path, np.uint8, count=stop - start, offset=start)
            at += stop - start
        return raw.view(kind).reshape(shape)

    return Stored(code=code, shape=shape, read=read)


def _text(value: _Value, path: Path) -> str:
    if value.length > CHUNK:
        raise Malformed(f'the text "{value.tag}" has {value.length} bytes')
    with path.open("rb") as opened:
        opened.seek(value.pieces[0][0])
        raw = opened.read(value.length)
    if value.kind == "random_op":  # a generator's state, which is no text
        return raw.hex()
    try:
        return raw.decode("utf-32-le")
    except UnicodeDecodeError as error:
        raise Malformed(f'"{value.tag}" is no text: {error}') from error


def _short(whole: mmap.mmap, first: int, last: int) -> str:
    if not 0 < last - first <= _LONGEST_NAME:
        raise Malformed(f"the name at byte {first} would have {last - first} bytes")
    try:
        return whole[first:last].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"the name at byte {first} is not UTF-8") from error


def _head(name: str, kind: str, dims: Sequence[int], length: int) -> bytes:
    """A value's bytes up to its content, which must follow; dims as proto2 writes them, one field each."""
    sides = b"".join(b"\x08" + encoded(side) for side in dims)
    tensor = sides + text(2, kind) + b"\x1a" + encoded(length)
    value = text(1, name) + b"\x12" + encoded(len(tensor) + length) + tensor
    return b"\x0a" + encoded(len(value) + length) + value


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"this is not a whole MindSpore checkpoint: {why}", where=str(path), todo="fetch or export it again"
    )

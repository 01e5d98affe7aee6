"""protobuf's wire format, as far as a file of tensors needs it: fields with a length, and numbers of seven bits a byte.

https://protobuf.dev/programming-guides/encoding/. Every length is compared with what is left before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

LENGTH = 2
NUMBER = 0
_KINDS = {NUMBER, LENGTH}


class Malformed(ValueError):
    """Bytes that are no message of this kind; the text says why."""


def fields(whole: mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, first, last) of each field of the message in bytes [start, stop).

    LENGTH: the content is bytes [first, last). NUMBER: its value is `first`. Raises Malformed for other wire types.
    """
    at = start
    while at < stop:
        key, at = varint(whole, at, stop)
        number, wire = key >> 3, key & 7
        if wire not in _KINDS:
            raise Malformed(f"byte {at} begins no field of a checkpoint (number {number}, wire type {wire})")
        value, at = varint(whole, at, stop)
        if wire == NUMBER:
            yield number, wire, value, at
            continue
        if value > stop - at:
            raise Malformed(f"a field at byte {at} says {value} bytes, but {stop - at} are left; it is cut off")
        yield number, wire, at, at + value
        at += value


def varint(whole: mmap, at: int, stop: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits that begins at byte `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise Malformed(f"it ends within a number at byte {at}; it is cut off")
        byte = whole[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise Malformed(f"the number that ends at byte {at} is longer than 64 bits")


def text(number: int, value: str) -> bytes:
    """A field of text."""
    raw = value.encode()
    return bytes([number << 3 | LENGTH]) + encoded(len(raw)) + raw


def encoded(value: int) -> bytes:
    """A number in seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

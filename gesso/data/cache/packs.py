"""Packs: many entries of the cache in one file. docs/cache.md describes the format.

A pack is only ever appended to, and by one process at a time. Each entry carries what is needed to find and to check
it, so a pack needs nothing beside it: what a killed writer left is good up to its last whole entry, and damage costs
the entries it lies in. The index beside a pack saves reading through it, and the stamps tell when an entry was last
used; both may be missing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from gesso.storage import replacing

ALIGN = 32
"""Entries begin at multiples of this many bytes."""
PACK_BYTES = 512 * 2**20
"""Size from which a pack is full: a terabyte of entries is about two thousand packs."""
AT_ONCE = 10_000
"""Headers that are held while a pack is looked through."""
SECONDS_A_DAY = 86_400

_ENTRY = struct.Struct("<8s32s32sQII8s")
_MAGIC = b"entry 1\n"
_HEAD = struct.Struct("<16sQQ32s")
_INDEX_MAGIC = b"gesso index 1\n\0\0"
INDEX_BYTES = _HEAD.size
"""Bytes of an index without entries."""

ROW = np.dtype([("prefix", "<u8"), ("unit", "<u4"), ("length", "<u4"), ("made", "<u4"), ("ordinal", "<u4")])
"""An entry in an index: the first 8 bytes of its key (big-endian), where it begins in units of ALIGN bytes, the bytes
of its payload, the day it was made, and its number in the pack, counted from 0."""
Rows = np.ndarray
Length = TypeVar("Length", int, np.ndarray)


class Header(NamedTuple):
    """What stands before the payload of an entry. `made` is in days since 1970 (UTC)."""

    key: bytes
    sha256: bytes
    length: int
    made: int
    ordinal: int


def today() -> int:
    """Days since 1970 (UTC)."""
    return int(time.time()) // SECONDS_A_DAY


def prefix(key: bytes) -> int:
    """What tables are sorted by; the whole key stands in the entry."""
    return int.from_bytes(key[:8], "big")


def padded(length: Length) -> Length:
    """Bytes from one entry to the next, for a payload of `length` bytes; also for an array of lengths."""
    return -(-(_ENTRY.size + length) // ALIGN) * ALIGN


def encode(key: bytes, payload: bytes, ordinal: int, made: int | None = None) -> bytes:
    """An entry as it stands in a pack: header, payload, zeros up to a multiple of ALIGN."""
    day = today() if made is None else made
    header = _header(Header(key, hashlib.sha256(payload).digest(), len(payload), day, ordinal))
    return b"".join((header, payload, bytes(padded(len(payload)) - len(header) - len(payload))))


def row(header: Header, offset: int) -> tuple[int, int, int, int, int]:
    return prefix(header.key), offset // ALIGN, header.length, header.made, header.ordinal


def _header(header: Header) -> bytes:
    plain = _ENTRY.pack(_MAGIC, *header, b"")[:-8]
    return plain + hashlib.sha256(plain).digest()[:8]


def _parsed(data: bytes) -> Header | None:
    """The header that `data` begins with; None where it is none, or a damaged one."""
    if len(data) < _ENTRY.size or not data.startswith(_MAGIC):
        return None
    _, key, sha256, length, made, ordinal, check = _ENTRY.unpack_from(data)
    whole = hashlib.sha256(data[: _ENTRY.size - 8]).digest()[:8] == check
    return Header(key, sha256, length, made, ordinal) if whole else None


class File:
    """An open file that is read and written by position, by any thread; closed when nobody holds it any more."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self._lock = threading.Lock()
        self._number = -1
        self._number = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)

    @property
    def size(self) -> int:
        return os.fstat(self._number).st_size

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset` on; fewer at the end of the file."""
        data = self._read(count, offset)
        while 0 < len(data) < count and (more := self._read(count - len(data), offset + len(data))):
            data += more
        return data

    def write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while len(view):
            count = self._write(view, offset)
            view, offset = view[count:], offset + count

    def truncate(self, size: int) -> None:
        os.ftruncate(self._number, size)

    def sync(self) -> None:
        os.fsync(self._number)

    def _read(self, count: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._number, count, offset)
        with self._lock:  # Windows has one position a file
            os.lseek(self._number, offset, os.SEEK_SET)
            return os.read(self._number, count)

    def _write(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._number, data, offset)
        with self._lock:
            os.lseek(self._number, offset, os.SEEK_SET)
            return os.write(self._number, data)


class Pack:
    """A pack as a reader sees it; it grows while another process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = 0
        """Bytes of which `news` has told."""
        self._data: File | None = None
        self._stamps: File | None = None
        self._stampable = True
        self._begun = False

    @property
    def opened(self) -> bool:
        return self._data is not None

    @property
    def file(self) -> File:
        """The file, opened where it is not. Raises OSError."""
        data = self._data = self._data or File(self.path)
        return data

    def close(self) -> None:
        """Let go of the files; a thread that is reading keeps them until it is done."""
        self._data = self._stamps = None

    def news(self) -> Rows:
        """The entries since the last call, as far as they are whole. Raises OSError."""
        file, found = self.file, []
        size = file.size
        if not self._begun:
            self._begun = True
            covered, rows = read_index(index_path(self.path), size)
            self.known = covered
            found.append(rows)
        if size > self.known:
            headers = scan(file, self.known, size)
            while some := list(islice(headers, AT_ONCE)):
                found.append(np.array([row(header, offset) for header, offset in some], dtype=ROW))
                self.known = some[-1][1] + padded(some[-1][0].length)
        return np.concatenate(found) if found else np.empty(0, dtype=ROW)

    def grown(self, offset: int, length: int) -> bool:
        """Note an entry that this process has appended; False where `news` will tell of it, and of others before."""
        if self.known != offset or (offset and not self._begun):
            return False
        self.known, self._begun = offset + padded(length), True
        return True

    def read(self, offset: int, length: int) -> tuple[Header, bytes] | None:
        """The entry there, with a payload of `length` bytes; None where it is damaged. Raises OSError."""
        data = self.file.read(_ENTRY.size + length, offset)
        header, payload = _parsed(data), data[_ENTRY.size :]
        if header is None or header.length != length or hashlib.sha256(payload).digest() != header.sha256:
            return None
        return header, payload

    def stamp(self, ordinal: int, day: int) -> None:
        """Note that an entry was used; where that cannot be written, it is not worth an error."""
        if not self._stampable:
            return
        try:
            stamps = self._stamps = self._stamps or File(stamps_path(self.path), os.O_RDWR | os.O_CREAT)
            stamps.write(day.to_bytes(4, "little"), 4 * ordinal)
        except OSError:
            self._stampable = False

    def used(self, rows: Rows) -> np.ndarray:
        """The day each of `rows` was last used or made, uint32."""
        stamps = np.zeros(0, dtype="<u4")
        with suppress(OSError):
            data = stamps_path(self.path).read_bytes()
            stamps = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
        days = rows["made"].copy()
        there = rows["ordinal"] < len(stamps)
        days[there] = np.maximum(days[there], stamps[rows["ordinal"][there]])
        return days


def scan(file: File, start: int, stop: int) -> Iterator[tuple[Header, int]]:
    """The headers of all entries that lie whole between the bytes `start` and `stop`, with their offsets.

    A damaged header costs its own entry: the next one is found by its first bytes. Payloads are not read.
    """
    at = start
    while at + _ENTRY.size <= stop:
        header = _parsed(file.read(_ENTRY.size, at))
        if header is not None and at + _ENTRY.size + header.length <= stop:
            yield header, at
            at += padded(header.length)
        elif (following := _following(file, at + ALIGN, stop)) is not None:
            at = following
        else:
            return


def _following(file: File, start: int, stop: int) -> int | None:
    """Where the next whole header begins, at `start` or after it."""
    step = 8 * mmap.PAGESIZE
    for at in range(start, stop, step):
        chunk = file.read(step + _ENTRY.size, at)
        place = chunk.find(_MAGIC)
        while 0 <= place < step:
            if place % ALIGN == 0 and _parsed(chunk[place:]) is not None:
                return at + place
            place = chunk.find(_MAGIC, place + 1)
    return None


def index_path(pack: Path) -> Path:
    return pack.with_suffix(".index")


def stamps_path(pack: Path) -> Path:
    return pack.with_suffix(".used")


def lock_path(pack: Path) -> Path:
    return pack.with_suffix(".lock")


def write_index(pack: Path, covered: int, rows: Rows) -> None:
    """Write the index of the first `covered` bytes of a pack. Raises OSError."""
    body = rows.tobytes()
    with replacing(index_path(pack)) as sink:
        sink.write(_HEAD.pack(_INDEX_MAGIC, covered, len(rows), hashlib.sha256(body).digest()))
        sink.write(body)


def read_index(path: Path, size: int) -> tuple[int, Rows]:
    """How many bytes of a pack of `size` bytes the index covers, and its entries.

    (0, none) where there is no whole index, or the pack has since lost some of what it covers.
    """
    nothing = 0, np.empty(0, dtype=ROW)
    try:
        data = path.read_bytes()
    except OSError:
        return nothing
    if len(data) < _HEAD.size:
        return nothing
    magic, covered, count, sha256 = _HEAD.unpack_from(data)
    body = memoryview(data)[_HEAD.size :]
    whole = magic == _INDEX_MAGIC and len(body) == count * ROW.itemsize and hashlib.sha256(body).digest() == sha256
    return (covered, np.frombuffer(body, dtype=ROW)) if whole and covered <= size else nothing

"""Writing packs: a writer owns the pack it appends to, so that any number of processes may write at once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from gesso.data.cache import packs
from gesso.data.cache.packs import ALIGN, ROW, File, Header, Pack

PACKS = "packs"
USERS = "users"


def held(path: Path) -> FileLock | None:
    """The lock of the operating system on `path`, held from now on; None where it cannot be had.

    Another process has it, or the disk has no locks, or nothing can be written there.
    """
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except (Timeout, OSError, NotImplementedError):
        return None
    return lock


def found(folder: Path) -> list[Path]:
    """The packs in a cache folder, by name. Raises OSError where the folder cannot be read."""
    try:
        with os.scandir(folder / PACKS) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".pack"))
    except (FileNotFoundError, NotADirectoryError):
        return []


class Writer:
    """Appends entries to a pack that no other process writes: one that another has left unfilled, or a new one.

    With `anew` never to one that is there already.
    """

    def __init__(self, folder: Path, *, anew: bool = False) -> None:
        self.folder, self.anew = folder, anew
        self.path: Path | None = None
        self._file: File | None = None
        self._lock: FileLock | None = None
        self._rows = bytearray()
        self._at = self._ordinal = self._process = 0

    def put(self, key: bytes, payload: bytes, made: int | None = None) -> tuple[Path, int, int]:
        """Append an entry; returns its pack, offset in bytes and number. Raises OSError, and then nothing is there."""
        if len(payload) >= 2**32:
            raise ValueError(f"an entry of {len(payload)} bytes is too large for the cache")
        if self._process != os.getpid():
            self._forget()  # a forked child must not write where its parent does
        if self._file is None or self._at >= packs.PACK_BYTES:
            self.close()
            self._own()
        assert self._file is not None
        assert self.path is not None
        entry = packs.encode(key, payload, self._ordinal, made)
        try:
            self._file.write(entry, self._at)
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._at)
            raise
        at, ordinal = self._at, self._ordinal
        header = Header(key, b"", len(payload), packs.today() if made is None else made, ordinal)
        self._rows += np.array([packs.row(header, at)], dtype=ROW).tobytes()
        self._at, self._ordinal = at + len(entry), ordinal + 1
        return self.path, at, ordinal

    def sync(self) -> None:
        """Make what was written reach the disk. Raises OSError."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Write the pack's index and let go of it."""
        if self._file is not None and self.path is not None and self._process == os.getpid():
            # Without an index, the next reader looks through the pack itself.
            with suppress(OSError):
                packs.write_index(self.path, self._at, np.frombuffer(bytes(self._rows), dtype=ROW))
        lock = self._lock
        self._forget()
        if lock is not None:
            lock.release()

    def _forget(self) -> None:
        self._file = self.path = self._lock = None
        self._rows, self._at, self._ordinal, self._process = bytearray(), 0, 0, os.getpid()

    def _own(self) -> None:
        (self.folder / PACKS).mkdir(parents=True, exist_ok=True)
        if self.anew or not any(map(self._adopt, self._unfilled())):
            path = self.folder / PACKS / f"{secrets.token_hex(8)}.pack"
            self._lock = held(packs.lock_path(path))
            self._file = File(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self.path = path

    def _unfilled(self) -> Iterator[Path]:
        for path in found(self.folder):
            with suppress(OSError):
                if path.stat().st_size < packs.PACK_BYTES:
                    yield path

    def _adopt(self, path: Path) -> bool:
        """Go on with a pack behind its last whole entry; False where that cannot be."""
        lock = held(packs.lock_path(path))
        if lock is None:
            return False
        try:
            file = File(path, os.O_RDWR)
            pack = Pack(path)
            rows = pack.news()
            end = -(-pack.known // ALIGN) * ALIGN
            file.truncate(end)
        except OSError:  # it was removed just now, or belongs to someone else
            lock.release()
            return False
        self._lock, self._file, self.path, self._at = lock, file, path, end
        self._rows = bytearray(rows.tobytes())
        self._ordinal = int(rows["ordinal"].max()) + 1 if len(rows) else 0
        return True

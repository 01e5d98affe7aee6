"""All packs of a cache folder as one: which has an entry, and the entry."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from gesso.data.cache import packs
from gesso.data.cache.packs import Pack
from gesso.data.cache.table import Table, Where
from gesso.data.cache.writer import USERS, found, held

OPEN_PACKS = 64
"""Packs whose files stay open."""
LOOKING = 20
"""Looking for what other processes have added takes at most one part of so many of the time."""
LOST = (errno.EIO, getattr(errno, "EUCLEAN", errno.EIO))
"""What a disk answers that has lost a part of a file."""


class Shelf:
    """The packs in `folder`, as far as they are known; it looks again where it does not find something.

    Raises OSError where the folder cannot be read. Any thread may use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._table = Table()
        self._packs: list[Pack | None] = []
        self._numbers: dict[str, int] = {}
        self._open: OrderedDict[int, None] = OrderedDict()
        self._damaged: set[tuple[int, int]] = set()
        self._looked, self._took = float("-inf"), 0.0
        self._presence: FileLock | None = None
        self._process = 0

    def known(self, key: bytes) -> bool:
        """Whether there is an entry of this key; whether it is whole is seen when it is read."""
        with self._lock:
            return any(self._places(key)) or (self._look() and any(self._places(key)))

    def payloads(self, key: bytes) -> Iterator[bytes]:
        """The payloads under `key`: usually one, or none; of what is stored twice, the next where one is damaged."""
        tried: set[Where] = set()
        for again in (False, True):
            with self._lock:
                if again and not self._look():
                    return
                places = [place for place in self._places(key) if place not in tried]
            for place in places:
                tried.add(place)
                if (payload := self._payload(key, place)) is not None:
                    yield payload

    def add(self, key: bytes, path: Path, offset: int, length: int, ordinal: int) -> None:
        """Take note of an entry that this process has written itself."""
        with self._lock:
            number = self._number(path)
            pack = self._packs[number]
            if pack is not None and pack.grown(offset, length):
                self._table.add_one(packs.prefix(key), Where(number, offset, length, ordinal))
            elif pack is not None:
                self._take(number, pack)

    def arrive(self) -> None:
        """Tell others that the folder is in use, from the day on on which this was first said; best effort."""
        with self._lock, suppress(OSError):
            if self._presence is None or self._process != os.getpid():
                users = self.folder / USERS
                users.mkdir(parents=True, exist_ok=True)
                name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.lock"
                self._presence, self._process = held(users / name), os.getpid()

    def leave(self) -> None:
        """Close all files, and tell that the folder is no longer in use."""
        with self._lock:
            for pack in self._packs:
                if pack is not None:
                    pack.close()
            self._open.clear()
            if self._presence is not None and self._process == os.getpid():
                with suppress(OSError):
                    Path(self._presence.lock_file).unlink(missing_ok=True)
                self._presence.release()
                self._presence = None

    def _places(self, key: bytes) -> Iterator[Where]:
        for place in self._table.find(packs.prefix(key)):
            if self._packs[place.pack] is not None and (place.pack, place.offset) not in self._damaged:
                yield place

    def _payload(self, key: bytes, place: Where) -> bytes | None:
        with self._lock:
            pack = self._packs[place.pack]
            if pack is None:
                return None
            self._opened(place.pack)
        try:
            entry = pack.read(place.offset, place.length)
        except FileNotFoundError:  # collected by another process; its entries may be in another pack by now
            with self._lock:
                self._packs[place.pack] = None
                self._looked = float("-inf")
            return None
        except OSError as error:
            if error.errno not in LOST:
                raise
            entry = None
        if entry is None:
            self._damaged.add((place.pack, place.offset))
            return None
        header, payload = entry
        if header.key != key:
            return None
        if header.made < (day := packs.today()):
            pack.stamp(place.ordinal, day)
        return payload

    def _opened(self, number: int) -> None:
        self._open[number] = None
        self._open.move_to_end(number)
        while len(self._open) > OPEN_PACKS:
            other = self._packs[self._open.popitem(last=False)[0]]
            if other is not None:
                other.close()

    def _number(self, path: Path) -> int:
        if path.name not in self._numbers:
            self._numbers[path.name] = len(self._packs)
            self._packs.append(Pack(path))
        return self._numbers[path.name]

    def _look(self) -> bool:
        """Take in what is new in the folder; False where it is too soon after the last time."""
        began = time.monotonic()
        if began - self._looked < LOOKING * self._took:
            return False
        paths = found(self.folder)
        if paths:
            self.arrive()
        there = {self._number(path) for path in paths}
        for number, pack in enumerate(self._packs):
            if pack is None:
                continue
            if number not in there and not pack.opened:
                self._packs[number] = None  # collected; what is open can still be read
            elif number in there:
                self._take(number, pack)
        self._looked = time.monotonic()
        self._took = self._looked - began
        return True

    def _take(self, number: int, pack: Pack) -> None:
        try:
            if pack.path.stat().st_size > pack.known or not pack.known:
                self._opened(number)
                self._table.add(number, pack.news())
        except FileNotFoundError:
            self._packs[number] = None
        except PermissionError:  # another user's; what is in it is not for this one
            self._packs[number] = None

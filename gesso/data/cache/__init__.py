"""Encoded pictures and captions on disk, each under the hash of everything it was made from.

The key of an entry is the SHA-256 of its ingredients, so whatever changes (a byte of the picture, the crop, the
autoencoder) is another entry, and nothing is ever stale. Entries lie in packs (packs.py, docs/cache.md); several
processes may share a folder, each writing a pack of its own. A damaged entry counts as absent and is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gesso.arrays import Array
from gesso.data.cache.shelf import Shelf
from gesso.data.cache.writer import Writer
from gesso.errors import StorageError

MEMORY_BYTES = 512 * 2**20
OVERHEAD = 512
"""Bytes of memory that an entry takes besides its values, about."""
MODELS = "models"
"""Folder of the cache with the folders that were made of models in one file (gesso/base_file.py)."""


def default_folder() -> Path:
    """Where encoded pictures are kept between runs: $GESSO_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("GESSO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gesso"


def key(**ingredients: str) -> str:
    """The name of an entry: SHA-256 over the named ingredients, in hexadecimal."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


class Store:
    """Named arrays by key, in the folder `folder`, with the ones used last also in at most `memory_bytes` of memory.

    Any thread may use it. While it lives, `gesso cache --collect` of another process leaves alone what it has used.
    """

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder, self.memory_bytes = folder, memory_bytes
        self._held: OrderedDict[str, dict[str, Array]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()
        self._shelf = Shelf(folder)
        self._writer = Writer(folder)
        self._end = weakref.finalize(self, _end, self._shelf, self._writer)

    def get(self, key: str) -> dict[str, Array] | None:
        """The read-only arrays stored under `key`, or None where there is no whole entry. Raises StorageError."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return dict(self._held[key])
        arrays = self._read(key)
        if arrays is not None:
            self._hold(key, arrays)
        return None if arrays is None else dict(arrays)

    def held(self, key: str) -> bool:
        """Whether the entry is in memory."""
        with self._lock:
            return key in self._held

    def known(self, key: str) -> bool:
        """Whether there is an entry under `key`, though perhaps a damaged one. Raises StorageError."""
        with self._reading():
            return self.held(key) or self._shelf.known(bytes.fromhex(key))

    def put(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Store `arrays` under `key`; what is there already stays. Raises StorageError where that cannot be written."""
        whole = {name: np.array(value, order="C") for name, value in arrays.items()}
        if self._read(key) is None:
            payload = save(whole)
            try:
                with self._lock:
                    self._shelf.arrive()
                    path, offset, ordinal = self._writer.put(bytes.fromhex(key), payload)
                    self._shelf.add(bytes.fromhex(key), path, offset, len(payload), ordinal)
            except OSError as error:
                raise StorageError(
                    f"the cache could not be written ({error.strerror or error})",
                    where=str(self.folder),
                    todo="make room there, or set cache.path to another folder",
                ) from error
        self._hold(key, whole)

    def close(self) -> None:
        """Finish what was written, and let go of all files; the store opens them again when it is used again."""
        with self._lock:
            _end(self._shelf, self._writer)

    def _read(self, key: str) -> dict[str, Array] | None:
        with self._reading():
            for payload in self._shelf.payloads(bytes.fromhex(key)):
                try:
                    return load(payload)
                except SafetensorError:  # whole, as its hash says, but from another hand
                    continue
        return None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the cache could not be read ({error.strerror or error})",
                where=str(self.folder),
                todo="check the disk, or set cache.path to another folder",
            ) from error

    def _hold(self, key: str, arrays: dict[str, Array]) -> None:
        for value in arrays.values():
            value.flags.writeable = False
        with self._lock:
            before = self._held.pop(key, None)
            self._bytes += _size(arrays) - (0 if before is None else _size(before))
            self._held[key] = arrays
            while self._bytes > self.memory_bytes:
                self._bytes -= _size(self._held.popitem(last=False)[1])


def _end(shelf: Shelf, writer: Writer) -> None:
    writer.close()
    shelf.leave()


def _size(arrays: Mapping[str, Array]) -> int:
    return OVERHEAD + sum(value.nbytes for value in arrays.values())

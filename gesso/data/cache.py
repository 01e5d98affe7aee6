"""Encoded pictures and captions on disk, each under the hash of everything it was made from.

An entry is a small safetensors file whose name is the SHA-256 of its ingredients, so whatever changes (a byte of the
picture, the crop, the autoencoder) is another entry, and nothing is ever stale. Entries appear by one rename: several
processes may share a folder. A damaged entry counts as absent and is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gesso.arrays import Array
from gesso.errors import StorageError

MEMORY_BYTES = 512 * 2**20


def default_folder() -> Path:
    """Where encoded pictures are kept between runs: $GESSO_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("GESSO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gesso"


def key(**ingredients: str) -> str:
    """The name of an entry: SHA-256 over the named ingredients, in hexadecimal."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


class Store:
    """Named arrays by key, in the folder `folder`, with the ones used last also in at most `memory_bytes` of memory."""

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder, self.memory_bytes = folder, memory_bytes
        self._held: OrderedDict[str, dict[str, Array]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> dict[str, Array] | None:
        """The read-only arrays stored under `key`, or None where there is no whole entry."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return dict(self._held[key])
        arrays = self._read(key)
        if arrays is not None:
            self._hold(key, arrays)
        return None if arrays is None else dict(arrays)

    def put(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Store `arrays` under `key`. Raises StorageError where the disk is full or cannot be written."""
        whole = {name: np.array(value, order="C") for name, value in arrays.items()}
        path = self._path(key)
        # Not tempfile: its files are readable by their owner alone, and a cache may be shared.
        part = path.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(save(whole, metadata={"sha256": _digest(whole)}))
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"the cache could not be written ({error.strerror or error})",
                where=str(self.folder),
                todo="make room there, or set cache.path to another folder",
            ) from error
        self._hold(key, whole)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, Array] | None:
        try:
            with safe_open(self._path(key), framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
                recorded = (file.metadata() or {}).get("sha256")
        except (FileNotFoundError, SafetensorError):
            return None
        except OSError as error:
            raise StorageError(
                f"the cache could not be read ({error.strerror or error})",
                where=str(self.folder),
                todo="check the disk, or set cache.path to another folder",
            ) from error
        return arrays if recorded == _digest(arrays) else None

    def _hold(self, key: str, arrays: dict[str, Array]) -> None:
        for value in arrays.values():
            value.flags.writeable = False
        with self._lock:
            self._bytes += _size(arrays) - _size(self._held.pop(key, {}))
            self._held[key] = arrays
            while self._bytes > self.memory_bytes:
                self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(arrays: Mapping[str, Array]) -> int:
    return sum(value.nbytes for value in arrays.values())


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and values: safetensors itself does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()

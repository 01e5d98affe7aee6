"""SHA-256 of files that hardly ever change, such as pictures and a model's weights, without reading them every time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from gesso.data.cache import Store, key
from gesso.data.images import fingerprint
from gesso.data.places import Inside, Place

SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a file's times tell of every change: some file systems count in steps of 2 s (FAT)."""


def sha256(path: Place, store: Store) -> str:
    """SHA-256 of a file, or of a picture inside one, in hexadecimal. Raises DataError where it cannot be read.

    It comes from `store` where the file's place, inode, size and times are those it was read with: git's index trusts
    the same signs. A change of content that keeps them all takes the clock or the disk itself: the time of the last
    change of status (ctime) cannot be set. A file that changed just now is read and not remembered.
    """
    file = path.path if isinstance(path, Inside) else path
    if not isinstance(file, Path) or (isinstance(path, Inside) and path.sha256):
        return fingerprint(path)
    at = str(path.at) if isinstance(path, Inside) else ""
    try:
        real = file.resolve()
        status = real.stat()
    except OSError:
        return fingerprint(path)  # it says what is wrong
    name = _key(real, status, at)
    found = store.get(name)
    if found is not None:
        return bytes(found["sha256"]).hex()
    digest = fingerprint(path if at else real)
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS
    if settled and _key(real, real.stat(), at) == name:
        store.put(name, {"sha256": np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)})
    return digest


def _key(path: Path, status: os.stat_result, at: str) -> str:
    return key(
        kind="file",
        path=str(path),
        at=at,
        inode=f"{status.st_dev}:{status.st_ino}",
        size=str(status.st_size),
        times=f"{status.st_mtime_ns}:{status.st_ctime_ns}",
    )

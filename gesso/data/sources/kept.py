"""Indexes of shards: found beside them, kept in the cache from an earlier start, or made now."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from gesso.data import index, remote
from gesso.data.index import Index, Row
from gesso.data.places import File
from gesso.data.remembered import SETTLED_NS
from gesso.data.remote import AT_ONCE, Remote
from gesso.errors import DataError

FOLDER = "index"
"""Where indexes are kept in the cache."""


Found = TypeVar("Found")


def each(files: Sequence[File], of: Callable[[File], Found]) -> list[Found]:
    """What `of` gives for each file; several at once where they are behind URLs."""
    if not any(isinstance(file, Remote) for file in files):
        return [of(file) for file in files]
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gesso-index")
    try:
        return list(pool.map(of, files))
    finally:
        pool.shutdown(cancel_futures=True)


def beside(file: File, cache: Path | None) -> Index | None:
    """The index that lies beside a shard, where there is one of this shard. Raises DataError, NetworkError."""
    if not isinstance(file, Remote):
        try:
            size = file.stat().st_size
        except OSError:
            return None  # the shard's own reader says why
        return index.read(Path(index.beside(str(file))), {"shard_size": size})
    place = _place(file, {"beside": index.ENDING}, cache)
    found = _read(place, file.size)
    if found is None and (there := remote.beside(file, index.ENDING)):
        data = np.frombuffer(there.read(0, there.size), np.uint8)
        found = index.parsed(data, str(there), {"shard_size": file.size})
        if found is not None and place is not None:
            index.save_columns(place, found.columns, {"shard_size": file.size})
            found = _read(place, file.size)
    return found


def made(file: File, asked: Mapping[str, str], cache: Path | None, rows: Callable[[], Iterable[Row]]) -> Index:
    """The index of a file as it was kept under what was `asked`, or of `rows` now, which is then kept.

    Without a folder `cache`, or for a file whose changes nothing tells, it is only held in memory.
    """
    place = _place(file, asked, cache)
    found = _read(place, _size(file)) if place else None
    if found is not None:
        return found
    columns = index.columns(rows())
    if place is not None and place == _place(file, asked, cache):
        index.save_columns(place, columns, {"shard_size": _size(file)})
        return _read(place, _size(file)) or Index(columns, str(file))
    return Index(columns, str(file))


def _read(place: Path | None, size: int) -> Index | None:
    """A kept index; None where it is missing or damaged, since it can be made again."""
    try:
        return index.read(place, {"shard_size": size}) if place else None
    except DataError:
        return None


def _size(file: File) -> int:
    return file.size if isinstance(file, Remote) else file.stat().st_size


def _place(file: File, asked: Mapping[str, str], cache: Path | None) -> Path | None:
    """Where the index of this version of a file is kept; None where a change of it might go unseen."""
    if cache is None:
        return None
    if isinstance(file, Remote):
        if not file.stamp:
            return None
        signs = [str(file), file.size, file.stamp]
    else:
        try:
            real = file.resolve()
            status = real.stat()
        except OSError:
            return None  # the file's own reader says why
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= SETTLED_NS:
            return None
        signs = [str(real), status.st_size, f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"]
    name = hashlib.sha256(json.dumps([index.VERSION, *signs, dict(asked)], sort_keys=True).encode()).hexdigest()
    return cache / FOLDER / name[:2] / (name + index.ENDING)

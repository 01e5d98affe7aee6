"""Looking after a cache folder: what is in it, what of that is whole, and what may go.

Whatever is removed would only be made again. What a living process has used since it began stays: each tells of itself
by a lock in the folder `users` (gesso/data/cache/shelf.py). A pack that is being written is left alone.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from gesso.data.cache import MODELS, packs
from gesso.data.cache.packs import ALIGN, Pack, Rows
from gesso.data.cache.shelf import LOST
from gesso.data.cache.writer import PACKS, USERS, Writer, found, held
from gesso.errors import StorageError

SMALL = packs.PACK_BYTES // 2
"""Packs below this size are put together."""
BESIDE = packs.ROW.itemsize + 4
"""Bytes of an entry in the index and among the stamps."""
OLD_SECONDS = 3600.0
"""Age from which a half-written file is no longer anyone's."""
_PACK = re.compile(r"[0-9a-f]{16}\.(pack|index|used|lock)")
_USER = re.compile(r".+-\d+-[0-9a-f]{8}\.lock")
_MODEL = re.compile(r"[0-9a-f]{64}(\.lock)?")
_LEFT = re.compile(r"\.[0-9a-f]{16}\.index\.tmp-[0-9a-f]{8}|\.[0-9a-f]{64}\.\d+\.[0-9a-f]{8}\.part")
"""Half-written files."""
_EARLIER = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Entries of the cache before it had packs, in folders named by their first two digits."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFacts:
    """What there is to say of a pack. Days are counted since 1970 (UTC)."""

    name: str
    entries: int
    size: int
    """Bytes on the disk, index and stamps included."""
    made: int
    used: int
    writing: bool
    """A process has it open for writing."""


@dataclass(slots=True, kw_only=True)
class Done:
    """What was done to a cache, in entries and bytes."""

    kept: int = 0
    removed: int = 0
    """Not used for long enough, or too much."""
    damaged: int = 0
    twice: int = 0
    """Stored a second time."""
    before: int = 0
    after: int = 0
    busy: int = 0
    """Packs that were being written and were left as they are."""
    swept: int = 0
    """Half-written files of processes that were killed."""


def facts(folder: Path) -> list[PackFacts]:
    """Every pack of the cache, by name. Raises StorageError."""
    with _readable(folder):
        said = []
        for path in found(folder):
            pack = Pack(path)
            rows = pack.news()
            used = pack.used(rows)
            lock = held(packs.lock_path(path))
            if lock is not None:
                lock.release()
            said.append(
                PackFacts(
                    name=path.stem,
                    entries=len(rows),
                    size=_size(path),
                    made=int(rows["made"].min()) if len(rows) else packs.today(),
                    used=int(used.max()) if len(rows) else packs.today(),
                    writing=lock is None,
                )
            )
        return said


def size(folder: Path) -> int:
    """Bytes of all files of the cache, those of earlier versions included. Raises StorageError."""
    with _readable(folder):
        files = (path for own in _own(folder) for path in ([own] if own.is_file() else own.rglob("*")))
        return sum(path.stat().st_size for path in files if path.is_file())


def clear(folder: Path) -> int:
    """Remove the whole cache, but nothing else that lies in the folder; returns the bytes that this freed.

    Raises StorageError, also where a living process uses it.
    """
    with _readable(folder):
        if since := _users(folder):
            raise StorageError(
                f"{len(since)} running process{'es use' * (len(since) > 1) or ' uses'} this cache",
                where=str(folder),
                todo="wait for it, or remove with --collect what no process uses",
            )
        freed = size(folder)
        own = list(_own(folder))
        for path in own:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for place in {path.parent for path in own} | {folder / PACKS, folder / USERS}:
            with suppress(OSError):  # it is not there, or something else lies in it
                place.rmdir()
    return freed


def collect(
    folder: Path,
    *,
    keep_days: int | None = None,
    max_bytes: int | None = None,
    verify: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Done:
    """Remove what was not used for more than `keep_days` days, and then what was used longest ago above `max_bytes`.

    Entries that are stored twice lose their copies; with `verify`, every payload is read and damaged entries are
    dropped. Packs that lose something are written anew, small ones together. Raises StorageError.
    """
    with _readable(folder):
        done = Done(swept=_sweep(folder))
        care = [_Cared(path) for path in found(folder)]
        try:
            done.before = sum(each.size for each in care)
            done.busy = sum(each.lock is None for each in care)
            keep_since = packs.today() - keep_days if keep_days is not None else 0
            protected = min([*_users(folder), packs.today() + 1])
            _mark(care, keep_since, protected, max_bytes, done)
            if verify:
                _verify(care, done, progress)
            _rewrite(folder, care, progress)
            done.kept = sum(int(each.keep.sum()) for each in care)
        finally:
            for each in care:
                each.release()
        done.after = sum(_size(path) for path in found(folder))
    return done


class _Cared:
    """A pack with its entries, the lock on it where it can be had, and which of the entries stay."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.data = path, _size(path), path.stat().st_size
        self.lock: FileLock | None = held(packs.lock_path(path))
        self.pack = Pack(path)
        try:
            self.rows: Rows = self.pack.news()
        except FileNotFoundError:
            self.rows = np.empty(0, dtype=packs.ROW)
        self.used = np.minimum(self.pack.used(self.rows), packs.today())  # a damaged stamp does not last for ever
        self.keep = np.ones(len(self.rows), dtype=bool)
        self.bytes = packs.padded(self.rows["length"].astype(np.int64))
        self.torn = self.lock is not None and int(self.bytes.sum()) < self.data
        """Some of its bytes are no entry."""

    def release(self) -> None:
        self.pack.close()
        if self.lock is not None:
            self.lock.release()


def _mark(care: Sequence[_Cared], keep_since: int, protected: int, max_bytes: int | None, done: Done) -> None:
    """Set in `keep` what stays. Packs without a lock keep all they have, and what they have counts."""
    mine = sorted(care, key=lambda each: each.lock is not None)
    if not mine:
        return
    free = np.concatenate([np.full(len(each.rows), each.lock is not None) for each in mine])
    prefixes = np.concatenate([each.rows["prefix"] for each in mine])
    lengths = np.concatenate([each.bytes for each in mine]) + BESIDE
    used = np.concatenate([each.used for each in mine]).astype(np.int64)
    first = np.zeros(len(prefixes), dtype=bool)
    first[np.unique(prefixes, return_index=True)[1]] = True
    keep = ~free | first
    done.twice = int((~keep).sum())
    safe = ~free | (used >= protected)
    wanted = keep & (safe | (used >= keep_since))
    if max_bytes is not None:
        order = np.lexsort((-np.arange(len(used)), used, safe))[::-1]  # safe ones first, then those used last
        order = order[wanted[order]]
        over = order[np.cumsum(lengths[order]) > max_bytes - packs.INDEX_BYTES]
        wanted[over] = safe[over]
    done.removed = int((keep & ~wanted).sum())
    at = 0
    for each in mine:
        each.keep, at = wanted[at : at + len(each.rows)], at + len(each.rows)


def _verify(care: Sequence[_Cared], done: Done, progress: Progress) -> None:
    """Read all that stays, and let go of what is damaged."""
    total, at = sum(int(each.keep.sum()) for each in care), 0
    for each in care:
        for number in np.flatnonzero(each.keep):
            at += 1
            if _whole(each, each.rows[number]) is None:
                done.damaged += 1
                each.keep[number] = each.lock is None
            progress("entries", at, total)


def _whole(each: _Cared, row: np.void) -> tuple[packs.Header, bytes] | None:
    try:
        return each.pack.read(int(row["unit"]) * ALIGN, int(row["length"]))
    except OSError as error:
        if error.errno not in LOST:
            raise
        return None


def _rewrite(folder: Path, care: Sequence[_Cared], progress: Progress) -> None:
    """Write what stays of packs that lose something into new ones; the emptied ones go, those with nothing left first.

    At each moment every entry is in a pack: killed in between, some are stored twice until the next collection.
    """
    own = [each for each in care if each.lock is not None]
    losing = [each for each in own if each.torn or not each.keep.all() or not len(each.keep)]
    small = [each for each in own if each.size < SMALL]
    changed = sorted({*losing, *(small if len(small) > 1 else ())}, key=lambda each: int(each.keep.sum()))
    writer = Writer(folder, anew=True)
    into: Pack | None = None
    try:
        for number, each in enumerate(changed, 1):
            for row, used in zip(each.rows[each.keep], each.used[each.keep].tolist(), strict=True):
                entry = _whole(each, row)
                if entry is not None:
                    path, _, ordinal = writer.put(entry[0].key, entry[1], entry[0].made)
                    into = into if into is not None and into.path == path else Pack(path)
                    into.stamp(ordinal, used)
            writer.sync()
            _remove(each.path)
            progress("packs", number, len(changed))
    finally:
        writer.close()


def _remove(pack: Path) -> None:
    pack.unlink(missing_ok=True)
    for beside in (packs.index_path(pack), packs.stamps_path(pack), packs.lock_path(pack)):
        with suppress(OSError):  # Windows does not let go of a lock that is held; `_sweep` comes back for it
            beside.unlink(missing_ok=True)


def _users(folder: Path) -> list[int]:
    """The day on which each living process began to use the cache; what dead ones left is removed."""
    days = []
    for path in sorted((folder / USERS).glob("*.lock")):
        with suppress(FileNotFoundError):
            began = int(path.stat().st_mtime) // packs.SECONDS_A_DAY
            lock = held(path)
            if lock is None:
                days.append(began)
                continue
            path.unlink(missing_ok=True)
            lock.release()
    return days


def _sweep(folder: Path) -> int:
    """Remove what killed processes left half-written, and what stands beside packs that are gone."""
    swept = 0
    there = {path.stem for path in found(folder)}
    for path in _own(folder):
        orphan = path.parent.name == PACKS and path.suffix != ".pack" and path.stem not in there
        with suppress(FileNotFoundError):
            if (orphan or _LEFT.fullmatch(path.name)) and time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink()
                swept += 1
    return swept


def _own(folder: Path) -> Iterator[Path]:
    """What belongs to the cache, files and the folders of models; whatever else lies in `folder` is its owner's."""
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        names = {PACKS: (_PACK, _LEFT), USERS: (_USER,), MODELS: (_MODEL,)}.get(place.name)
        if re.fullmatch(r"[0-9a-f]{2}", place.name):
            names = (_EARLIER, _LEFT)
        for path in sorted(place.iterdir()) if names and place.is_dir() else ():
            if any(name.fullmatch(path.name) for name in names or ()):
                yield path


def _size(pack: Path) -> int:
    total = 0
    for path in (pack, packs.index_path(pack), packs.stamps_path(pack)):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the cache could not be looked after ({error.strerror or error})",
            where=str(error.filename or folder),
            todo="check the disk and your permissions there; nothing is lost that would not be made again",
        ) from error

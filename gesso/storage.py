"""Files that exist whole or not at all, and one owner for each run folder.

Everything gesso leaves on disk goes through here. A file or folder is made under a hidden name beside its final place
(`.NAME.tmp-xxxxxxxx`), reaches the disk (fsync), and is then renamed: POSIX makes the rename atomic, and an fsync of
the parent folder makes it last (Pillai et al. 2014, "All file systems are not created equal", OSDI). A folder
that takes another's place first moves that one to `.NAME.old-xxxxxxxx`. `sweep` settles what a killed process left.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from gesso.errors import LockedError, StorageError

CHUNK = 8 << 20
"""Bytes handed to the system at once."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{8}")


class FullError(StorageError):
    """A disk without room. `needed` and `free` are bytes; `needed` is 0 where it is not known."""

    def __init__(self, what: str, *, needed: int, free: int, where: str = "", todo: str = "") -> None:
        self.needed, self.free = needed, free
        super().__init__(what, where=where, todo=todo)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is or will be."""
    for place in (path, *path.absolute().parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    raise StorageError("no folder above this path exists", where=str(path))


def amount(count: int) -> str:
    """Bytes for people: 512 bytes, 3.4 MB, 12.1 GB (powers of ten)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def require(path: Path, needed: int, *, what: str) -> None:
    """Raise FullError unless `needed` bytes are free at `path`; `what` names what they are for."""
    free = free_bytes(path)
    if free < needed:
        raise _full(path, needed, free, what)


def _full(path: Path, needed: int, free: int, what: str) -> FullError:
    need = f" needs {amount(needed)}," if needed else ":"
    room = (
        f"free at least {amount(max(needed - free, 1))} more" if needed > free else "free some space or raise the quota"
    )
    return FullError(
        f"no room on the disk: {what}{need} {amount(free)} are free",
        needed=needed,
        free=free,
        where=str(path),
        todo=f"{room}, or lower save.keep; then start the same command again. What was saved before is untouched",
    )


@contextmanager
def guard(path: Path, *, what: str, needed: int = 0) -> Iterator[None]:
    """Turn the system's refusals below into StorageError; `what` names what is being written, `needed` its bytes."""
    try:
        yield
    except FullError as error:
        if not needed:
            raise
        raise _full(path, needed, free_bytes(path), what) from error
    except OSError as error:
        place = str(path)
        if error.errno in _FULL:
            raise _full(path, needed, free_bytes(path), what) from error
        if error.errno == errno.EROFS:
            raise StorageError(
                f"{what} cannot be written: the disk is read-only", where=place, todo="choose another folder with --out"
            ) from error
        if error.errno in _DENIED:
            raise StorageError(
                f"{what} cannot be written: permission denied ({error.filename or place})",
                where=place,
                todo="give yourself write permission there, or choose another folder with --out",
            ) from error
        raise StorageError(
            f"{what} cannot be written: {error.strerror or error} ({error.filename or place})",
            where=place,
            todo="check the disk, or choose another folder with --out; what was saved before is untouched",
        ) from error


def hidden(final: Path, kind: str = "tmp") -> Path:
    """A new name beside `final` that `sweep` knows as gesso's own."""
    return final.with_name(f".{final.name}.{kind}-{secrets.token_hex(4)}")


def fsync_path(path: Path) -> None:
    """Make one file, or one folder's list of names, reach the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders; its renames are written through
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make every file below `folder`, then every folder from the innermost out, reach the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            fsync_path(Path(place, name))
        fsync_path(Path(place))


class Sink:
    """A file being written through the operating system, without a buffer of its own."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            view = view[os.write(self._handle, view[:CHUNK]) :]


@contextmanager
def replacing(path: Path) -> Iterator[Sink]:
    """Write `path` anew: its old content stays until the new is whole and on the disk. The mode follows the umask."""
    temporary = hidden(path)
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            yield Sink(handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):  # the reason for being here matters more; `sweep` comes back for the file
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, old or new, never half."""
    with replacing(path) as sink:
        sink.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, UTF-8, one trailing newline: equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes (never its mode, owner or link) to a file that appears whole."""
    with source.open("rb") as data, replacing(target) as sink:
        while chunk := data.read(CHUNK):
            sink.write(chunk)


def publish(temporary: Path, final: Path) -> None:
    """Put the finished folder `temporary` (a `hidden` sibling, already on the disk) in `final`'s place.

    A folder that was there is set aside first and removed last, so at each moment one of the two is whole; `sweep` puts
    it back if the process dies in between.
    """
    aside = hidden(final, "old")
    replaced = final.exists()
    if replaced:
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except BaseException:
        if replaced:
            os.rename(aside, final)
        raise
    fsync_path(final.parent)
    if replaced:
        discard(aside)


def discard(folder: Path) -> None:
    """Remove a folder of gesso's own; half removed, it has a name that `sweep` knows and nothing else reads."""
    if not _LEFTOVER.fullmatch(folder.name):
        gone = hidden(folder)
        os.rename(folder, gone)
        folder = gone
    shutil.rmtree(folder)


def sweep(folder: Path) -> list[str]:
    """Settle what a killed gesso left directly in `folder`, and say so, one sentence each.

    Unfinished files and folders go; a folder set aside whose successor never came takes its name back. Anything else,
    links included, is left alone. Call it only while holding the folder's RunLock.
    """
    said = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover is None or path.is_symlink():
            continue
        name, final = leftover["name"], path.with_name(leftover["name"])
        with guard(path, what=f"what is left of {name}"):
            if leftover["kind"] == "old" and not final.exists():
                os.rename(path, final)
                fsync_path(folder)
                said.append(f"{name} was being replaced when the last run ended; the earlier one is back in its place")
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        said.append(f"{name} was incomplete when the last run ended; the unfinished part was removed")
    return said


def probe(folder: Path, what: str = "the run folder") -> None:
    """Make `folder` and see that files can be written, flushed and renamed in it; raise StorageError otherwise."""
    with guard(folder, what=what):
        folder.mkdir(parents=True, exist_ok=True)
        trial = hidden(folder / "probe")
        moved = hidden(folder / "probe")
        try:
            trial.mkdir()
            write_bytes(trial / "file", b"gesso")
            fsync_tree(trial)
            os.rename(trial, moved)
            if (moved / "file").read_bytes() != b"gesso":
                raise StorageError(
                    "a file written here does not read back", where=str(folder), todo="choose another disk with --out"
                )
            fsync_path(folder)
        finally:
            for path in (trial, moved):
                shutil.rmtree(path, ignore_errors=True)


class RunLock:
    """One process per run folder: a lock of the operating system on `.lock`, so a killed holder lets go.

    `.lock.json` tells whoever comes second about the holder (host, process id, start). Entering raises LockedError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._note = folder / ".lock.json"
        self._lock = FileLock(folder / ".lock", timeout=0, thread_local=False)

    def __enter__(self) -> RunLock:
        with guard(self._folder, what="the run folder's lock"):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise self._held() from None
            try:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                write_json(self._note, {"host": socket.gethostname(), "pid": os.getpid(), "started": now})
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The note goes first: without the lock it could already be the next holder's.
        self._note.unlink(missing_ok=True)
        self._lock.release()

    def _held(self) -> LockedError:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            holder = f"process {note['pid']} on {note['host']}, started {note['started']}"
        except (OSError, ValueError, KeyError, TypeError):  # the holder has taken the lock but not yet signed it
            holder = "a process that started just now"
        return LockedError(
            f"another run is using this folder: {holder}",
            where=str(self._folder),
            todo="wait for it, stop it, or give this run a folder of its own with --out",
        )

"""`gesso pack`: any pictures that gesso reads, in few large files.

The pack grows in a hidden folder beside its place and takes its name when it is whole. There, a ledger holds a line for
each finished file (its SHA-256, its rows, and the SHA-256 of what the source said of them), on the disk before the next
file begins: a killed pack goes on behind the last file that verifies, and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gesso import hub
from gesso.errors import DataError, LockedError, RecipeError
from gesso.packing.forms import FORMS, Shard, complete
from gesso.packing.source import Prepared, Request, name_of, prepare, samples, told
from gesso.storage import fsync_path, fsync_tree, guard, write_bytes

__all__ = ["Done", "Prepared", "Request", "pack", "prepare"]

LEDGER = ".pack.jsonl"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of it; `kept` shards are from an earlier start, `nbytes` is their size on the disk."""

    pictures: int
    shards: int
    kept: int
    nbytes: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    page: str = ""


def pack(request: Request, progress: Progress) -> Done:
    """Write the pack, and put it on the Hub where asked. `progress` may raise to stop; the same call then goes on.

    Raises DataError that names every picture that cannot be read, unless those are to be skipped; RecipeError where
    something else is in the pack's place.
    """
    ready = prepare(request)
    if request.push:
        hub.check(request.push)
    out = request.out.expanduser()
    with _held(out):
        if out.exists():
            shards, kept = _whole(out, request, ready), -1
        else:
            work = Work(request, ready, out.with_name(f".{out.name}.packing"))
            shards, kept = work.carry_out(progress), work.kept
            work.publish(out)
    page = ""
    if request.push:
        said = "Upload by gesso pack"
        page = hub.push(out, request.push, public=request.public, message=said, kind="dataset", but=(LEDGER,))
    skipped = tuple(line for shard in shards for line in shard["skipped"])
    return Done(
        pictures=sum(shard["stop"] - shard["start"] for shard in shards) - len(skipped),
        shards=len(shards),
        kept=len(shards) if kept < 0 else kept,
        nbytes=sum((out / shard["file"]).stat().st_size for shard in shards),
        skipped=skipped,
        notes=ready.notes,
        page=page,
    )


class Work:
    """A pack being written in `folder`."""

    def __init__(self, request: Request, ready: Prepared, folder: Path) -> None:
        self.request, self.ready, self.folder = request, ready, folder
        self.form = FORMS[request.form]
        self.kept = 0

    def carry_out(self, progress: Progress) -> list[dict[str, Any]]:
        """All shards, those that are there already included."""
        total = len(self.ready.records)
        with guard(self.folder, what="the pack"):
            shards = self._resumed(progress)
            self.kept = len(shards)
            start = shards[-1]["stop"] if shards else 0
            problems: list[DataError] = []
            skipped: list[str] = []
            shard: Shard | None = None
            try:
                for row, found in samples(self.ready, range(start, total), self.request.resize):
                    if isinstance(found, DataError) and self.request.skip_broken:
                        skipped.append(f"{name_of(self.ready, row)}: {found.what}")
                    elif isinstance(found, DataError):
                        problems.append(found)
                    elif not problems:  # with one broken there will be no pack; what is left is to find the others
                        shard = shard or self.form.shard(self.folder / self.form.file(len(shards)), self.ready.columns)
                        shard.add(found)
                        if shard.nbytes >= self.request.shard_bytes:
                            shards.append(self._ended(shard, start, row + 1, skipped))
                            shard, start, skipped = None, row + 1, []
                    progress("pictures", row + 1, total)
                _raise_all(problems, total)
                if shard is not None:
                    shards.append(self._ended(shard, start, total, skipped))
                elif skipped and shards:
                    last = shards[-1]
                    last |= {"stop": total, "skipped": [*last["skipped"], *skipped]}
                    last |= {"source": told(self.ready, last["start"], total)}
                    self._enter(shards)
                shard = None
            finally:
                if shard is not None:
                    shard.abandon()
        if not shards:
            raise DataError("none of the pictures can be read", where=self.request.source)
        return shards

    def publish(self, out: Path) -> None:
        """Give the whole pack its name."""
        with guard(out, what="the pack"):
            complete(self.folder, self.request.form, self.ready.columns, list(_ledger(self.folder))[1:])
            fsync_tree(self.folder)
            os.rename(self.folder, out)
            fsync_path(out.parent)

    def _resumed(self, progress: Progress) -> list[dict[str, Any]]:
        """The finished shards that are still as the ledger says, of sources that are still the same."""
        shards = []
        for entry in finished(self.folder, self.request, self.ready):
            shards.append(entry)
            progress("finished pictures", entry["stop"], len(self.ready.records))
        if not shards:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        self._enter(shards)
        wanted = {self.folder / LEDGER, *(self.folder / name for shard in shards for name in shard["files"])}
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()
        (self.folder / self.form.file(0)).parent.mkdir(exist_ok=True)
        return shards

    def _enter(self, shards: Sequence[Mapping[str, Any]]) -> None:
        """Write the ledger anew."""
        lines = [_header(self.request, self.ready), *shards]
        write_bytes(self.folder / LEDGER, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())

    def _ended(self, shard: Shard, start: int, stop: int, skipped: Sequence[str]) -> dict[str, Any]:
        """Close a shard and enter it into the ledger."""
        files = shard.close()
        for path in files:
            fsync_path(path)
        entry = {
            "file": shard.path.relative_to(self.folder).as_posix(),
            "files": {path.relative_to(self.folder).as_posix(): _sha256(path) for path in files},
            "start": start,
            "stop": stop,
            "skipped": list(skipped),
            "source": told(self.ready, start, stop),
        }
        with (self.folder / LEDGER).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return entry


def finished(folder: Path, request: Request, ready: Prepared) -> Iterator[dict[str, Any]]:
    """The shards in `folder`, as long as they are what the ledger says, and the source says the same of their rows."""
    ledger, stop = _ledger(folder), 0
    if next(ledger, None) != _header(request, ready):
        return
    for entry in ledger:
        if entry["start"] != stop or entry["source"] != told(ready, stop, entry["stop"]):
            return
        if any(_sha256(folder / name) != known for name, known in entry["files"].items()):
            return
        stop = entry["stop"]
        yield entry


def _raise_all(problems: Sequence[DataError], total: int) -> None:
    if problems:
        lines = [f"{error.where}: {error.what}" for error in problems]
        raise DataError(
            f"{len(problems)} of {total} pictures cannot be packed\n  " + "\n  ".join(lines),
            todo="replace them and start again, which goes on here; or leave them out with --skip-broken",
        )


def _header(request: Request, ready: Prepared) -> dict[str, Any]:
    """What decides the bytes of a pack, besides its source."""
    columns = {name: getattr(ready.columns, name) for name in ("several", "weighted", "masks")}
    return {"form": request.form, "shard_bytes": request.shard_bytes, "resize": request.resize,
            "skip_broken": request.skip_broken, **columns}  # fmt: skip


def _ledger(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a ledger."""
    path = folder / LEDGER
    data = path.read_bytes() if path.is_file() else b""
    with suppress(ValueError):
        for line in data.splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


def _whole(out: Path, request: Request, ready: Prepared) -> list[dict[str, Any]]:
    """The shards of a pack that is there and is the one asked for; RecipeError for anything else."""
    shards = list(finished(out, request, ready))
    if not shards or shards[-1]["stop"] != len(ready.records):
        raise RecipeError(
            "this is there already, and is not what would be packed",
            where=str(out),
            todo="name another place; gesso overwrites nothing",
        )
    return shards


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """One process at a time packs to `out`."""
    with guard(out, what="the pack"):
        out.parent.mkdir(parents=True, exist_ok=True)
        path = out.with_name(f".{out.name}.lock")
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise LockedError("another process is packing to this place", where=str(out), todo="wait for it") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


def _sha256(path: Path) -> str:
    """SHA-256 of a file; "" where it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""

"""Checkpoints: published whole, checked by SHA-256, and never all lost.

    OUT/checkpoint-N/   the files given, state.json, manifest.json (size and SHA-256 of each file)
    OUT/latest          the name of the newest, for people; nothing here reads it

A checkpoint is made in a hidden sibling folder, flushed, listed in its manifest, flushed again, and renamed into place;
only then are older ones removed. The number in the folder's name is the order: no clock and no pointer decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gesso import __version__
from gesso.arrays import Array
from gesso.errors import RecipeError, StorageError
from gesso.formats import tensors
from gesso.resume import compatible as compatible
from gesso.resume import flatten as flatten
from gesso.storage import discard, fsync_tree, guard, hidden, publish, require, write_bytes, write_json

Content = tensors.Writer | Mapping[str, Array]
"""A file's arrays, or what writes the file (or folder) at the path that it is given."""

_NAME = re.compile(r"checkpoint-(?P<step>0|[1-9][0-9]*)|\.checkpoint-(?P<aside>0|[1-9][0-9]*)\.old-[0-9a-f]{8}")
MANIFEST = "manifest.json"
STATE = "state.json"
SLACK = 1 << 20
"""Bytes asked for besides the arrays: manifest, state, folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A published checkpoint: its folder, its optimiser step, and what state.json holds."""

    folder: Path
    step: int
    state: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self, name: str) -> dict[str, Array]:
        """The arrays of one of its safetensors files; StorageError where a number is not finite."""
        return tensors.load(self.folder / name, finite=True)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run folder, of which `keep` remain. Its user holds the folder's RunLock."""

    out: Path
    keep: int = 3

    def save(self, step: int, files: Mapping[str, Content], state: Mapping[str, Any]) -> Path:
        """Publish `checkpoint-<step>` and remove those that are now too old; gives its folder.

        files: content by relative name ("optimizer.safetensors", "unet"). state: JSON values; "step" and "gesso" (the
        version) are added. A checkpoint of the same step is replaced, and stays until the new one is whole. Raises
        StorageError (FullError for want of room), and then leaves everything as it was.
        """
        final, what = self.out / f"checkpoint-{step}", f"checkpoint-{step}"
        needed = SLACK + sum(map(_nbytes, files.values()))
        with guard(self.out, what=what, needed=needed):
            self.out.mkdir(parents=True, exist_ok=True)
            require(self.out, needed, what=what)
            temporary = hidden(final)
            try:
                temporary.mkdir()
                _fill(temporary, step, files, {**state, "step": step, "gesso": __version__})
                _set_stranger_aside(final)
                publish(temporary, final)
            except BaseException:
                with suppress(OSError):  # the reason for being here matters more; `sweep` comes back for the folder
                    shutil.rmtree(temporary, ignore_errors=False)
                raise
            write_bytes(self.out / "latest", f"{final.name}\n".encode())
            self._prune(step)
        return final

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
        skipped: list[str] = []
        for step, folder in sorted(self._numbered().items(), reverse=True):
            problems = verify(folder)
            if not problems:
                return _read(folder), skipped
            skipped.append(f"{folder.name} (step {step}) was skipped: {problems[0]}")
        return None, skipped

    def whole(self) -> tuple[list[Checkpoint], list[str]]:
        """All that verify, by rising step, and a sentence for each that does not."""
        found, skipped = [], []
        for _, folder in sorted(self._numbered().items()):
            problems = verify(folder)
            if problems:
                skipped.append(f"{folder.name} is damaged and left out: {problems[0]}")
            else:
                found.append(_read(folder))
        return found, skipped

    def chosen(self, folder: Path) -> Checkpoint:
        """The checkpoint in `folder`, of this run or of another; raises StorageError where it is none, or damaged.

        Another run's can only be the beginning of a new one: RecipeError where there are checkpoints here already.
        """
        if not (folder / MANIFEST).is_file():
            raise StorageError(
                "this is no checkpoint of gesso",
                where=str(folder),
                todo="name a folder such as runs/dog/checkpoint-500",
            )
        if folder.resolve().parent != self.out.resolve() and self._numbered():
            raise RecipeError(
                f"{folder} is another run's checkpoint, and {self.out} holds checkpoints of its own",
                todo="begin a new run with another --out",
            )
        return load(folder)

    def leave(self, step: int) -> list[str]:
        """Set aside the checkpoints later than `step`, from which a run goes on: they belong to another course.

        A sentence for each. They are renamed to checkpoint-N-left-1 and so on, and no longer counted or removed.
        """
        said = []
        for later, folder in sorted(self._numbered().items()):
            if later > step:
                kept = _free(self.out / f"checkpoint-{later}", "left")
                os.rename(folder, kept)
                said.append(f"checkpoint-{later} is of the course that is left, and now called {kept.name}")
        return said

    def _numbered(self) -> dict[int, Path]:
        """Checkpoint folders by step, those set aside by an interrupted replacement included."""
        found: dict[int, Path] = {}
        for folder in self.out.iterdir() if self.out.is_dir() else []:
            step = _step(folder)
            if step is None or not folder.is_dir() or folder.is_symlink():
                continue
            if step not in found or not folder.name.startswith("."):
                found[step] = folder
        return found

    def _prune(self, saved: int) -> None:
        """Remove what is older than the `keep` newest whole checkpoints up to step `saved`, which is one of them.

        A later one stays: the run has gone back past it and will replace it. A folder without a manifest is not ours.
        """
        older = {step: folder for step, folder in self._numbered().items() if step < saved}
        whole = sorted((step for step, folder in older.items() if not verify(folder, contents=False)), reverse=True)
        kept = [saved, *whole][: max(self.keep, 1)]
        for step, folder in older.items():
            if len(kept) == max(self.keep, 1) and step < kept[-1] and (folder / MANIFEST).is_file():
                discard(folder)


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, verified; raises StorageError naming the damaged file."""
    problems = verify(folder)
    if problems:
        raise StorageError(
            f"this checkpoint is damaged: {problems[0]}", where=str(folder), todo="go on from an earlier checkpoint"
        )
    return _read(folder)


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(folder=folder, step=int(state["step"]), state=state)


def verify(folder: Path, *, contents: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one sentence each; empty when every byte is as it was written.

    Without `contents` only the presence and the size of the files are looked at.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        step = int(manifest["step"])
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    problems = [] if STATE in listed else [f"{MANIFEST} does not list {STATE}"]
    if (named := _step(folder)) is not None and named != step:
        problems.append(f"{MANIFEST} is that of step {step}")
    for name, (size, digest) in sorted(listed.items()):
        problem = _wrong(folder, name, size, digest if contents else "")
        if problem:
            problems.append(f"{name} {problem}")
    return problems


def _step(folder: Path) -> int | None:
    name = _NAME.fullmatch(folder.name)
    return int(name["step"] or name["aside"]) if name else None


def _wrong(folder: Path, name: str, size: int, digest: str) -> str:
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "lies outside the checkpoint"
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        if digest and _sha256(path) != digest:
            return "is damaged: its SHA-256 is not the one written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _nbytes(content: Content) -> int:
    """The bytes of a file's tensors; a writer that does not tell copies a small file, such as a configuration."""
    if isinstance(content, Mapping):
        return tensors.nbytes(content)
    return content.nbytes if isinstance(content, tensors.Sized) else 0


def _fill(folder: Path, step: int, files: Mapping[str, Content], state: Mapping[str, Any]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Mapping):
            tensors.save(path, content, {"format": "pt"})
        else:
            content(path)
    write_json(folder / STATE, state)
    fsync_tree(folder)
    written = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    listing = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in written}
    write_json(folder / MANIFEST, {"gesso": __version__, "step": step, "files": listing})  # flushes the folder too


def _set_stranger_aside(final: Path) -> None:
    """Keep a folder of this name that gesso did not finish (no manifest) under another one, rather than replace it."""
    if final.exists() and not (final / MANIFEST).is_file():
        os.rename(final, _free(final, "found"))


def _free(final: Path, why: str) -> Path:
    """A name beside `final` that is not taken: checkpoint-500-found-1."""
    number = 1
    while (kept := final.with_name(f"{final.name}-{why}-{number}")).exists():
        number += 1
    return kept


def _sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()

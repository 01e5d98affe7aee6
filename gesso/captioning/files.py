"""Where `gesso caption` writes: a text file beside each picture, or one list. Nothing that is there is ever changed.

A text file appears whole under a name that was free. A list grows in a journal, a hidden file beside it, one line a
picture that is on the disk before the next batch begins; the list itself appears whole at the end. The journal stays,
and says of the list that gesso wrote it: with more pictures in the folder it can be continued, and once somebody has
changed it, it is theirs.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gesso.data import arrow
from gesso.data.sources import loose
from gesso.data.sources.folder import Folder, stem
from gesso.errors import DataError, LockedError, RecipeError
from gesso.schema import DataTable
from gesso.storage import fsync_path, guard, hidden, write_bytes

BESIDE = ("txt", "caption")
LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "image_captions.json", "img_txt.csv")
LINES = ({"settings"}, {"file_name", "text"}, {"list"}, {"done"})
"""What the lines of a journal hold."""
MARK = "\x01"
"""A prompt that no picture can have of its own, to see which have none."""


class Target:
    """Where captions of a folder's pictures go, and which are there.

    A picture is called as the readers call it from `place`: relative to that where it lies below, or to its folder.
    """

    def __init__(self, root: Path, place: Path, form: str, settings: Mapping[str, Any]) -> None:
        self.root, self.place, self.form, self.settings = root, place, form, dict(settings)
        self.notes: list[str] = []
        here, there = root.resolve(), place.resolve()
        self.within = here.is_relative_to(there)
        """Whether captions in `place` are captions of these pictures to whoever reads that folder."""
        self._prefix = f"{here.relative_to(there).as_posix()}/" if self.within and here != there else ""

    def name(self, picture: str) -> str:
        """What a picture of the folder is called in the captions."""
        return self._prefix + picture

    def key(self, name: str) -> str:
        """What two pictures share that can have but one caption."""
        return name

    def existing(self, folder: Folder) -> set[str]:
        """The pictures of `folder` that keep the caption they have, by their names in it."""
        if not self.within:
            return set()
        others = replace(folder, lists={name: path for name, path in folder.lists.items() if name != self.form})
        table = DataTable(path=str(folder.path), prompt=MARK)
        try:
            records = loose.read(others, table, "instance", "caption")
        except DataError as error:  # what a recipe could say to mend it is not to be said here
            todo = "mend or remove what is there: `gesso check` names all of it, with what to do"
            raise DataError(error.what, where=error.where, todo=todo) from error
        found = {record.path for record in records if record.captions != (MARK,)}
        return {name for name, path in folder.pictures.items() if path in found}

    def write(self, captions: Mapping[str, str]) -> int:
        """Put captions on the disk, by the pictures' names; how many."""
        raise NotImplementedError

    def finish(self, folder: Folder) -> None:
        """Called once all there are for the pictures of `folder` have been written."""


class Beside(Target):
    """A text file for each picture."""

    def key(self, name: str) -> str:
        return stem(name)

    def existing(self, folder: Folder) -> set[str]:
        found = super().existing(folder)
        here = {each for each in folder.pictures if each not in found and self._path(self.name(each)).exists()}
        if here and self.within:
            self.notes.append(f"{len(here)} caption file(s) are empty and stay so; delete them to have them written")
        return found | here

    def write(self, captions: Mapping[str, str]) -> int:
        written = 0
        for name, caption in captions.items():
            path = self._path(name)
            with guard(self.place, what=path.name, needed=len(caption.encode()) + 1):
                path.parent.mkdir(parents=True, exist_ok=True)
                if _appear(path, f"{caption}\n".encode()):
                    written += 1
                else:
                    self.notes.append(f"{path} appeared meanwhile and stays as it is")
        return written

    def _path(self, name: str) -> Path:
        return self.place / f"{stem(name)}.{self.form}"


class Listed(Target):
    """One list of all of them."""

    def __init__(self, root: Path, place: Path, form: str, settings: Mapping[str, Any], dry: bool) -> None:
        super().__init__(root, place, form, settings)
        self.list, self.journal, self.dry = place / form, place / f".{form}.gesso", dry
        self.known: dict[str, str] = {}
        self._hashes: list[str] = []
        self._begun = False
        self._read()

    def existing(self, folder: Folder) -> set[str]:
        return super().existing(folder) | {each for each in folder.pictures if self.name(each) in self.known}

    def write(self, captions: Mapping[str, str]) -> int:
        if not captions:
            return 0
        rows = [{"file_name": name, "text": caption} for name, caption in captions.items()]
        self._append(*([] if self._begun else [{"settings": self.settings}]), *rows)
        self._begun = True
        self.known |= captions
        return len(captions)

    def finish(self, folder: Folder) -> None:
        there = {self.name(each) for each in folder.pictures}
        kept = {name: caption for name, caption in sorted(self.known.items()) if name in there}
        data = rendered(self.form, kept)
        self._refuse_others()
        if not kept or (self.list.exists() and self.list.read_bytes() == data):
            return
        with guard(self.place, what=self.form, needed=len(data)):
            # First the word that this list is gesso's, then the list: killed in between, the next start writes it.
            self._append({"list": hashlib.sha256(data).hexdigest()})
            write_bytes(self.list, data)
            self._append({"done": True})

    def _append(self, *lines: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with guard(self.place, what="captions", needed=len(data)), self.journal.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        """What an earlier start has done; a line that it was killed in counts as not written."""
        lines = self.journal.read_bytes().splitlines(keepends=True) if self.journal.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines) and not self.dry:
            with self.journal.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
        settings, done = None, False
        for line in whole:
            entry = self._entry(line)
            done = "done" in entry
            if "list" in entry:
                self._hashes.append(str(entry["list"]))
                settings = None
            elif "settings" in entry:
                settings = entry["settings"]
            elif not done:
                self.known[str(entry["file_name"])] = str(entry["text"])
        if done and not self.list.exists():  # whoever deletes the list wants another
            self.known = {}
            if not self.dry:
                self.journal.unlink()
        self._refuse_others()
        self._begun = settings is not None
        if settings is not None and settings != self.settings:
            raise RecipeError(
                f"an unfinished {self.form} was begun with other settings: {_difference(settings, self.settings)}",
                where=str(self.place),
                todo=f"give the same again, or delete {self.journal.name} to begin anew",
            )

    def _refuse_others(self) -> None:
        """Raise DataError where the list that is there is not the one that gesso wrote."""
        if self.list.exists() and hashlib.sha256(self.list.read_bytes()).hexdigest() not in self._hashes:
            raise DataError(
                f"{self.form} is there already" + (", and was changed since gesso wrote it" if self._hashes else ""),
                where=str(self.place),
                todo="move it away, or name another folder with --out: captions that are there are never overwritten",
            )

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or set(found) not in LINES:
                raise ValueError("an unknown line")
        except ValueError as error:
            raise DataError(
                f"this record of captions is damaged: {error}", where=str(self.journal), todo="delete it to begin anew"
            ) from error
        return found


@contextmanager
def open_target(root: Path, place: Path, form: str, settings: Mapping[str, Any], dry: bool = False) -> Iterator[Target]:
    """The target in `place` for the pictures below `root`, lists for one process at a time. `dry` writes nothing."""
    if form in BESIDE or dry:
        yield Beside(root, place, form, settings) if form in BESIDE else Listed(root, place, form, settings, dry)
        return
    with guard(place, what="captions"):
        place.mkdir(parents=True, exist_ok=True)
    file = place / f".{form}.lock"
    lock = FileLock(file, timeout=0)
    try:
        with guard(place, what="captions"):
            lock.acquire()
    except Timeout as error:
        raise LockedError("another process is writing captions here", where=str(place), todo="wait for it") from error
    try:
        yield Listed(root, place, form, settings, dry)
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


def rendered(form: str, captions: Mapping[str, str]) -> bytes:
    """A list of captions by name, in one of the forms of LISTS."""
    if form == "image_captions.json":
        return (json.dumps(captions, ensure_ascii=False, indent=4) + "\n").encode()
    if form == "metadata.jsonl":
        rows = [json.dumps({"file_name": name, "text": each}, ensure_ascii=False) for name, each in captions.items()]
        return "".join(f"{row}\n" for row in rows).encode()
    if form == "metadata.parquet":
        pa, out = arrow.library(), io.BytesIO()
        whole = pa.table({"file_name": list(captions), "text": list(captions.values())})
        arrow.library("pyarrow.parquet").write_table(whole, out)
        return out.getvalue()
    sheet = io.StringIO(newline="")
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(("dir", "text") if form == "img_txt.csv" else ("file_name", "text"))
    writer.writerows(captions.items())
    return sheet.getvalue().encode()


def _appear(path: Path, data: bytes) -> bool:
    """Write a file that was not there, whole or not at all; False where there is one by now."""
    made = hidden(path)
    write_bytes(made, data)
    try:
        try:
            os.link(made, path)  # unlike a rename, this never takes another file's place
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.rename(made, path)
        fsync_path(path.parent)
        return True
    finally:
        made.unlink(missing_ok=True)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(f"{name} was {one.get(name)!r} and is {other.get(name)!r}" for name in names)

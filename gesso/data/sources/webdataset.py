"""WebDataset shards: uncompressed tar files in which the files of one sample share a name up to its first dot.

    000001.jpg 000001.txt 000002.jpg 000002.json …       (github.com/webdataset/webdataset, "The WebDataset Format")

A shard's index (name, offset and size of each member) is made once, from its headers alone; pictures are then read at
their offsets. Nothing is unpacked. The caption is a .txt or .caption member, or "text" or "caption" of a .json one.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gesso.data.places import Cell, Member
from gesso.data.record import Record
from gesso.data.sources import rows, text
from gesso.data.sources.folder import CAPTIONS, PICTURES, Found
from gesso.data.sources.made import listed, no_columns, records
from gesso.errors import DataError
from gesso.schema import DataTable

READER = "WebDataset"
BLOCK = 512
"""A tar file is made of blocks of so many bytes."""


def read(files: Sequence[Path], table: DataTable, group: str, key: str, *, name: str) -> list[Record]:
    """One record a sample, shards in their order, samples in theirs."""
    no_columns(table, key, name, "an archive has no columns", ("image_column",))
    pictures: dict[str, tuple[Path, Member | Cell | None]] = {}
    found: dict[str, tuple[Found, str]] = {}
    for path in files:
        for sample, members in samples(path).items():
            whole = f"{path.name}/{sample}"
            of_picture = [each for ending, each in members.items() if ending in PICTURES]
            if len(of_picture) > 1:
                raise DataError(
                    f"the sample {sample} has several pictures: {listed([each.name for each in of_picture])}",
                    where=str(path),
                    todo="write one picture a sample",
                )
            if not of_picture:
                continue
            pictures[whole] = (path, of_picture[0])
            entry = _caption(path, members, table)
            if entry[0]:
                found[whole] = (entry, READER)
    if not pictures:
        raise DataError("there is no picture in these archives", where=name, todo=f"check {key}.path")
    return records(table, pictures, found, name=name, group=group, key=key, masks={})


def samples(path: Path) -> dict[str, dict[str, Member]]:
    """The members of each sample by their ending, in lower case with its dot.

    Raises DataError for an archive that is compressed, damaged or cut, for members that are no plain files or lead
    out of the archive, and for two with one name.
    """
    found: dict[str, dict[str, Member]] = {}
    for member in index(path):
        folder, slash, file = member.name.rpartition("/")
        first, dot, ending = file.partition(".")
        if not first:
            continue
        of_sample = found.setdefault(folder + slash + first, {})
        if dot + ending.lower() in of_sample:
            raise DataError(
                f'"{member.name}" is in it twice', where=str(path), todo="write the archive again without doubles"
            )
        of_sample[dot + ending.lower()] = member
    return found


def index(path: Path) -> list[Member]:
    """Every file of the archive with its place."""
    found = []
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise DataError(
                    "the archive is compressed, so that nothing in it can be read at its offset",
                    where=str(path),
                    todo="unpack it to a plain .tar: gunzip",
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    found += _member(path, entry)
                end = archive.offset
            file.seek(end)
            if file.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise DataError(
            f"not a whole tar archive: {error}", where=str(path), todo="copy or download the archive again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})", where=str(path), todo="check the file and its permissions"
        ) from error
    return found


def _member(path: Path, entry: tarfile.TarInfo) -> list[Member]:
    if entry.isdir():
        return []
    parts = PurePosixPath(entry.name).parts
    escapes = entry.name.startswith("/") or ".." in parts or "\0" in entry.name or not parts
    if escapes or not entry.isreg() or entry.issparse():
        what = "leads out of the archive" if escapes else "is a link or no plain file"
        raise DataError(
            f"the member {entry.name!r} {what}",
            where=str(path),
            todo="write the archive again from plain files with relative names",
        )
    return [Member(PurePosixPath(entry.name).as_posix(), entry.offset_data, entry.size)]


def _caption(path: Path, members: dict[str, Member], table: DataTable) -> Found:
    for ending in CAPTIONS:
        if ending in members:
            where = f"{path}/{members[ending].name}"
            caption = text.clean(text.decoded(members[ending].read(path), where, table.encoding), where)
            return ((caption,) if caption else ()), (), where
    if ".json" not in members:
        return (), (), ""
    where = f"{path}/{members['.json'].name}"
    try:
        entry: Any = json.loads(text.decoded(members[".json"].read(path), where, table.encoding))
        if not isinstance(entry, dict):
            raise rows.Wrong("not a JSON object")
        column = table.caption_column or next((each for each in ("text", "caption") if each in entry), "")
        if table.caption_column and table.caption_column not in entry:
            raise rows.Wrong(f'"{table.caption_column}" is missing; there is {", ".join(entry) or "nothing"}')
        captions, shares = rows.wording(entry.get(column), column, where)
    except (json.JSONDecodeError, RecursionError, rows.Wrong) as error:
        raise DataError(str(error), where=where, todo='write {"text": "a dog on a beach"}') from error
    return captions, shares, where

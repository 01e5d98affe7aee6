"""WebDataset shards: uncompressed tar files in which the files of one sample share a name up to its first dot.

    000001.jpg 000001.txt 000002.jpg 000002.json …       (github.com/webdataset/webdataset, "The WebDataset Format")

A shard's index (name, offset and size of each member) is made once, from its headers alone; pictures are then read at
their offsets. Nothing is unpacked. The caption is a .txt or .caption member, or "text" or "caption" of a .json one.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from gesso.data import index
from gesso.data.index import Index, Row
from gesso.data.places import File, Member
from gesso.data.record import Record
from gesso.data.records import Indexed, joined
from gesso.data.remote import Remote
from gesso.data.sources import kept, rows, text
from gesso.data.sources.folder import CAPTIONS, PICTURES
from gesso.data.sources.made import alike, listed, no_columns, none_silent
from gesso.errors import DataError
from gesso.schema import DataTable

READER = "WebDataset"
BLOCK = 512
"""A tar file is made of blocks of so many bytes."""
TOLD = (*CAPTIONS, ".json")
"""Endings of members that hold captions."""
PACKED = (
    (b"\x1f\x8b", "gunzip"),
    (b"BZh", "bunzip2"),
    (b"\xfd7zXZ\x00", "unxz"),
    (b"\x28\xb5\x2f\xfd", "unzstd"),
    (b"PK\x03\x04", "unzip it, and pack it with tar, or give the folder"),
)
"""How compressed files begin, and what unpacks them."""

Samples = dict[str, dict[str, Member]]


def read(
    files: Sequence[File], table: DataTable, group: str, key: str, *, name: str, cache: Path | None = None
) -> Sequence[Record]:
    """One record a sample, shards in their order, samples in theirs. Indexes are kept in the folder `cache`."""
    no_columns(table, key, name, "an archive has no columns", ("image_column",))
    shards = list(zip(files, kept.each(files, lambda file: _index(file, table, cache)), strict=True))
    if not any(len(found) for _, found in shards):
        raise DataError("there is no picture in these archives", where=name, todo=f"check {key}.path")
    none_silent(table, key, name, ((found, _named(file, found)) for file, found in shards))
    same = alike(table, group, key, READER)
    return joined([Indexed(file, found, found.member, same) for file, found in shards])


def _named(file: File, found: Index) -> Iterator[str]:
    """Samples without a caption, as messages name them."""
    for row in index.silent_rows(found.columns):
        yield f"{file.name}/{sample(found.member(int(row)).name)[0]}"


def _index(file: File, table: DataTable, cache: Path | None) -> Index:
    """The index of a shard: the one beside it, the one that was kept, or made now."""
    plain = not (table.caption_column or table.encoding)
    found = kept.beside(file, cache) if plain else None
    if found is not None:
        return found
    asked = {"caption_column": table.caption_column, "encoding": table.encoding}
    return kept.made(file, asked, cache, lambda: _rows(file, table))


def _rows(file: File, table: DataTable) -> Iterator[Row]:
    texts: dict[str, bytes] = {}
    for name, members in _samples(file, texts).items():
        of_picture = [each for ending, each in members.items() if ending in PICTURES]
        if len(of_picture) > 1:
            raise DataError(
                f"the sample {name} has several pictures: {listed([each.name for each in of_picture])}",
                where=str(file),
                todo="write one picture a sample",
            )
        if of_picture:
            captions, shares = _caption(file, members, texts, table)
            yield Row(member=of_picture[0], captions=captions, shares=shares)


def samples(path: File) -> Samples:
    """The members of each sample by their ending, in lower case with its dot.

    Raises DataError for an archive that is compressed, damaged or cut, for members that are no plain files or lead
    out of the archive, and for two with one name.
    """
    return _samples(path, {})


def sample(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and its ending: the name up to and from its first dot."""
    folder, slash, file = name.rpartition("/")
    first, dot, ending = file.partition(".")
    return (folder + slash + first if first else ""), dot + ending.lower()


def _samples(path: File, texts: dict[str, bytes]) -> Samples:
    """The samples; what the members with captions hold is put into `texts` by name."""
    found: Samples = {}
    for member, data in _members(path):
        of, ending = sample(member.name)
        if not of:
            continue
        if ending in found.setdefault(of, {}):
            raise DataError(
                f'"{member.name}" is in it twice', where=str(path), todo="write the archive again without doubles"
            )
        found[of][ending] = member
        if data is not None:
            texts[member.name] = data
    return found


def _members(path: File) -> Iterator[tuple[Member, bytes | None]]:
    """Every file of the archive with its place, and the bytes of those that hold captions."""
    try:
        with closing(_opened(path)) as file:
            _plain(file, path)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    for member in _member(path, entry):
                        # Read while passing by: behind a URL, each later look would be a request.
                        told = sample(member.name)[1] in TOLD
                        held = archive.extractfile(entry) if told else None
                        yield member, None if held is None else _whole(held, member, path)
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                end = archive.offset
            file.seek(end)
            last = file.read(BLOCK)
            if not last:  # cut between two members: what is lost would not be missed
                raise tarfile.ReadError("the blocks of zeros that end one are not there")
            if last.strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise DataError(
            f"not a whole tar archive: {error}", where=str(path), todo="copy or download the archive again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})", where=str(path), todo="check the file and its permissions"
        ) from error


def _opened(path: File) -> IO[bytes]:
    return cast(IO[bytes], path.open()) if isinstance(path, Remote) else path.open("rb")


def _plain(file: IO[bytes], path: File) -> None:
    """DataError for a compressed archive."""
    start = file.read(8)
    for magic, todo in PACKED:
        if start.startswith(magic):
            raise DataError(
                "the archive is compressed, so that nothing in it can be read at its offset",
                where=str(path),
                todo=f"unpack it to a plain .tar: {todo}",
            )
    file.seek(0)


def _whole(held: IO[bytes], member: Member, path: File) -> bytes:
    data = held.read()
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut")
    return data


def _member(path: File, entry: tarfile.TarInfo) -> list[Member]:
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


def _caption(path: File, members: dict[str, Member], texts: dict[str, bytes], table: DataTable) -> rows.Wording:
    for ending in CAPTIONS:
        if ending in members:
            where = f"{path}/{members[ending].name}"
            caption = text.clean(text.decoded(texts[members[ending].name], where, table.encoding), where)
            return ((caption,) if caption else ()), ()
    if ".json" not in members:
        return (), ()
    where = f"{path}/{members['.json'].name}"
    try:
        entry: Any = json.loads(text.decoded(texts[members[".json"].name], where, table.encoding))
        if not isinstance(entry, dict):
            raise rows.Wrong("not a JSON object")
        column = table.caption_column or next((each for each in ("text", "caption") if each in entry), "")
        if table.caption_column and table.caption_column not in entry:
            raise rows.Wrong(f'"{table.caption_column}" is missing; there is {", ".join(entry) or "nothing"}')
        return rows.wording(entry.get(column), column, where)
    except (ValueError, RecursionError) as error:
        raise DataError(str(error), where=where, todo='write {"text": "a dog on a beach"}') from error

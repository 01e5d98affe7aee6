"""Captions in a text file of the same stem beside the picture: `dog.jpg`, `dog.txt` (or `dog.caption`)."""

from __future__ import annotations

from pathlib import Path

from gesso.data.sources import text
from gesso.data.sources.folder import CAPTIONS, Folder, Found, stem
from gesso.errors import DataError

LARGEST = 1 << 20
"""Bytes of a caption; a whole book has as many."""


def read(folder: Folder, encoding: str) -> dict[str, Found]:
    """What the caption file of each picture says that has one; an empty file is no caption."""
    found: dict[str, Found] = {}
    for name in folder.pictures:
        file = caption_of(folder, name)
        if file is not None:
            where = f"{folder.name}/{file}"
            _check_size(folder.captions[file], where)
            caption = text.clean(text.read(folder.captions[file], where, encoding), where)
            if caption:
                found[name] = ((caption,), (), where)
    return found


def _check_size(path: Path, where: str) -> None:
    size = path.stat().st_size if path.is_file() else 0  # what is wrong with no file is said when it is read
    if size > LARGEST:
        raise DataError(
            f"{size:,} bytes are no caption", where=where, todo="write a sentence, or take the file out of the folder"
        )


def orphans(folder: Folder) -> list[str]:
    """Caption files whose picture is not there."""
    stems = {stem(name) for name in folder.pictures}
    return [name for name in folder.captions if stem(name) not in stems]


def seconds(folder: Folder) -> list[str]:
    """Caption files that are not read because another ending comes first."""
    used = {caption_of(folder, name) for name in folder.pictures}
    stems = {stem(name) for name in folder.pictures}
    return [name for name in folder.captions if name not in used and stem(name) in stems]


def caption_of(folder: Folder, picture: str) -> str | None:
    """The name of the picture's caption file."""
    endings = [ending for each in CAPTIONS for ending in (each, each.upper())]
    return next((stem(picture) + ending for ending in endings if stem(picture) + ending in folder.captions), None)

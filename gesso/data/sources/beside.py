"""Captions in a text file of the same stem beside the picture: `dog.jpg`, `dog.txt` (or `dog.caption`)."""

from __future__ import annotations

from gesso.data.sources import text
from gesso.data.sources.folder import CAPTIONS, Folder


def read(folder: Folder, encoding: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """(captions, origin) of each picture that has a caption file; an empty file is no caption."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for name in folder.pictures:
        file = _caption_of(folder, name)
        if file is not None:
            where = f"{folder.name}/{file}"
            caption = text.clean(text.read(folder.captions[file], where, encoding), where)
            if caption:
                found[name] = ((caption,), where)
    return found


def orphans(folder: Folder) -> list[str]:
    """Caption files whose picture is not there."""
    stems = {_stem(name) for name in folder.pictures}
    return [name for name in folder.captions if _stem(name) not in stems]


def seconds(folder: Folder) -> list[str]:
    """Caption files that are not read because another ending comes first."""
    used = {_caption_of(folder, name) for name in folder.pictures}
    return [name for name in folder.captions if name not in used and name not in orphans(folder)]


def _caption_of(folder: Folder, picture: str) -> str | None:
    endings = [ending for plain in CAPTIONS for ending in (plain, plain.upper())]
    return next((_stem(picture) + ending for ending in endings if _stem(picture) + ending in folder.captions), None)


def _stem(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.rpartition(".")[0]

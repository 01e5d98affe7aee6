"""Captions in a text file of the same stem beside the picture: `dog.jpg`, `dog.txt` (or `dog.caption`)."""

from __future__ import annotations

from gesso.data.sources import text
from gesso.data.sources.folder import CAPTIONS, Folder, Found, stem


def read(folder: Folder, encoding: str) -> dict[str, Found]:
    """What the caption file of each picture says that has one; an empty file is no caption."""
    found: dict[str, Found] = {}
    for name in folder.pictures:
        file = caption_of(folder, name)
        if file is not None:
            where = f"{folder.name}/{file}"
            caption = text.clean(text.read(folder.captions[file], where, encoding), where)
            if caption:
                found[name] = ((caption,), (), where)
    return found


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

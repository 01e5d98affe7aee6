"""Folders of pictures become records. This package alone knows how captions are kept beside pictures.

A picture's caption is the first of: its line in `metadata.jsonl`, a `.txt` or `.caption` file of the same stem, the
prompt of the recipe. Nothing in the folder is ever written, moved or deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gesso.data.record import Record
from gesso.data.sources import beside, jsonl
from gesso.data.sources.folder import Folder, scan
from gesso.data.sources.text import check_encoding, clean
from gesso.errors import DataError
from gesso.schema import DataTable

SHOWN = 5
"""How many names a message lists before it only counts."""


def read(table: DataTable, *, group: str = "instance", key: str = "data") -> list[Record]:
    """One record a picture, sorted by relative path, the whole list `table.repeats` times over.

    `key` is the recipe's table that messages send the user to: data, validate or prior. Raises DataError for a folder
    that is missing or holds no picture, a file name that is not text, a caption that cannot be read, a broken
    `metadata.jsonl`, and pictures without a caption when the recipe gives no prompt.
    """
    check_encoding(table.encoding)
    folder = scan(table.path, key)
    if not folder.pictures:
        raise DataError(
            "no picture was found in this folder or below it" + _not_followed(folder),
            where=folder.name,
            todo="gesso reads .jpg .jpeg .png .webp .bmp .tif .tiff .gif and .avif; hidden files are left out",
        )
    found = {**beside.read(folder, table.encoding), **jsonl.read(folder, table.encoding)}
    if table.prompt is not None:
        prompt = (clean(table.prompt, where=f"{key}.prompt"),)
        found = {**dict.fromkeys(folder.pictures, (prompt, f"{key}.prompt")), **found}
    _all_captioned(folder, found, key)
    records = [
        Record(path=path, captions=found[name][0], group=group, weight=table.weight, origin=found[name][1])
        for name, path in folder.pictures.items()
    ]
    return records * table.repeats


def orphans(table: DataTable) -> list[str]:
    """What lies in the folder and is not used, one sentence each: captions without a picture, links not followed."""
    folder = scan(table.path)
    notes = [(name, "a caption without a picture; it is not used") for name in beside.orphans(folder)]
    notes += [(name, "another caption stands beside it; it is not used") for name in beside.seconds(folder)]
    notes += [(name, f"not used; {jsonl.NAME} belongs in {folder.name} itself") for name in folder.nested]
    notes += [(name, "a link to a folder; it is not followed") for name in folder.links]
    return [f"{folder.name}/{name}: {what}" for name, what in notes]


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _all_captioned(folder: Folder, found: Mapping[str, object], key: str) -> None:
    missing = [name for name in folder.pictures if name not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(folder.pictures)} pictures have no caption: {listed(missing)}",
            where=folder.name,
            todo="write a .txt of the same name beside each (an empty one counts as none), "
            f"list them in {jsonl.NAME}, or set {key}.prompt for all of them",
        )


def _not_followed(folder: Folder) -> str:
    return f" (linked folders are not followed: {listed(folder.links)})" if folder.links else ""

"""kohya's folders: `10_sks dog` holds pictures that count 10 times, "sks dog" being the caption of those without one.

The folder that is named may be such a folder, or hold nothing but such folders
(github.com/kohya-ss/sd-scripts, docs/train_README).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from gesso.data.record import Record
from gesso.data.sources import loose
from gesso.data.sources.folder import Folder, scan
from gesso.errors import DataError
from gesso.schema import DataTable

NAME = re.compile(r"(\d{1,3})_(.+)")
"""Repeats, name. More digits are rather a year, or a number in a long row."""


def fits(folder: Folder) -> bool:
    """Whether the folder is kohya's by its name, or by those of the folders in it."""
    if folder.lists or folder.shards or not folder.pictures:
        return False
    below = {name.partition("/")[0] if "/" in name else "" for name in folder.pictures}
    return bool(NAME.fullmatch(_own(folder))) or all(NAME.fullmatch(name) for name in below)


def read(folder: Folder, table: DataTable, group: str, key: str) -> list[Record]:
    """The pictures of each folder, as often as its name says; the recipe's prompt comes before the folder's name."""
    own = NAME.fullmatch(_own(folder))
    parts = [""] if own else sorted({name.partition("/")[0] for name in folder.pictures if "/" in name})
    found: list[Record] = []
    for part in parts:
        match = own or NAME.fullmatch(part)
        if match is None:
            raise DataError(
                f'the folder "{part}" does not say how often its pictures count',
                where=folder.name,
                todo='rename it to "10_sks dog" (repeats, then the caption), or set data.format = "folder"',
            )
        repeats, prompt = int(match[1]), match[2].strip()
        if not repeats:
            continue
        named = f"{folder.name}/{part}" if part else folder.name
        inner = table.model_copy(update={"prompt": prompt if table.prompt is None else table.prompt})
        each = loose.read(scan(named, key), inner, group, key)
        reader = f'kohya folder "{match[0]}"'
        found += [_from(record, reader, key, by_name=table.prompt is None) for record in each] * repeats
    if not found:
        raise DataError("no picture of these folders counts", where=folder.name, todo="give them repeats above 0")
    return found


def notes(folder: Folder) -> list[tuple[str, str]]:
    """What is taken from the names of folders, for people who did not mean it."""
    names = [_own(folder)] if NAME.fullmatch(_own(folder)) else sorted({n.partition("/")[0] for n in folder.pictures})
    found = [(name, NAME.fullmatch(name)) for name in names]
    return [
        (name, f'a kohya folder: its pictures count {int(match[1])} times; a plain one with data.format = "folder"')
        for name, match in found
        if match
    ]


def _from(record: Record, reader: str, key: str, *, by_name: bool) -> Record:
    origin = reader if by_name and record.origin == f"{key}.prompt" else record.origin
    return replace(record, reader=reader, origin=origin)


def _own(folder: Folder) -> str:
    return Path(folder.path).absolute().name

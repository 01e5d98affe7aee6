"""Folders and files of pictures become records. This package alone knows how captions are kept with pictures.

What a path holds is told by its contents (docs/data.md lists every form), or by data.format where two could be meant.
Nothing in the folder is ever written, moved or deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gesso.data import remote
from gesso.data.places import File
from gesso.data.record import Record
from gesso.data.records import Rows, chosen, repeated
from gesso.data.sources import embedded, hub, kohya, kohya_toml, loose, webdataset
from gesso.data.sources.folder import Folder, check_name, scan
from gesso.data.sources.made import SHOWN, listed
from gesso.data.sources.text import check_encoding
from gesso.errors import DataError
from gesso.keys import permutation
from gesso.schema import DataTable

__all__ = ["SHOWN", "folders", "listed", "orphans", "read"]

FILES = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow", ".toml": "kohya_toml"}
"""What a single file is, by its ending."""
ENDINGS = (".tar", ".parquet")
"""What is read behind a URL."""


def read(
    table: DataTable, *, group: str = "", key: str = "data", seed: int = 0, cache: Path | None = None
) -> Sequence[Record]:
    """One record a picture, in the order of names, the whole list `table.repeats` times over.

    They are of the group that the table says, unless `group` is given; `is_reg` of kohya's file makes its own.
    `key` is the recipe's table that messages send the user to: data, validate or prior. `seed` decides which pictures
    remain under `table.max_samples`. Indexes of shards are kept in the folder `cache`, where one is given. Raises
    DataError for a path that is missing or holds no picture, a file name that is not text, a caption that cannot be
    read, a broken list or archive, and pictures without a caption when the recipe gives no prompt; NetworkError where
    the host that the path names does not answer.
    """
    check_encoding(table.encoding)
    records = _read(table, group or table.group, key, cache)
    if table.max_samples:
        records = some(records, table.max_samples, seed, f"max-samples/{key}")
    return repeated(records, table.repeats)


def folders(table: DataTable) -> list[str]:
    """What is read on this machine for `table`: its own path, or the folders that a data set's TOML names."""
    if _elsewhere(table.path):
        return []
    path = Path(table.path).expanduser()
    if path.is_file() and FILES.get(path.suffix.lower()) == "kohya_toml":
        return [each.path for each in kohya_toml.tables(path, table)]
    return [table.path]


def orphans(table: DataTable) -> list[str]:
    """What lies in the folder and is not used, one sentence each: captions without a picture, links not followed."""
    if _elsewhere(table.path):
        return []
    path = Path(table.path).expanduser()
    if path.is_file():
        if FILES.get(path.suffix.lower()) != "kohya_toml":
            return []
        inner = [note for each in kohya_toml.tables(path, table) for note in orphans(each)]
        return [*kohya_toml.notes(path, table), *inner]
    folder = scan(table.path)
    kind = kind_of(folder, table, "data")
    notes: list[tuple[str, str]] = []
    if kind in ("folder", "kohya"):
        notes += loose.notes(folder, table, "data")
    if kind == "kohya":
        notes += kohya.notes(folder)
    if kind == "folder":
        notes += [(name, f'not used; data.format = "{FILES.get(path.suffix.lower(), "save_to_disk")}" reads it')
                  for name, path in folder.shards.items()]  # fmt: skip
    if kind == "parquet":
        notes += [(name, "not used; only the split train is learned") for name in embedded.shards(folder)[1]]
    notes += [(name, "a link to a folder; it is not followed") for name in folder.links]
    return [f"{folder.name}/{name}: {what}" if name else f"{folder.name}: {what}" for name, what in notes]


def _elsewhere(path: str) -> bool:
    """Whether a path names what is not, or not only, on this machine."""
    return remote.is_url(path) or path.startswith(hub.PREFIX)


def _read(table: DataTable, group: str, key: str, cache: Path | None) -> Sequence[Record]:
    check_name(table.path, f"set {key}.path to a folder whose name is UTF-8")
    if remote.is_url(table.path):
        behind = remote.files(table.path, ENDINGS)
        return _of_files(behind, table, group, key, name=table.path.partition("?")[0], cache=cache)
    if table.path.startswith(hub.PREFIX):
        found = hub.fetched(table, key)
        if found.files:
            return _of_files(found.files, table, group, key, name=table.path, cache=cache)
        return _of_folder(replace(scan(str(found.folder), key), name=table.path), table, group, key, cache)
    path, name = Path(table.path).expanduser(), Path(table.path).as_posix()
    if path.is_file() and path.suffix.lower() in FILES:
        if FILES[path.suffix.lower()] == "kohya_toml":
            return kohya_toml.read(path, table, group, key)
        return _of_files([path], table, group, key, name=name, cache=cache)
    return _of_folder(scan(table.path, key), table, group, key, cache)


def _of_folder(folder: Folder, table: DataTable, group: str, key: str, cache: Path | None) -> Sequence[Record]:
    """The pictures of a folder, whatever they are kept in."""
    kind = kind_of(folder, table, key)
    if kind in ("kohya", "folder"):
        return (kohya.read if kind == "kohya" else loose.read)(folder, table, group, key)
    files = {
        "webdataset": lambda: [each for each in folder.shards.values() if each.suffix.lower() == ".tar"],
        "parquet": lambda: embedded.shards(folder)[0],
        "save_to_disk": lambda: embedded.saved(folder.path, folder.name, key),
    }
    return _of_files(files[kind](), table, group, key, name=folder.name, cache=cache)


def _of_files(
    files: Sequence[File], table: DataTable, group: str, key: str, *, name: str, cache: Path | None
) -> Sequence[Record]:
    """The pictures inside files of one kind."""
    kinds = sorted({each.suffix.lower() for each in files})
    if len(kinds) > 1:
        raise DataError(
            f"it holds several kinds of files: {', '.join(kinds)}",
            where=name,
            todo=f'name those that are meant with a pattern: {key}.path = "{name.rstrip("/")}/*{kinds[0]}"',
        )
    if kinds == [".tar"]:
        return webdataset.read(files, table, group, key, name=name, cache=cache)
    reader = "Parquet with pictures" if kinds == [".parquet"] else "Arrow of save_to_disk"
    return embedded.read(files, table, group, key, name=name, reader=reader, cache=cache)


def kind_of(folder: Folder, table: DataTable, key: str) -> str:
    """What the folder is: as the recipe says, or by what lies in it. Raises DataError where two could be meant."""
    endings = {path.suffix.lower() for path in folder.shards.values()}
    fits = {
        "save_to_disk": any((folder.path / name).is_file() for name in (embedded.STATE, embedded.SPLITS))
        and (".arrow" in endings or not folder.pictures),
        "webdataset": ".tar" in endings,
        "parquet": ".parquet" in endings,
        "kohya": kohya.fits(folder),
    }
    if table.format != "auto":
        if table.format != "folder" and not fits[table.format]:
            raise DataError(
                f'data.format = "{table.format}" does not fit what lies in it',
                where=folder.name,
                todo="leave data.format out, or name another: docs/data.md shows each",
            )
        return table.format
    found = [name for name, fit in fits.items() if fit]
    found += ["folder"] if folder.pictures and "kohya" not in found else []
    if len(found) > 1:
        raise DataError(
            "it holds several kinds of data set: " + ", ".join(found),
            where=folder.name,
            todo=f'say which one is meant with {key}.format = "{found[0]}"',
        )
    return found[0] if found else "folder"


def some(records: Sequence[Record], count: int, seed: int, stream: str) -> Sequence[Record]:
    """`count` of the pictures, by lot, in their order; what is in the list several times counts once."""
    if isinstance(records, Rows):  # no picture of a file is in it twice
        return chosen(records, np.sort(permutation(seed, stream, 0, len(records))[:count]))
    places = list(dict.fromkeys(record.place for record in records))
    kept = {places[at] for at in permutation(seed, stream, 0, len(places))[:count]}
    return [record for record in records if record.place in kept]

"""Folders and files of pictures become records. This package alone knows how captions are kept with pictures.

What a path holds is told by its contents (docs/data.md lists every form), or by data.format where two could be meant.
Nothing in the folder is ever written, moved or deleted.
"""

from __future__ import annotations

from pathlib import Path

from gesso.data.record import Record
from gesso.data.sources import embedded, kohya, kohya_toml, loose, webdataset
from gesso.data.sources.folder import Folder, check_name, scan
from gesso.data.sources.made import SHOWN, listed
from gesso.data.sources.text import check_encoding
from gesso.errors import DataError
from gesso.keys import permutation
from gesso.schema import DataTable

__all__ = ["SHOWN", "folders", "listed", "orphans", "read"]

FILES = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow", ".toml": "kohya_toml"}
"""What a single file is, by its ending."""


def read(table: DataTable, *, group: str = "instance", key: str = "data", seed: int = 0) -> list[Record]:
    """One record a picture, in the order of names, the whole list `table.repeats` times over.

    `key` is the recipe's table that messages send the user to: data, validate or prior. `seed` decides which pictures
    remain under `table.max_samples`. Raises DataError for a path that is missing or holds no picture, a file name that
    is not text, a caption that cannot be read, a broken list or archive, and pictures without a caption when the
    recipe gives no prompt.
    """
    check_encoding(table.encoding)
    records = _read(table, group, key)
    if table.max_samples:
        records = _some(records, table.max_samples, seed, f"max-samples/{key}")
    return records * table.repeats


def folders(table: DataTable) -> list[str]:
    """What is read for `table`: its own path, or the folders that a data set's TOML names."""
    path = Path(table.path).expanduser()
    if path.is_file() and FILES.get(path.suffix.lower()) == "kohya_toml":
        return [each.path for each in kohya_toml.tables(path, table)]
    return [table.path]


def orphans(table: DataTable) -> list[str]:
    """What lies in the folder and is not used, one sentence each: captions without a picture, links not followed."""
    path = Path(table.path).expanduser()
    if path.is_file():
        inner = kohya_toml.tables(path, table) if FILES.get(path.suffix.lower()) == "kohya_toml" else []
        return [note for each in inner for note in orphans(each)]
    folder = scan(table.path)
    kind = _kind(folder, table, "data")
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


def _read(table: DataTable, group: str, key: str) -> list[Record]:
    path, name = Path(table.path).expanduser(), Path(table.path).as_posix()
    check_name(table.path, f"set {key}.path to a folder whose name is UTF-8")
    kind = FILES.get(path.suffix.lower(), "") if path.is_file() else ""
    if kind == "kohya_toml":
        return kohya_toml.read(path, table, group, key)
    if kind == "webdataset":
        return webdataset.read([path], table, group, key, name=name)
    if kind in ("parquet", "arrow"):
        return embedded.read([path], table, group, key, name=name, reader=f"{kind.capitalize()} with pictures")
    folder = scan(table.path, key)
    kind = _kind(folder, table, key)
    if kind == "webdataset":
        files = [each for each in folder.shards.values() if each.suffix.lower() == ".tar"]
        return webdataset.read(files, table, group, key, name=name)
    if kind == "parquet":
        return embedded.read(embedded.shards(folder)[0], table, group, key, name=name, reader="Parquet with pictures")
    if kind == "save_to_disk":
        return embedded.read(
            embedded.saved(path, name, key), table, group, key, name=name, reader="Arrow of save_to_disk"
        )
    return (kohya.read if kind == "kohya" else loose.read)(folder, table, group, key)


def _kind(folder: Folder, table: DataTable, key: str) -> str:
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


def _some(records: list[Record], count: int, seed: int, stream: str) -> list[Record]:
    """`count` of the pictures, by lot, in their order; what is in the list several times counts once."""
    places = list(dict.fromkeys(record.place for record in records))
    kept = {places[at] for at in permutation(seed, stream, 0, len(places))[:count]}
    return [record for record in records if record.place in kept]

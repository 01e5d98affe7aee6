"""A folder of picture files. A picture's caption is the first of: its row in a list that lies in the folder, a text
file beside it, the recipe's prompt."""

from __future__ import annotations

from gesso.data.record import Record
from gesso.data.sources import beside, captions_json, comma, jsonl, metadata_parquet
from gesso.data.sources.folder import LISTS, PACKED, Folder, Found, stem
from gesso.data.sources.made import listed, no_columns, records
from gesso.errors import DataError
from gesso.schema import DataTable

TABLES = tuple(name for name in LISTS if name != captions_json.NAME)
ENDINGS = "gesso reads .jpg .jpeg .png .webp .bmp .tif .tiff .gif and .avif; hidden files are left out"


def read(folder: Folder, table: DataTable, group: str, key: str) -> list[Record]:
    """One record a picture, sorted by relative path. Raises DataError where two lists differ over a caption."""
    if not folder.pictures:
        raise DataError(
            "no picture was found in this folder or below it" + _not_followed(folder) + _packed(folder),
            where=folder.name,
            todo=ENDINGS,
        )
    if not any(name in folder.lists for name in TABLES):
        no_columns(table, key, folder.name, "there is no list with columns: " + ", ".join(TABLES))
    beside_ = beside.read(folder, table.encoding)
    found = {name: (entry, "a text file beside") for name, entry in beside_.items()}
    return records(
        table,
        {name: (path, None) for name, path in folder.pictures.items()},
        {**found, **_listed(folder, table, key)},
        name=folder.name,
        group=group,
        key=key,
        masks={name: folder.masks[stem(name)] for name in folder.pictures if stem(name) in folder.masks},
    )


def notes(folder: Folder, table: DataTable, key: str) -> list[tuple[str, str]]:
    """What lies in the folder and is not used: (name, why)."""
    found = [(name, "a caption without a picture; it is not used") for name in beside.orphans(folder)]
    found += [(name, "another caption stands beside it; it is not used") for name in beside.seconds(folder)]
    beside_ = beside.read(folder, table.encoding) if folder.lists else {}
    for name, ((captions, _, origin), _) in _listed(folder, table, key).items():
        file = beside.caption_of(folder, name)
        if file and name in beside_ and beside_[name][0] != captions:
            found.append((file, f"not used; the caption of {name} stands in {origin.rpartition('/')[2]}"))
    found += [(name, f"not used; {name.rpartition('/')[2]} belongs in {folder.name} itself") for name in folder.nested]
    if table.masks:
        masked = sum(stem(name) in folder.masks for name in folder.pictures)
        what = (
            f"{masked} of {len(folder.pictures)} pictures have a mask beside them; the others' transparency is theirs"
        )
        found += [("", what)] if masked < len(folder.pictures) else []
    else:
        found += [
            (path.relative_to(folder.path).as_posix(), "a mask; it is used with data.masks = true")
            for path in folder.masks.values()
        ]
    return found


def _listed(folder: Folder, table: DataTable, key: str) -> dict[str, tuple[Found, str]]:
    """What the lists in the folder say, with the list's name."""
    found: dict[str, tuple[Found, str]] = {}
    for name in folder.lists:
        for picture, entry in read_list(folder, name, table, key).items():
            if picture in found and found[picture][0][:2] != entry[:2]:
                raise DataError(
                    f"{picture} has one caption in {found[picture][0][2].rpartition('/')[2]} "
                    f"and another in {entry[2].rpartition('/')[2]}",
                    where=folder.name,
                    todo="keep one of the two lists in the folder, or make them agree",
                )
            found.setdefault(picture, (entry, name))
    return found


def read_list(folder: Folder, name: str, table: DataTable, key: str) -> dict[str, Found]:
    """What one list in the folder says of its pictures."""
    image, caption = table.image_column, table.caption_column
    if name == jsonl.NAME:
        return jsonl.read(folder, table.encoding, image, caption, key)
    if name == captions_json.NAME:
        return captions_json.read(folder, table.encoding)
    if name == metadata_parquet.NAME:
        return metadata_parquet.read(folder, image, caption, key)
    return comma.read(folder, name, table.encoding, image, caption, key)


def _packed(folder: Folder) -> str:
    """Archives that lie in the folder itself."""
    found = sorted(path.name for path in folder.path.iterdir() if path.suffix.lower() in PACKED)
    return f" (packed files are not read, unpack them first: {listed(found)})" if found else ""


def _not_followed(folder: Folder) -> str:
    return f" (linked folders are not followed: {listed(folder.links)})" if folder.links else ""

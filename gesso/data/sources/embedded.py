"""Data sets with their pictures inside: Parquet files, and the Arrow folders of `datasets.save_to_disk`.

The picture's column is data.image_column, or the only one that holds pictures, or the one called "image". The
caption's is data.caption_column, or the one called "text" or "caption".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from gesso.data import arrow
from gesso.data.index import Index, Row, silent_rows
from gesso.data.places import Cell, File, Member
from gesso.data.record import Record
from gesso.data.records import Indexed, joined
from gesso.data.sources import kept, rows, text
from gesso.data.sources.folder import Folder
from gesso.data.sources.made import alike, none_silent
from gesso.errors import DataError
from gesso.schema import DataTable

STATE, SPLITS = "state.json", "dataset_dict.json"
TRAIN = "train"
"""The split that is learned from, where there are several."""


def read(
    files: Sequence[File],
    table: DataTable,
    group: str,
    key: str,
    *,
    name: str,
    reader: str,
    cache: Path | None = None,
) -> Sequence[Record]:
    """One record a row, files in their order. `name` is the source as the user wrote it.

    Captions are read once; they are kept in the folder `cache`, as the index of a shard is.
    """

    def opened(path: File) -> tuple[str, Index]:
        there = arrow.opened(path)
        image, caption = _image(there, table, key), _caption(there, table, key)
        return image, kept.made(path, {"column": caption}, cache, lambda: _rows(there, caption, key))

    parts = list(zip(files, kept.each(files, opened), strict=True))
    if not any(len(index) for _, (_, index) in parts):
        raise DataError("there is no row in it", where=name, todo=f"check {key}.path")
    none_silent(table, key, name, ((index, _named(path, index)) for path, (_, index) in parts))
    same = alike(table, group, key, reader)
    return joined([Indexed(path, index, partial(Cell, image), same) for path, (image, index) in parts])


def _rows(table: arrow.Table, caption: str, key: str) -> Iterator[Row]:
    """The rows of a table with their captions, "" naming no column of them."""
    values = table.texts(caption) if caption else repeat(None, table.rows)
    for row, value in enumerate(values):
        where = f"{table.path} row {row}"
        try:
            captions, shares = rows.wording(value, caption, where)
        except rows.Wrong as error:
            raise DataError(str(error), where=where, todo=f"name another with {key}.caption_column") from error
        yield Row(member=Member("", row, 0), captions=captions, shares=shares)


def _named(path: File, found: Index) -> Iterator[str]:
    """Rows without a caption, as messages name them."""
    for row in silent_rows(found.columns):
        yield f"{path.name} row {row}"


def saved(root: Path, name: str, key: str) -> list[Path]:
    """The Arrow files of a `save_to_disk` folder, in their order; of several splits those of "train"."""
    splits = root / SPLITS
    if splits.is_file():
        there = _json(splits).get("splits")
        if not isinstance(there, list) or TRAIN not in there:
            shown = ", ".join(map(str, there)) if isinstance(there, list) else "none"
            raise DataError(
                f'it has the splits {shown}, but not "{TRAIN}"',
                where=name,
                todo=f"set {key}.path to the folder of one split",
            )
        root = root / TRAIN
    state = root / STATE
    entries = _json(state).get("_data_files")
    listed = entries if isinstance(entries, list) else []
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict) and entry.get("filename")]
    if not names:
        raise DataError("it names no data files", where=str(state), todo="save the data set again")
    for each in names:
        if Path(each).name != each:
            raise DataError(f'"{each}" leads out of the folder', where=str(state), todo="save the data set again")
        if not (root / each).is_file():
            raise DataError(f'the file "{each}" is missing', where=str(root), todo="copy the whole folder again")
    return [root / each for each in names]


def shards(folder: Folder) -> tuple[list[Path], list[str]]:
    """(Parquet files to learn from, names of those that are of other splits) of a folder as the Hub has it."""
    there = {name: path for name, path in folder.shards.items() if path.suffix.lower() == ".parquet"}
    trained = {name: path for name, path in there.items() if path.name.startswith(TRAIN)}
    used = trained or there
    return list(used.values()), [name for name in there if name not in used]


def _image(table: arrow.Table, asked: DataTable, key: str) -> str:
    pictures = [name for name, holds in table.columns.items() if holds]
    if asked.image_column:
        rows.columns(table.columns, (asked.image_column,), str(table.path), key)
        if asked.image_column not in pictures:
            raise DataError(
                f'the column "{asked.image_column}" holds no pictures; '
                + (f"{', '.join(pictures)} could" if pictures else "none of its columns does"),
                where=str(table.path),
                todo=f"name another with {key}.image_column",
            )
        return asked.image_column
    if len(pictures) == 1 or "image" in pictures:
        return pictures[0] if len(pictures) == 1 else "image"
    raise DataError(
        f"several columns could hold the picture: {', '.join(pictures)}"
        if pictures
        else f"no column holds pictures; there are {', '.join(table.columns) or 'none'}",
        where=str(table.path),
        todo=f"name it with {key}.image_column",
    )


def _caption(table: arrow.Table, asked: DataTable, key: str) -> str:
    """The caption's column; "" where there is none and the recipe has a prompt."""
    if asked.caption_column:
        rows.columns(table.columns, (asked.caption_column,), str(table.path), key)
        return asked.caption_column
    usual = [name for name in ("text", "caption") if name in table.columns]
    if len(usual) == 1:
        return usual[0]
    if not usual and asked.prompt is not None:
        return ""
    what = "both text and caption could be the caption" if usual else 'there is no column "text" or "caption"'
    raise DataError(
        f"{what}; there are {', '.join(table.columns)}",
        where=str(table.path),
        todo=f"name it with {key}.caption_column, or set {key}.prompt for all of them",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text.read(path, str(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=str(path), todo="save the data set again") from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=str(path), todo="save the data set again")
    return found

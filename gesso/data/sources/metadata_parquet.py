"""Captions in `metadata.parquet` with the columns file_name and text, as the Hub's picture folders have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gesso.data import arrow
from gesso.data.sources import rows
from gesso.data.sources.folder import Folder, Found

NAME = "metadata.parquet"


def read(folder: Folder, image: str = "", caption: str = "", key: str = "data") -> dict[str, Found]:
    """What the list says of each picture. Raises DataError for missing columns and for rows that are wrong."""
    table = arrow.opened(folder.lists[NAME])
    image, caption = image or "file_name", caption or "text"
    rows.columns(table.columns, (image, caption), f"{folder.name}/{NAME}", key)
    return rows.collect(
        folder,
        NAME,
        _rows(table, image, caption),
        image=image,
        caption=caption,
        anywhere=False,
        example=f"{image} holds names relative to the folder, {caption} texts or lists of texts; rows count from 1",
    )


def _rows(table: arrow.Table, image: str, caption: str) -> Iterator[tuple[int, Any]]:
    pairs = zip(table.texts(image), table.texts(caption), strict=True)
    for number, (file, text) in enumerate(pairs, 1):
        yield number, {image: file, caption: text}

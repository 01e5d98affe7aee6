"""Captions in CSV: `metadata.csv` with file_name,text (the Hub's picture folders), `img_txt.csv` with dir,text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

from gesso.data.sources import rows, text
from gesso.data.sources.folder import Folder, Found
from gesso.errors import DataError

NAMES = {"metadata.csv": ("file_name", "text"), "img_txt.csv": ("dir", "text")}
"""The columns of each file that is known by its name."""


def read(
    folder: Folder, name: str, encoding: str, image: str = "", caption: str = "", key: str = "data"
) -> dict[str, Found]:
    """What the list `name` says of each picture. Raises DataError for missing columns and for rows that are wrong."""
    where = f"{folder.name}/{name}"
    usual = NAMES[name]
    image, caption = image or usual[0], caption or usual[1]
    # A NUL would end the csv module's patience with another word in each version of Python.
    whole = text.clean(text.read(folder.lists[name], where, encoding), where)
    reader = csv.DictReader(StringIO(whole, newline=""), strict=True)
    try:
        rows.columns(reader.fieldnames or (), (image, caption), where, key)
        return rows.collect(
            folder,
            name,
            _lines(reader),
            image=image,
            caption=caption,
            anywhere=False,
            example=f'the first line names the columns, {image},{caption}; texts with commas stand in "quotes"',
        )
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} is not CSV: {error}", where=where, todo='texts with commas stand in "quotes"'
        ) from error


def _lines(reader: csv.DictReader[str]) -> Iterator[tuple[int, Any]]:
    for row in reader:
        if None in row:
            yield reader.line_num, rows.Wrong("there are more values than columns; put texts with commas in quotes")
        else:
            yield reader.line_num, row

"""Captions in `metadata.jsonl`, one JSON object a line: {"file_name": "a/dog.jpg", "text": "a dog"}.

The layout of the Hub's picture folders (huggingface.co/docs/datasets/image_dataset). Other keys are for others and are
left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gesso.data.sources import rows, text
from gesso.data.sources.folder import Folder, Found
from gesso.data.sources.rows import Wrong

NAME = "metadata.jsonl"


def read(folder: Folder, encoding: str, image: str = "", caption: str = "", key: str = "data") -> dict[str, Found]:
    """What the list says of each picture. Raises one DataError for all the lines that are wrong."""
    return rows.collect(
        folder,
        NAME,
        _lines(folder.lists[NAME], f"{folder.name}/{NAME}", encoding),
        image=image or "file_name",
        caption=caption or "text",
        anywhere=False,
        example='each line is one JSON object: {"file_name": "dog.jpg", "text": "a dog on a beach"}; '
        f"{key}.image_column and {key}.caption_column name other keys",
    )


def _lines(path: Path, where: str, encoding: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.read(path, where, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Wrong(f"not JSON: {error}")

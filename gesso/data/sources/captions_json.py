"""Captions in `image_captions.json`, one object: {"photos/dog.jpg": "a dog on a beach"}.

Keys are paths as the machine knew them that wrote the file: absolute, relative or bare. A key means the picture of the
folder that its end names; a list of captions is taken too.
"""

from __future__ import annotations

import json
from typing import Any

from gesso.data.sources import rows, text
from gesso.data.sources.folder import Folder, Found
from gesso.errors import DataError

NAME = "image_captions.json"
TODO = 'it is one JSON object of names and captions: {"dog.jpg": "a dog on a beach"}'


def read(folder: Folder, encoding: str) -> dict[str, Found]:
    """What the file says of each picture. Raises DataError where it is no such object, or names no picture here."""
    where = f"{folder.name}/{NAME}"
    try:
        pairs = json.loads(text.read(folder.lists[NAME], where, encoding), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, todo=TODO) from error
    if not isinstance(pairs, tuple):
        raise DataError("not a JSON object of names and captions", where=where, todo=TODO)
    listed: list[dict[str, Any]] = [{"name": name, "caption": caption} for name, caption in pairs]
    return rows.collect(
        folder, NAME, rows.numbered(listed, 1), image="name", caption="caption", anywhere=True, example=TODO
    )

"""What all readers make records with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from gesso.data.captions import Style
from gesso.data.index import Index
from gesso.data.places import Cell, Inside, Member, Place
from gesso.data.record import Record
from gesso.data.records import Alike
from gesso.data.sources.folder import Found
from gesso.data.sources.text import clean
from gesso.errors import DataError
from gesso.schema import DataTable

COLUMNS = ("image_column", "caption_column")
SHOWN = 5
"""How many names a message lists before it only counts."""


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def no_columns(table: DataTable, key: str, name: str, why: str, names: Sequence[str] = COLUMNS) -> None:
    """Raise DataError where the recipe chooses columns that are not there. Held-out and class folders need none."""
    asked = [each for each in names if getattr(table, each)]
    if asked and key == "data":
        raise DataError(f"data.{asked[0]} has no effect: {why}", where=name, todo="leave it out")


def style(table: DataTable) -> Style:
    """How the captions of a source are rendered."""
    return Style(
        trigger=table.trigger,
        prefix=table.prefix,
        suffix=table.suffix,
        shuffle=table.shuffle,
        keep=table.keep_tokens,
        drop=table.tag_dropout,
        separator=table.separator,
        wildcards=table.wildcards,
    )


def alike(table: DataTable, group: str, key: str, reader: str) -> Alike:
    """What the records of one source have in common."""
    asked = f"{key}.prompt"
    return Alike(
        group=group,
        weight=table.weight,
        masks=table.masks,
        outside=table.unmasked_weight,
        background=table.background,
        style=style(table),
        reader=reader,
        prompt="" if table.prompt is None else clean(table.prompt, where=asked),
        asked=asked,
    )


def none_silent(table: DataTable, key: str, name: str, shards: Iterable[tuple[Index, Iterable[str]]]) -> None:
    """Raise DataError for rows without a caption where there is no prompt; each index comes with what names them."""
    if table.prompt is not None:
        return
    missing, total = list[str](), 0
    count = 0
    for index, names in shards:
        total += len(index)
        count += index.silent
        missing += islice(names, SHOWN - len(missing)) if index.silent else ()
    if count:
        raise _no_caption(missing, count, total, name, key)


def _no_caption(names: Sequence[str], count: int, total: int, where: str, key: str) -> DataError:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return DataError(
        f"{count} of {total} pictures have no caption: {', '.join(names)}{more}",
        where=where,
        todo="write a .txt of the same name beside each (an empty one counts as none), "
        f"list them in metadata.jsonl, or set {key}.prompt for all of them",
    )


def records(
    table: DataTable,
    pictures: Mapping[str, tuple[Path, Member | Cell | None]],
    found: Mapping[str, tuple[Found, str]],
    *,
    name: str,
    group: str,
    key: str,
    masks: Mapping[str, Path],
) -> list[Record]:
    """A record for each of `pictures`, under what was `found` of it (and by which reader), or the recipe's prompt.

    `name` is the source as the user wrote it. Raises DataError for pictures without a caption where there is no prompt.
    """
    if table.prompt is not None:
        prompt = ((clean(table.prompt, where=f"{key}.prompt"),), (), f"{key}.prompt")
        found = {**dict.fromkeys(pictures, (prompt, f"{key}.prompt")), **found}
    missing = [picture for picture in pictures if picture not in found]
    if missing:
        raise _no_caption(missing[:SHOWN], len(missing), len(pictures), name, key)
    rendered = style(table)
    made = []
    for picture, (path, inner) in pictures.items():
        (captions, shares, origin), reader = found[picture]
        own: Place = path if inner is None else Inside(path, inner)
        made.append(
            Record(
                path=path,
                captions=captions,
                group=group,
                weight=table.weight,
                # Without a mask of its own, the picture's transparency is its mask.
                mask=masks.get(picture, own) if table.masks else None,
                outside=table.unmasked_weight,
                background=table.background,
                origin=origin,
                inner=inner,
                shares=shares,
                style=rendered,
                reader=reader,
            )
        )
    return made

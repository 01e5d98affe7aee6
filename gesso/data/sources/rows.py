"""Lists of pictures with their captions, row by row, whatever file they stand in.

A caption is a text, or a list of texts of which one is drawn each time; in a list, [text, weight] is drawn in
proportion to its weight, a text alone weighing 1.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from gesso.data.sources import text
from gesso.data.sources.folder import Folder, Found
from gesso.errors import DataError

SHOWN = 5
"""How many wrong rows a message shows before it only counts."""

Wording = tuple[tuple[str, ...], tuple[float, ...]]


class Wrong(ValueError):
    """What is wrong with one row, in words; rows are counted, and one message names them all."""


class WrongRows(DataError):
    """A list with rows that cannot be used: the message names the first few, `problems` all, `found` has the others."""

    problems: Sequence[str] = ()
    found: Mapping[str, Found] = MappingProxyType({})


def collect(
    folder: Folder,
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    image: str,
    caption: str,
    anywhere: bool,
    example: str,
) -> dict[str, Found]:
    """What the list `name` says of the folder's pictures. Raises one DataError for all the rows that are wrong.

    rows: (line, the row by column), or (line, Wrong). `image` and `caption` are the columns that hold the file's name
    and its caption. `anywhere`: names may be those of another machine, and mean the picture that their end names.
    """
    where = f"{folder.name}/{name}"
    names = Names(folder)
    found: dict[str, Found] = {}
    problems: list[str] = []
    for number, row in rows:
        at = f"{where}:{number}"
        try:
            if isinstance(row, Wrong):
                raise row
            file = _cell(row, image)
            if not isinstance(file, str) or not file:
                raise Wrong(f'"{image}" is not text')
            captions, shares = wording(_cell(row, caption), caption, at)
            picture = names.ending(file) if anywhere else names.picture(file)
            if picture in found:
                raise Wrong(f'"{file}" was already listed at {found[picture][2]}; give several captions as a list')
            found[picture] = (captions, shares, at)
        except Wrong as error:
            problems.append(f"line {number}: {error}")
        except DataError as error:  # a caption that no tokenizer can take
            problems.append(f"line {number}: {error.what}")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        wrong = WrongRows(
            f"{len(problems)} line(s) cannot be used\n  " + "\n  ".join(problems[:SHOWN]) + more,
            where=where,
            todo=example,
        )
        wrong.problems, wrong.found = problems, {name: entry for name, entry in found.items() if entry[0]}
        raise wrong
    return {name: entry for name, entry in found.items() if entry[0]}


def columns(there: Iterable[str], wanted: Iterable[str], where: str, key: str) -> None:
    """Raise DataError where a column is not there, with the names of those that are."""
    there = list(there)
    for column in wanted:
        if column not in there:
            raise DataError(
                f'there is no column "{column}"; it has ' + (", ".join(f'"{each}"' for each in there) or "none"),
                where=where,
                todo=f"name the columns with {key}.image_column and {key}.caption_column",
            )


def wording(value: Any, column: str, where: str) -> Wording:
    """Captions and their weights from a text, a list, or nothing at all. Wrong for anything else."""
    if value is None:
        return (), ()
    pairs = [_weighted(each, column) for each in (value if isinstance(value, list) else [value])]
    kept = [(text.clean(caption, where), share) for caption, share in pairs]
    kept = [(caption, share) for caption, share in kept if caption]
    alike = len({share for _, share in kept}) < 2
    return tuple(caption for caption, _ in kept), () if alike else tuple(share for _, share in kept)


class Names:
    """The pictures of a folder by the names that lists have for them."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        # macOS writes é in file names as two characters, editors as one: both mean the same file.
        self.composed = {unicodedata.normalize("NFC", name): name for name in folder.pictures}
        self.bare: dict[str, list[str]] = {}
        for name in self.composed:
            self.bare.setdefault(name.rpartition("/")[2], []).append(self.composed[name])

    def picture(self, file: str) -> str:
        """The picture that a relative name means; Wrong where it leaves the folder or names no picture in it."""
        if file in self.folder.pictures:
            return file
        windows = PureWindowsPath(file)
        if PurePosixPath(file).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise Wrong(f'"{file}" leads out of the folder; file names are relative to it, without ..')
        name = PurePosixPath(file).as_posix()
        name = name if name in self.folder.pictures else self.composed.get(unicodedata.normalize("NFC", name), name)
        if name not in self.folder.pictures:
            there = "\0" not in name and (self.folder.path / name).exists()
            raise Wrong(f'"{file}" is not a picture gesso reads' if there else f'there is no picture "{file}"')
        return name

    def ending(self, file: str) -> str:
        """The picture in the folder that the end of any path names: the longest end that fits, or its bare name."""
        # A Windows path holds backslashes, which in a POSIX name are hardly ever meant.
        windows = "\\" in file and "/" not in file
        parts = [part for part in (PureWindowsPath(file) if windows else PurePosixPath(file)).parts if part != "/"]
        if ".." in parts:
            raise Wrong(f'"{file}" leads out of the folder; names are without ..')
        ends = (unicodedata.normalize("NFC", "/".join(parts[at:])) for at in range(len(parts)))
        whole = next((self.composed[end] for end in ends if end in self.composed), None)
        if whole is not None:
            return whole
        same = self.bare.get(unicodedata.normalize("NFC", parts[-1]) if parts else "", [])
        if len(same) > 1:
            raise Wrong(f'"{file}" could be {" or ".join(same)}; write the folder before the name')
        if not same:
            raise Wrong(f'there is no picture "{file}", nor one that its end names')
        return same[0]


def numbered(values: Iterable[Mapping[str, Any]], first: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their lines, counted from `first`."""
    return enumerate(values, first)


def _cell(row: Any, column: str) -> Any:
    if not isinstance(row, Mapping):
        raise Wrong("not a JSON object")
    if column not in row:
        raise Wrong(f'"{column}" is missing' + (f"; there is {', '.join(map(str, row))}" if row else ""))
    return row[column]


def _weighted(value: Any, column: str) -> tuple[str, float]:
    caption, share = value if isinstance(value, list | tuple) and len(value) == 2 else (value, 1.0)
    if not isinstance(caption, str) or isinstance(share, bool) or not isinstance(share, int | float):
        raise Wrong(f'"{column}" is neither text nor a list of texts')
    if not (math.isfinite(share) and share > 0):
        raise Wrong(f'a caption in "{column}" has the weight {share:g}; weights are above 0')
    return caption, float(share)

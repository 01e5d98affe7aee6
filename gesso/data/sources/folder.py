"""What lies in a folder of pictures."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gesso.errors import DataError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
CAPTIONS = (".txt", ".caption")
"""Endings of caption files; the first one found counts."""
LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "image_captions.json", "img_txt.csv")
"""Files that list pictures with their captions; they count in the folder itself, not further down."""
SHARDS = (".tar", ".parquet", ".arrow")
"""Endings of files that hold pictures."""
PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
MASK = "-masklabel"
"""What the name of a mask has behind the stem of its picture: dog.jpg, dog-masklabel.png."""

Found = tuple[tuple[str, ...], tuple[float, ...], str]
"""A picture's captions, their weights (none where all are alike), and where they were found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder's files by POSIX path relative to it, sorted. `name` is the folder as the user wrote it."""

    name: str
    path: Path
    pictures: Mapping[str, Path]
    captions: Mapping[str, Path]
    masks: Mapping[str, Path]
    """Masks by the name of their picture without its ending."""
    lists: Mapping[str, Path]
    shards: Mapping[str, Path]
    """Files that hold pictures, in the folder or below it."""
    nested: tuple[str, ...]
    """Lists of captions further down, which are not read."""
    links: tuple[str, ...]
    """Linked folders, which are not followed: a link may lead outside, or round in a circle."""


def scan(name: str, key: str = "data", problems: list[DataError] | None = None) -> Folder:
    """Walk the folder `name`. Hidden entries are left out, linked files are taken, linked folders are not entered.

    `key` is the recipe's table that the folder stands in. Raises DataError for a folder that is missing or cannot be
    read, and for a name that is not text: every record of a run is UTF-8, which could not hold it. With `problems`,
    what is wrong below the folder is put there, all of it, and left out of the folder.
    """
    root = Path(name).expanduser()
    check_name(name, f"set {key}.path to a folder whose name is UTF-8")
    if not root.is_dir():
        raise _no_folder(root, name, key)
    files: dict[str, Path] = {}
    links: list[str] = []

    def wrong(error: DataError) -> None:
        if problems is None:
            raise error
        problems.append(error)

    for here, folders, names in os.walk(root, onerror=lambda error: wrong(_unreadable(error))):
        place = Path(here)
        prefix = "" if place == root else f"{place.relative_to(root).as_posix()}/"
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        links += [prefix + folder for folder in folders if (place / folder).is_symlink()]
        files.update({prefix + file: place / file for file in names if not file.startswith(".")})
    files = dict(sorted(files.items()))
    endings = {file: path.suffix.lower() for file, path in files.items()}
    known = {*PICTURES, *CAPTIONS, *SHARDS, ".jsonl", ".csv", ".json"}
    for entry in [*(file for file, ending in endings.items() if ending in known), *links]:
        try:
            check_name(f"{name}/{entry}", "rename it; `convmv` renames whole folders to UTF-8")
            if entry in files:
                _check_plain(f"{name}/{entry}", files[entry])
        except DataError as error:
            wrong(error)
            files.pop(entry, None)
    pictures = {file: path for file, path in files.items() if endings[file] in PICTURES}
    masks = _masks(pictures)
    hidden = set(masks.values())
    return Folder(
        name=Path(name).as_posix(),
        path=root,
        pictures={file: path for file, path in pictures.items() if path not in hidden},
        captions={file: path for file, path in files.items() if endings[file] in CAPTIONS},
        masks=masks,
        lists={file: files[file] for file in LISTS if file in files},
        shards={file: path for file, path in files.items() if endings[file] in SHARDS and file not in LISTS},
        nested=tuple(file for file in files if file.rpartition("/")[2] in LISTS and "/" in file),
        links=tuple(sorted(links)),
    )


def _no_folder(root: Path, name: str, key: str) -> DataError:
    if root.suffix.lower() in PACKED and root.exists():
        what = "a packed file, which gesso does not read in place"
        return DataError(what, where=name, todo="unpack it into a folder, or into a plain .tar")
    what = "is a file, not a folder of pictures" if root.exists() else "there is no such folder"
    todo = f"check {key}.path; it is relative to where gesso was started"
    if not root.exists() and HUB_NAME.fullmatch(name):
        todo += f'. For a data set of the Hub write {key}.path = "hub:{name}"'
    return DataError(what, where=name, todo=todo)


def stem(name: str) -> str:
    """The name without its ending."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.rpartition(".")[0]


def check_name(name: str, todo: str) -> None:
    """Raise DataError where the system's bytes for a name are not UTF-8, which Python shows as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise DataError("the name is not UTF-8 text", where=shown, todo=todo) from error


def _check_plain(name: str, path: Path) -> None:
    """Raise DataError for a pipe or a device, which could be read for ever. A link to nothing fails when it is read."""
    try:
        plain = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return
    if not plain:
        raise DataError("neither a file nor a link to one, but a pipe or a device", where=name, todo="remove it")


def _masks(pictures: Mapping[str, Path]) -> dict[str, Path]:
    """The pictures that are masks of others, by what they mask."""
    stems = {stem(name) for name in pictures}
    named = {stem(name).removesuffix(MASK): path for name, path in pictures.items() if stem(name).endswith(MASK)}
    return {name: path for name, path in named.items() if name in stems}


def _unreadable(error: OSError) -> DataError:
    found = DataError(
        f"the folder cannot be read ({error.strerror})", where=str(error.filename), todo="check its permissions"
    )
    found.__cause__ = error
    return found

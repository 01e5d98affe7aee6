"""What lies in a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gesso.errors import DataError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
CAPTIONS = (".txt", ".caption")
"""Endings of caption files; the first one found counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder's files by POSIX path relative to it, sorted. `name` is the folder as the user wrote it."""

    name: str
    path: Path
    pictures: Mapping[str, Path]
    captions: Mapping[str, Path]
    metadata: Path | None
    nested: tuple[str, ...]
    """metadata.jsonl files further down, which are not read."""
    links: tuple[str, ...]
    """Linked folders, which are not followed: a link may lead outside, or round in a circle."""


def scan(name: str, key: str = "data") -> Folder:
    """Walk the folder `name`. Hidden entries are left out, linked files are taken, linked folders are not entered.

    `key` is the recipe's table that the folder stands in. Raises DataError for a folder that is missing or cannot be
    read, and for a name that is not text: every record of a run is UTF-8, which could not hold it.
    """
    root = Path(name).expanduser()
    _check_name(name, f"set {key}.path to a folder whose name is UTF-8")
    if not root.is_dir():
        what = "is a file, not a folder of pictures" if root.exists() else "there is no such folder"
        raise DataError(what, where=name, todo=f"check {key}.path; it is relative to where gesso was started")
    files: dict[str, Path] = {}
    links: list[str] = []
    for here, folders, names in os.walk(root, onerror=_unreadable):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        links += [_relative(root, here, folder) for folder in folders if Path(here, folder).is_symlink()]
        files.update({_relative(root, here, file): Path(here, file) for file in names if not file.startswith(".")})
    files = dict(sorted(files.items()))
    endings = {*PICTURES, *CAPTIONS, ".jsonl"}
    for entry in [*(file for file, path in files.items() if path.suffix.lower() in endings), *links]:
        _check_name(f"{name}/{entry}", "rename it; `convmv` renames whole folders to UTF-8")
    return Folder(
        name=Path(name).as_posix(),
        path=root,
        pictures={file: path for file, path in files.items() if path.suffix.lower() in PICTURES},
        captions={file: path for file, path in files.items() if path.suffix.lower() in CAPTIONS},
        metadata=files.get("metadata.jsonl"),
        nested=tuple(file for file in files if file.endswith("/metadata.jsonl")),
        links=tuple(sorted(links)),
    )


def _check_name(name: str, todo: str) -> None:
    """Raise DataError where the system's bytes for a name are not UTF-8, which Python shows as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise DataError("the name is not UTF-8 text", where=shown, todo=todo) from error


def _relative(root: Path, here: str, name: str) -> str:
    return Path(here, name).relative_to(root).as_posix()


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"the folder cannot be read ({error.strerror})", where=str(error.filename), todo="check its permissions"
    ) from error

"""Captions in `metadata.jsonl`, one JSON object a line: {"file_name": "a/dog.jpg", "text": "a dog"}.

The layout of the Hub's picture folders (huggingface.co/docs/datasets/image_dataset). `text` is a caption or a list of
captions; other keys are for others and are left alone.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from gesso.data.sources import text
from gesso.data.sources.folder import Folder
from gesso.errors import DataError

NAME = "metadata.jsonl"


def read(folder: Folder, encoding: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """(captions, origin) of each listed picture. Raises one DataError for all the lines that are wrong."""
    if folder.metadata is None:
        return {}
    where = f"{folder.name}/{NAME}"
    # macOS writes é in file names as two characters, editors as one: both mean the same file.
    composed = {unicodedata.normalize("NFC", name): name for name in folder.pictures}
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    problems: list[str] = []
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.read(folder.metadata, where, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            file, captions = _line(line, f"{where}:{number}")
            name = _picture(folder, composed, file)
            if name in found:
                raise ValueError(f'"{file}" was already listed at {found[name][1]}; give several captions as a list')
            found[name] = (captions, f"{where}:{number}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{len(problems)} line(s) cannot be used\n  " + "\n  ".join(problems[:5]) + more,
            where=where,
            todo='each line is one JSON object: {"file_name": "dog.jpg", "text": "a dog on a beach"}',
        )
    return {name: entry for name, entry in found.items() if entry[0]}


def _line(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        entry: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    file, given = entry.get("file_name"), entry.get("text")
    if not isinstance(file, str) or not file:
        raise ValueError('"file_name" is missing or not text')
    captions: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError('"text" is missing, or neither text nor a list of texts')
    cleaned = (text.clean(caption, where) for caption in captions)
    return file, tuple(caption for caption in cleaned if caption)


def _picture(folder: Folder, composed: dict[str, str], file: str) -> str:
    """The picture that a file_name means; ValueError where it leaves the folder or names no picture in it."""
    windows = PureWindowsPath(file)
    if PurePosixPath(file).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ValueError(f'"{file}" leads out of the folder; file names are relative to it, without ..')
    name = PurePosixPath(file).as_posix()
    name = name if name in folder.pictures else composed.get(unicodedata.normalize("NFC", name), name)
    if name not in folder.pictures:
        there = "\0" not in name and (folder.path / name).exists()
        raise ValueError(f'"{file}" is not a picture gesso reads' if there else f'there is no picture "{file}"')
    return name

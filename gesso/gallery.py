"""Where drawn pictures go, and which are there already.

OUT/00000.png, 00001.png, …          numbering goes on after what is there
OUT/<prompt>/image_0.png, …          with a folder for each prompt
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gesso import storage
from gesso.engines.engine import SampleRequest

END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last bytes of a PNG that is whole."""
LONGEST = 100
"""Bytes of a prompt that become its folder's name; file systems take 255."""


def places(out: Path, wanted: Sequence[SampleRequest], folders: Mapping[str, str] | None = None) -> list[Path]:
    """A file for each of the wanted pictures, after the numbers that are there; `folders` has each prompt's own."""
    if folders is None:
        first = _next(out, r"(\d{5,})\.png")
        return [out / f"{at:05d}.png" for at in range(first, first + len(wanted))]
    numbers: dict[str, int] = {}
    files = []
    for each in wanted:
        name = folders[each.prompt]
        number = numbers[name] if name in numbers else _next(out / name, r"image_(\d+)\.png")
        numbers[name] = number + 1
        files.append(out / name / f"image_{number}.png")
    return files


def folders(prompts: Sequence[str]) -> dict[str, str]:
    """A folder name for each prompt, as much of the prompt as a file system takes; none of them twice.

    Hand in all prompts, also those that are drawn already, so that a prompt keeps its folder when the rest is drawn.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for prompt in dict.fromkeys(prompts):
        text = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", prompt).encode()[:LONGEST].decode(errors="ignore").strip(" .")
        name = text = text or "_"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{text} ({number})"
        taken.add(name.casefold())
        names[prompt] = name
    return names


def found(out: Path, wanted: Sequence[SampleRequest], notes: Mapping[str, Any]) -> list[Path | None]:
    """For each of the wanted pictures the file in `out` that says it is that picture, None where there is none.

    notes: what each would say besides its own request.
    """
    there: dict[str, list[Path]] = {}
    for file in sorted(out.rglob("*.png"), reverse=True) if out.is_dir() else []:
        if (said := _said_by(file)) is not None:
            there.setdefault(_said(said), []).append(file)
    files = (there.get(_said({**each.as_dict(), **notes})) for each in wanted)
    return [left.pop() if left else None for left in files]


def sweep(out: Path, files: Sequence[Path]) -> None:
    """Remove what a killed process left half written where `files` will be. Hold the folder's lock."""
    for folder in dict.fromkeys([out, *(file.parent for file in files)]):
        storage.sweep(folder)


def _said_by(file: Path) -> dict[str, Any] | None:
    """What a whole picture of gesso's says of itself, its pixels left alone; None for any other.

    A picture that cannot be read, or that ends too early, is one to draw again.
    """
    try:
        with Image.open(file) as image:  # gesso's text comes before the pixels
            said = json.loads(image.info.get("gesso", "null"))
        with file.open("rb") as data:
            data.seek(-len(END), os.SEEK_END)
            return said if data.read() == END and isinstance(said, dict) else None
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return None


def _said(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def _next(folder: Path, pattern: str) -> int:
    numbers = [int(match[1]) for file in folder.glob("*.png") if (match := re.fullmatch(pattern, file.name))]
    return max(numbers, default=-1) + 1

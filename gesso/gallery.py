"""Where drawn pictures go, and which are there already.

OUT/00000.png, 00001.png, …          numbering goes on after what is there
OUT/<prompt>/image_0.png, …          with a folder for each prompt
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gesso.engines.engine import SampleRequest
from gesso.errors import DataError
from gesso.formats import png

LONGEST = 100
"""Bytes of a prompt that become its folder's name; file systems take 255."""


def places(out: Path, wanted: Sequence[SampleRequest], *, by_prompt: bool) -> list[Path]:
    """A file for each of the wanted pictures, after the numbers that are there."""
    if not by_prompt:
        first = _next(out, r"(\d{5,})\.png")
        return [out / f"{at:05d}.png" for at in range(first, first + len(wanted))]
    folders = {prompt: out / name for prompt, name in _names([each.prompt for each in wanted]).items()}
    numbers = {folder: _next(folder, r"image_(\d+)\.png") for folder in folders.values()}
    found = []
    for each in wanted:
        folder = folders[each.prompt]
        found.append(folder / f"image_{numbers[folder]}.png")
        numbers[folder] += 1
    return found


def missing(out: Path, wanted: Sequence[SampleRequest], notes: Mapping[str, Any]) -> list[SampleRequest]:
    """Those that no picture in `out` says it is; `notes` are what each would say besides its own request."""
    there = Counter(
        _said(data) for file in sorted(out.rglob("*.png")) if out.is_dir() and (data := _read(file)) is not None
    )
    left = []
    for each in wanted:
        said = _said({**each.as_dict(), **notes})
        if there[said]:
            there[said] -= 1
        else:
            left.append(each)
    return left


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return png.read(file)
    except DataError:  # a picture that cannot be read is one to draw again
        return None


def _said(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def _next(folder: Path, pattern: str) -> int:
    numbers = [int(match[1]) for file in folder.glob("*.png") if (match := re.fullmatch(pattern, file.name))]
    return max(numbers, default=-1) + 1


def _names(prompts: Sequence[str]) -> dict[str, str]:
    """A folder name for each prompt, as much of the prompt as a file system takes; none of them twice."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for prompt in dict.fromkeys(prompts):
        text = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", prompt).encode()[:LONGEST].decode(errors="ignore")
        name = text.strip(" .") or "_"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{text.strip(' .')} ({number})"
        taken.add(name.casefold())
        names[prompt] = name
    return names

"""WD taggers: a network that gives each of some thousand tags a probability, run by ONNX Runtime.

A model folder holds model.onnx, which takes pictures as float32 [B, side, side, 3] in 0…255, channels blue, green, red,
and selected_tags.csv, which names its outputs (name, category). The ratings among them are no part of a caption
(huggingface.co/SmilingWolf/wd-vit-tagger-v3, README and code of the demonstration).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gesso.arrays import Float32, Picture
from gesso.captioning import Asked
from gesso.data.sources import text
from gesso.errors import DeviceError, RecipeError

GENERAL, CHARACTER, RATING = 0, 4, 9
"""Categories of selected_tags.csv."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FACE = re.compile(r"[^a-z0-9]*[a-z0-9]?[^a-z0-9]*_[^a-z0-9]*[a-z0-9]?[^a-z0-9]*")
"""Tags such as ^_^ and o_o, in which _ is no space."""


class Tagger:
    """A WD tagger; see gesso/captioning.py for what it promises."""

    def __init__(self, session: Any, tags: Sequence[tuple[str, int]], asked: Asked) -> None:
        self.session, self.tags, self.asked = session, tags, asked
        self.device = ", ".join(session.get_providers())
        entry = session.get_inputs()[0]
        self.name, self.side = entry.name, entry.shape[1]
        self.most = entry.shape[0] if isinstance(entry.shape[0], int) else 0
        """How many pictures it takes at once; 0 for any number."""

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The tags of each picture, uint8 [height, width, 3] each: characters, then the others, likeliest first."""
        batch = np.stack([prepared(picture, self.side) for picture in pictures])
        step = self.most or len(batch)
        parts = [batch[at : at + step] for at in range(0, len(batch), step)]
        rows = [row for part in parts for row in self.session.run(None, {self.name: part})[0]]
        return [chosen(row, self.tags, self.asked) for row in rows]


def create(folder: Path, kind: str, asked: Asked) -> Tagger:
    """The tagger in `folder`. RecipeError without ONNX Runtime, or where the files do not fit each other."""
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise RecipeError(
            "a WD tagger needs ONNX Runtime, which is not installed", todo="pip install 'gesso[tagger]'"
        ) from error
    try:
        session = runtime.InferenceSession(folder / "model.onnx", providers=_providers(runtime, asked.device))
    except Exception as error:  # its own exceptions share no class
        if isinstance(error, DeviceError):
            raise
        raise RecipeError(
            f"the tagger cannot be read: {str(error).splitlines()[0]}",
            where=str(folder / "model.onnx"),
            todo="fetch the model again",
        ) from error
    tags = named(folder / "selected_tags.csv")
    shape, count = session.get_inputs()[0].shape, session.get_outputs()[0].shape[-1]
    if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or count != len(tags):
        raise RecipeError(
            f"this is no WD tagger: it takes {shape} and gives {count} numbers for {len(tags)} tags", where=str(folder)
        )
    return Tagger(session, tags, asked)


def named(path: Path) -> list[tuple[str, int]]:
    """The name and category of each output."""
    rows = csv.DictReader(text.read(path, str(path)).splitlines())
    try:
        return [(row["name"], int(row["category"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            "this is no list of tags with the columns name and category", where=str(path), todo="fetch the model again"
        ) from error


def prepared(picture: Picture, side: int) -> Float32:
    """A picture in the middle of a white square, float32 [side, side, 3], channels blue, green, red, 0…255."""
    height, width = picture.shape[:2]
    whole = max(height, width)
    square = np.full((whole, whole, 3), 255, dtype=np.uint8)
    top, left = (whole - height) // 2, (whole - width) // 2
    square[top : top + height, left : left + width] = picture
    image = Image.fromarray(square)
    if whole != side:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, dtype=np.float32)[:, :, ::-1])


def chosen(shares: Float32, tags: Sequence[tuple[str, int]], asked: Asked) -> str:
    """The tags whose probability passes the threshold of their category, as one line."""
    found = []
    for category, asked_for in ((CHARACTER, asked.character), (GENERAL, asked.general)):
        least = 1.0 if asked_for is None else asked_for
        of_it = [at for at, (_, each) in enumerate(tags) if each == category and shares[at] > least]
        found += sorted(of_it, key=lambda at: -shares[at])
    return ", ".join(spoken(tags[at][0]) for at in found)


def spoken(tag: str) -> str:
    """A tag as it stands in captions: spaces for underscores, except in faces."""
    return tag if FACE.fullmatch(tag) else tag.replace("_", " ")


def _providers(runtime: Any, device: str) -> list[str]:
    there = runtime.get_available_providers()
    if device == "auto":
        return [each for each in (PROVIDERS["cuda"], PROVIDERS["cpu"]) if each in there]
    kind = PROVIDERS.get(device.partition(":")[0], "")
    if kind not in there:
        raise DeviceError(
            f"this ONNX Runtime cannot use {device}",
            todo="take --device cpu, or install onnxruntime-gpu in place of onnxruntime",
        )
    return [kind]

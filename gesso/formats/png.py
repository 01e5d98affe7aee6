"""PNG files that say how they were made.

Two text chunks carry the generation data: `parameters`, in the form that AUTOMATIC1111's web UI began and most viewers
and sites read, and `gesso`, the same data whole, as JSON. The same picture and data give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from gesso import samplers
from gesso.arrays import Picture
from gesso.errors import DataError, RecipeError
from gesso.storage import guard, write_bytes

LABELS: dict[str, str] = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model_hash": "Model hash",
    "model": "Model",
}
"""Keys of gesso and the web UI's labels for them, in the web UI's order; other keys follow under their own names."""


def write(path: Path, picture: Picture, data: Mapping[str, Any]) -> None:
    """Write `picture`, uint8 [height, width, 3], whole or not at all, with `data` (prompt, negative, seed, steps, …).

    Known keys are those of `SampleRequest` and `model`; any other that JSON can hold is kept as it is.
    """
    if picture.dtype != "uint8" or picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(
            f"a picture is to be uint8 [height, width, 3], but is {picture.dtype} {list(picture.shape)}",
            where=str(path),
        )
    height, width = picture.shape[:2]
    data = {**data, "width": width, "height": height}
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", parameters(data))  # Latin-1 becomes tEXt, anything else iTXt
    chunks.add_text("gesso", json.dumps(data, ensure_ascii=True, allow_nan=False, sort_keys=True))
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG", pnginfo=chunks)
    with guard(path, what="the picture", needed=encoded.getbuffer().nbytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encoded.getvalue())


def copy(source: Path, target: Path, **changes: Any) -> None:
    """The picture at `source` again at `target`, what it says of itself changed as given. DataError for no picture."""
    data = {**read(source), **changes}
    with Image.open(source) as image:
        write(target, np.asarray(image.convert("RGB")), data)


def read(path: Path) -> dict[str, Any]:
    """The data a picture carries: gesso's own, else what its `parameters` text says, else nothing."""
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may follow the pixels
            text = {str(name): value for name, value in image.info.items()}
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture cannot be read: {error}", where=str(path)) from error
    if "gesso" in text:
        try:
            data = json.loads(text["gesso"])
        except ValueError as error:
            raise DataError(f"the picture's gesso data is not valid JSON: {error}", where=str(path)) from error
        if isinstance(data, dict):
            return data
    return parse(text["parameters"]) if isinstance(text.get("parameters"), str) else {}


def parameters(data: Mapping[str, Any]) -> str:
    """The web UI's text: the prompt, the negative prompt if any, and one line of settings."""
    lines = [str(data.get("prompt", ""))]
    if data.get("negative"):
        lines.append(f"Negative prompt: {data['negative']}")
    shown = {name: data[name] for name in data if name not in ("prompt", "negative", "width", "height")}
    if not shown.get("scheduler"):
        shown.pop("scheduler", None)
    if "width" in data and "height" in data:
        shown["size"] = f"{data['width']}x{data['height']}"
    if "scheduler" in shown:
        shown["scheduler"] = _called(str(shown["scheduler"]))
    order = [*(name for name in LABELS if name in shown), *(name for name in shown if name not in LABELS)]
    lines.append(", ".join(f"{LABELS.get(name, name)}: {_quoted(shown[name])}" for name in order))
    return "\n".join(lines)


def parse(text: str) -> dict[str, Any]:
    """What `parameters` wrote, as far as the text tells; numbers as numbers."""
    *above, settings = text.split("\n")
    if not re.match(r"\w[\w ]*: ", settings):
        above, settings = [*above, settings], ""
    prompt, _, negative = "\n".join(above).partition("\nNegative prompt: ")
    data: dict[str, Any] = {"prompt": prompt}
    if negative:
        data["negative"] = negative
    names = {label: name for name, label in LABELS.items()}
    for label, value in re.findall(r'(\w[\w ]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:, |$)', settings):
        data[names.get(label, label)] = _unquoted(value)
    if size := re.fullmatch(r"(\d+)x(\d+)", str(data.get("size", ""))):
        del data["size"]
        data["width"], data["height"] = int(size[1]), int(size[2])
    return data


def _called(scheduler: str) -> str:
    """The web UI's name of a scheduler, or its own where there is none."""
    try:
        return samplers.short(scheduler)
    except RecipeError:
        return scheduler


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def _unquoted(text: str) -> Any:
    if text.startswith('"'):
        try:
            return json.loads(text)
        except ValueError:
            return text
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+\.?\d*(e[+-]?\d+)?", text) else text

"""Pictures inside a page: read, made small enough, and written as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from gesso.arrays import Picture

LARGEST = 512
EXACT = 128
"""Pictures up to this side stay lossless; larger ones are WebP."""
QUALITY = 85


@dataclass(frozen=True, slots=True)
class Embedded:
    """A picture as a data URI, with its own size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        """To be enlarged pixel by pixel, for smoothing would show what is not there."""
        return max(self.width, self.height) <= EXACT


def embed(source: Path | Picture, *, largest: int = LARGEST) -> Embedded | None:
    """`source` within `largest` by `largest` pixels, upright; None where there is no picture to be read."""
    try:
        if isinstance(source, Path):
            with Image.open(source) as opened:
                opened.draft("RGB", (largest, largest))
                image = ImageOps.exif_transpose(opened).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
        else:
            image = Image.fromarray(source)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the page says "missing" in its place; `gesso check` is where pictures are judged
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    kind = "png" if max(image.size) <= EXACT else "webp"
    written = io.BytesIO()
    if kind == "png":
        image.save(written, "PNG", optimize=True)
    else:
        image.save(written, "WEBP", quality=QUALITY, method=4)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return Embedded(f"data:image/{kind};base64,{data}", *image.size)

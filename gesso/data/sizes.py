"""How large a picture is, from its headers: what buckets are chosen by before anything is decoded."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from gesso.data import images
from gesso.data.places import Inside, Place

TEXT = (b"tEXt", b"zTXt", b"iTXt")
ORIENTED = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
"""Keywords of PNG texts that may hold an orientation."""
LONGEST = 80
"""Bytes of the longest keyword of a PNG text, with the zero behind it."""


def size(path: Place) -> tuple[int, int]:
    """Width and height in pixels of the upright picture at `path`. Raises DataError.

    What follows the headers may still be broken.
    """
    if isinstance(path, Inside) and path.pixels:
        return path.pixels
    with images.reading(path) as file, images.opened(file, path) as image:
        return image.size[::-1] if _sideways(image, file) else image.size


def _sideways(image: Image.Image, file: BinaryIO) -> bool:
    """Whether width and height of `image`, not decoded yet, are those of the picture lying on its side."""
    if image.format == "TIFF":  # upright in its headers already
        return False
    if image.format == "PNG" and not _says_more(file):
        # To look for an orientation behind the pixels, Pillow decodes all of them.
        return False
    return image.getexif().get(images.ORIENTATION, 1) in images.SIDEWAYS


def _says_more(png: BinaryIO) -> bool:
    """Whether a PNG has a chunk that may hold its orientation (PNG specification, third edition, section 5.3)."""
    here, at = png.tell(), 8
    try:
        while True:
            png.seek(at)
            head = png.read(8 + LONGEST)
            if len(head) < 8:
                return False
            kind = head[4:8]
            if kind == b"eXIf" or (kind in TEXT and head[8:].split(b"\0")[0] in ORIENTED):
                return True
            at += int.from_bytes(head[:4]) + 12
    finally:
        png.seek(here)

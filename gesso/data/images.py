"""The one place where a picture is opened.

Whatever the file holds, what comes out is upright 8-bit sRGB: EXIF orientation applied, transparency laid on a colour,
colour profiles and CMYK converted, 16-bit and floating-point values scaled (Pillow's own conversion turns 16-bit grey
nearly white), the first frame of an animation. What cannot be decoded to its last row is an error that names the file.

A JPEG of many more pixels than are wanted is decoded at a half, a quarter or an eighth of its size. Its format allows
that in a fraction of the time: fewer of the frequencies of each block are turned back into pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from gesso.arrays import Float32, Picture, UInt8
from gesso.data import colours
from gesso.data.places import Inside, Place
from gesso.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Pillow's readers that may run. Each of its forty others is one more way for a file to do harm."""
MEGAPIXELS = 64
LARGEST = MEGAPIXELS * 16_000_000
"""Bytes of a file up to which it is read: so many pixels of four 32-bit channels."""
SPARE = 1.75
"""How many times as many pixels a side as are wanted a JPEG is decoded to at least: what is left to the resizing.

Another value makes other pixels, so the number in `Transform.tag` changes with it.
"""
SKETCH = 64
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation (Exif 2.32, tag 0x0112)."""
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""
RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
OTHERS = (
    (b"<", "it is text in HTML, SVG or XML, perhaps a web page that was saved in place of the picture"),
    (b"%PDF", "it is a PDF document"),
    (b"PK\x03\x04", "it is a ZIP archive"),
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull` to fetch the picture"),
)
"""What else turns up under the name of a picture, by its first bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """From a picture of any size to `side_width` × `side_height` pixels.

    The picture is resized until it just covers the target; of what is too long, the window at `left`, `top` is kept
    (0: left or top edge, 0.5: centre, 1: right or bottom edge); `flip` then mirrors it. `interpolation` is a name in
    RESAMPLING, `background` the colour behind what is transparent: "white", "black" or "#rrggbb".
    """

    side_width: int
    side_height: int
    left: float = 0.5
    top: float = 0.5
    flip: bool = False
    interpolation: str = "lanczos"
    background: str = "white"

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the window, in whole pixels of the resized picture, for a picture of `width` × `height`.

        As diffusers' training scripts count it: sides of the resized picture are cut to whole pixels, and a mirrored
        picture is mirrored before it is cropped, so that the corner is that of the window in the mirrored picture.
        """
        # The side that just fits stays; the other one is as much longer as the picture's is.
        wide = width * self.side_height >= height * self.side_width
        resized_width = width * self.side_height // height if wide else self.side_width
        resized_height = self.side_height if wide else height * self.side_width // width
        left = 1.0 - self.left if self.flip else self.left
        return round(left * (resized_width - self.side_width)), round(self.top * (resized_height - self.side_height))

    def tag(self) -> str:
        """The transform in words, for cache keys; equal tags mean equal pixels."""
        size, place = f"{self.side_width}x{self.side_height}", f"{self.left!r},{self.top!r}"
        behind = f" on {self.background}" if self.background != "white" else ""
        return f"cover-{self.interpolation}-2 {size} at {place} flip {int(self.flip)}{behind}"

    def shrink(self, width: int, height: int) -> int:
        """By how much a picture of `width` × `height` may be decoded smaller: 8, 4, 2 or 1."""
        scale = max(self.side_width / width, self.side_height / height)
        return next((by for by in (8, 4, 2) if by * scale * SPARE <= 1.0), 1)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture, upright, whole or in small.

    stored: of mode RGB, L or CMYK, which `to_srgb` brings to sRGB (None: without a profile). Few pixels of it are
    wanted in the end, and those alone need be converted.
    width and height: of the picture at full size, in pixels; a pixel of `stored` stands for shrunk × shrunk of them,
    the last of a row or column perhaps for fewer.
    """

    stored: Image.Image
    to_srgb: ImageCms.ImageCmsTransform | None = None
    width: int
    height: int
    shrunk: int = 1
    notes: tuple[str, ...] = ()
    """What a user should know of it."""

    @classmethod
    def of(cls, picture: Picture) -> Decoded:
        return cls(stored=Image.fromarray(picture), width=picture.shape[1], height=picture.shape[0])

    @cached_property
    def image(self) -> Image.Image:
        """What was decoded, mode RGB in sRGB."""
        return colours.converted(self.stored, self.to_srgb)

    @property
    def pixels(self) -> Picture:
        """uint8 [height, width, 3] of what was decoded."""
        return np.asarray(self.image)


def fingerprint(path: Place) -> str:
    """SHA-256 of the picture's bytes, in hexadecimal; of one inside a file as its index says it, where that does."""
    if isinstance(path, Inside):
        return path.sha256 or hashlib.sha256(contents(path)).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def load(path: Place) -> Picture:
    """The picture at `path`, uint8 [height, width, 3], sRGB, upright. Raises DataError."""
    return decode(contents(path), path).pixels


@contextmanager
def reading(path: Place) -> Iterator[BinaryIO]:
    """The picture at `path` as an open file, of which no more is read than is asked for. Raises DataError."""
    if isinstance(path, Inside):
        yield BytesIO(contents(path))
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def contents(path: Place) -> bytes:
    """The bytes of the picture at `path`, a file or a place inside one. Raises DataError."""
    try:
        if isinstance(path, Inside):
            return path.read()
        if (size := path.stat().st_size) > LARGEST:
            raise _too_large(path, f"{size / 10**9:.1f} GB are more than any picture has of")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def decode(data: bytes, path: Place, wanted: Sequence[Transform] = ()) -> Decoded:
    """The picture in `data`, as `load` gives it; `path` names it in messages. Raises DataError.

    With `wanted`, transforms of one background, it may be in small: SPARE times a side of what each of them needs.
    """
    with opened(data, path) as image:
        stored, by = image.size, _shrink(image, wanted)
        if by > 1:
            image.draft(None, (stored[0] // by, stored[1] // by))
        image.load()
        notes = _notes(image)
        upright = _upright(image)
        small, to_srgb = colours.flattened(upright, notes, wanted[0].background if wanted else "white")
        found = small if wanted else colours.converted(small, to_srgb)  # what goes wrong there is this file's, too
    whole = upright.size if by == 1 else stored[::-1] if _turn(image) in SIDEWAYS else stored
    return Decoded(
        stored=found,
        to_srgb=to_srgb if wanted else None,
        width=whole[0],
        height=whole[1],
        shrunk=by,
        notes=tuple(notes),
    )


def _shrink(image: Image.Image, wanted: Sequence[Transform]) -> int:
    """By how much `image`, not decoded yet, may be decoded smaller."""
    if image.format not in ("JPEG", "MPO") or not wanted:
        return 1
    turn, (width, height) = _turn(image), image.size
    by = min(each.shrink(*((height, width) if turn in SIDEWAYS else (width, height))) for each in wanted)
    # Pixels that stand for fewer than the others must lie at the right and the bottom, which a turn would change.
    while turn != 1 and (width % by or height % by):
        by //= 2
    return by


def sketch(path: Place, side: int = SKETCH) -> Picture:
    """The picture at `path` in small, as `load` gives it: JPEG at up to an eighth of its size, in little time.

    Its shorter side remains at least `side` pixels where it had as many. Raises DataError.
    """
    with opened(contents(path), path) as image:
        image.draft(None, (side, side))
        image.load()
        return np.asarray(colours.converted(*colours.flattened(_upright(image), [])))


def opacity(data: bytes, path: Place) -> UInt8 | None:
    """How opaque each pixel of the upright picture in `data` is, uint8 [height, width]; None where all of it is."""
    with opened(data, path) as image:
        image.load()
        image = _upright(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = colours.scaled(image, [])
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


@contextmanager
def opened(data: bytes | BinaryIO, path: Place) -> Iterator[Image.Image]:
    """The picture in `data`, not decoded yet; whatever then goes wrong with it becomes a DataError that names it."""
    file = BytesIO(data) if isinstance(data, bytes) else data
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MEGAPIXELS * 1_000_000:
                raise _too_large(path, f"{image.width} × {image.height} pixels are")
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "it is") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise _broken(path, _what_else(file.read(67))) from error
    except MemoryError:
        raise
    except Exception as error:  # crafted or cut files make Pillow's readers raise nearly anything
        raise _broken(path, f"{error or type(error).__name__}") from error


def apply(picture: Decoded, transform: Transform) -> Float32:
    """`picture` under `transform`, float32 [3, side_height, side_width] in [-1, 1].

    Resized with antialiasing, by Pillow's integer arithmetic: the same bits on every machine.
    """
    width, height, by = picture.width, picture.height, picture.shrunk
    scale = max(transform.side_width / width, transform.side_height / height)
    kept_width, kept_height = min(width, transform.side_width / scale), min(height, transform.side_height / scale)
    x, y = transform.left * (width - kept_width), transform.top * (height - kept_height)
    # A box resizes and crops at once, at a fraction of a pixel, with the pixels around the window still in the filter.
    box = (x / by, y / by, min(width, x + kept_width) / by, min(height, y + kept_height) / by)
    size = (transform.side_width, transform.side_height)
    image = colours.converted(
        picture.stored.resize(size, RESAMPLING[transform.interpolation], box=box), picture.to_srgb
    )
    pixels = np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray((pixels[:, ::-1] if transform.flip else pixels).transpose(2, 0, 1))


def _notes(image: Image.Image) -> list[str]:
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("has several frames; the first one is used")
    if image.mode == "CMYK" and not image.info.get("icc_profile"):
        notes.append("is CMYK without a colour profile; its colours are approximate")
    return notes


def _turn(image: Image.Image) -> int:
    """The EXIF orientation; 1 is upright."""
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    # TIFF is already upright once loaded, and then no longer carries the tag.
    turn = UPRIGHT.get(_turn(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _what_else(data: bytes) -> str:
    if not data:
        return "the file is empty"
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    for first, what in OTHERS:
        if start.startswith(first):
            return what
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"heif"):
        return "it is a HEIC picture; save it as JPEG or PNG"
    return "its contents are none of " + ", ".join(FORMATS)


def _broken(path: Place, reason: str) -> DataError:
    return DataError(
        f"not a readable picture: {reason}", where=str(path), todo="replace the file or take it out of the folder"
    )


def _too_large(path: Place, what: str) -> DataError:
    return DataError(
        f"{what} more than the {MEGAPIXELS} megapixels that gesso opens",
        where=str(path),
        todo="save a smaller copy of it",
    )


def _unreadable(path: Place, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"cannot be read ({reason})", where=str(path), todo="check the file and its permissions")

"""The one place where a picture is opened.

Whatever the file holds, what comes out is upright 8-bit sRGB: EXIF orientation applied, transparency laid on white,
colour profiles and CMYK converted, 16-bit and floating-point values scaled (Pillow's own conversion turns 16-bit grey
nearly white), the first frame of an animation. What cannot be decoded to its last row is an error that names the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from gesso.arrays import Array, Float32, Picture, UInt8
from gesso.data.places import Inside, Place
from gesso.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Pillow's readers that may run. Each of its forty others is one more way for a file to do harm."""
MEGAPIXELS = 64
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
    (0: left or top edge, 0.5: centre, 1: right or bottom edge); `flip` then mirrors it.
    """

    side_width: int
    side_height: int
    left: float = 0.5
    top: float = 0.5
    flip: bool = False

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
        return f"cover-lanczos-1 {size} at {place} flip {int(self.flip)}"


def fingerprint(path: Place) -> str:
    """SHA-256 of the picture's bytes, in hexadecimal."""
    if isinstance(path, Inside):
        return hashlib.sha256(contents(path)).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def load(path: Place) -> Picture:
    """The picture at `path`, uint8 [height, width, 3], sRGB, upright. Raises DataError."""
    return decode(contents(path), path)[0]


def contents(path: Place) -> bytes:
    """The bytes of the picture at `path`, a file or a place inside one. Raises DataError."""
    try:
        return path.read() if isinstance(path, Inside) else path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def decode(data: bytes, path: Place) -> tuple[Picture, tuple[str, ...]]:
    """The picture in `data`, as `load` gives it, and what a user should know of it. `path` names it in messages."""
    with _opened(data, path) as image:
        notes = _notes(image)
        picture = np.asarray(_srgb(_upright(image), notes))
    return picture, tuple(notes)


def sketch(path: Place) -> Picture:
    """The picture at `path` in small, as `load` gives it: JPEG at up to an eighth of its size, in little time.

    Its shorter side remains at least SKETCH pixels where it had as many. Raises DataError.
    """
    with _opened(contents(path), path, draft=SKETCH) as image:
        return np.asarray(_srgb(_upright(image), []))


def opacity(data: bytes, path: Place) -> UInt8 | None:
    """How opaque each pixel of the upright picture in `data` is, uint8 [height, width]; None where all of it is."""
    with _opened(data, path) as image:
        image = _upright(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _scaled(image, [])
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


@contextmanager
def _opened(data: bytes, path: Place, draft: int = 0) -> Iterator[Image.Image]:
    """The picture in `data`, decoded to its last row; whatever goes wrong with it becomes a DataError that names it.

    A JPEG may be decoded smaller, with its shorter side at least `draft` pixels long.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MEGAPIXELS * 1_000_000:
                raise _too_large(path, f"{image.width} × {image.height} pixels are")
            if draft:
                image.draft(None, (draft, draft))
            image.load()
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "it is") from error
    except UnidentifiedImageError as error:
        raise _broken(path, _what_else(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # crafted or cut files make Pillow's readers raise nearly anything
        raise _broken(path, f"{error or type(error).__name__}") from error


def apply(picture: Picture, transform: Transform) -> Float32:
    """`picture` uint8 [height, width, 3] under `transform`, float32 [3, side_height, side_width] in [-1, 1].

    Lanczos with antialiasing, by Pillow's integer arithmetic: the same bits on every machine.
    """
    height, width = picture.shape[:2]
    scale = max(transform.side_width / width, transform.side_height / height)
    kept_width, kept_height = min(width, transform.side_width / scale), min(height, transform.side_height / scale)
    x, y = transform.left * (width - kept_width), transform.top * (height - kept_height)
    # A box resizes and crops at once, at a fraction of a pixel, with the pixels around the window still in the filter.
    box = (x, y, min(width, x + kept_width), min(height, y + kept_height))
    size = (transform.side_width, transform.side_height)
    image = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray((pixels[:, ::-1] if transform.flip else pixels).transpose(2, 0, 1))


def _notes(image: Image.Image) -> list[str]:
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("has several frames; the first one is used")
    if image.mode == "CMYK" and not image.info.get("icc_profile"):
        notes.append("is CMYK without a colour profile; its colours are approximate")
    return notes


def _upright(image: Image.Image) -> Image.Image:
    # TIFF is already upright once loaded, and then no longer carries the tag.
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Mode RGB in sRGB, on white."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image, notes)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    image = _through_profile(image, profile, notes)
    if alpha is None:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _scaled(image: Image.Image, notes: list[str]) -> Image.Image:
    """Greyscale of more than 8 bits, scaled to 8: 16-bit from 0…65535, floats from 0…1, others from end to end."""
    values: Array = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
        notes.append(f"has values from {low:g} to {high:g}, which are taken as black and white")
    grey = np.rint((values - low) / ((high - low) or 1.0) * 255.0).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    return Image.fromarray(grey)


def _through_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if not profile and image.mode != "LAB":
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        # Browsers, too, show such a picture as if it had no profile.
        notes.append(f"has a colour profile that cannot be used ({error}); it is taken as sRGB")
        return image.convert("RGB")
    if converted is None:
        raise ValueError("its colours could not be converted")
    return converted


def _what_else(data: bytes) -> str:
    if not data:
        return "the file is empty"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
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

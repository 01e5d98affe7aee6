"""The colours of a picture: from whatever a file holds to 8-bit sRGB on a background of one colour."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from gesso.arrays import Array, Int64

CUBE = Image.fromarray((np.indices((18, 18, 18)).reshape(3, 18 * 18, 18).transpose(1, 2, 0) * 15).astype(np.uint8))
"""Colours of all kinds, 18 levels of each of the three."""


def flattened(
    image: Image.Image, notes: list[str], background: str = "white"
) -> tuple[Image.Image, ImageCms.ImageCmsTransform | None]:
    """The picture on a background of one colour, of mode RGB, L or CMYK, and what brings it to sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = scaled(image, notes)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    transform = to_srgb(image.mode, profile, notes)
    if alpha is None and image.mode != "LAB":  # whose numbers wrap around at grey: they cannot be resized
        return image, transform
    behind = converted(image, transform)
    if alpha is not None:
        image, behind = behind, Image.new("RGB", image.size, background)
        behind.paste(image, mask=alpha)
    return behind, None


def scaled(image: Image.Image, notes: list[str]) -> Image.Image:
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


def to_srgb(mode: str, profile: bytes | None, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """From pictures of `mode` with a colour profile to sRGB; None without one, where it is sRGB or cannot be used."""
    if not profile and mode != "LAB":
        return None
    try:
        return _transform(mode, profile)
    except (ImageCms.PyCMSError, OSError) as error:
        # Browsers, too, show such a picture as if it had no profile.
        notes.append(f"has a colour profile that cannot be used ({error}); it is taken as sRGB")
        return None


@lru_cache(maxsize=16)
def _transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    made = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else ImageCms.createProfile("LAB"),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    # The profile of most pictures is sRGB's own, in many wordings: what changes no colour need not be done.
    return None if mode == "RGB" and np.abs(_levels(converted(CUBE, made)) - _levels(CUBE)).max() <= 1 else made


def _levels(image: Image.Image) -> Int64:
    return np.asarray(image).astype(np.int64)


def converted(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """Mode RGB in sRGB."""
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    made = ImageCms.applyTransform(image, transform)
    if made is None:
        raise ValueError("its colours could not be converted")
    return made

"""One picture after another, decoded as the run decodes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gesso.arrays import Picture, UInt8
from gesso.data import images
from gesso.data.alike import thumbnail
from gesso.data.examine import contents
from gesso.data.examine.finding import Finding
from gesso.data.places import Cell, Inside, Place
from gesso.errors import DataError

TINY = 2.0
"""A picture that has to be enlarged by more than this is a warning, by less a note."""
EVEN = 2
"""A picture whose values differ by no more than this shows nothing."""
CLEAR = 0.01
"""Share of transparent pixels from which they are told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A picture that can be read: SHA-256 of its bytes, width and height in pixels, its 9 × 8 thumbnail."""

    place: Place
    sha256: str
    width: int
    height: int
    thumbnail: UInt8


def look(
    place: Place, side: tuple[int, int] | None = None, background: str = "white"
) -> tuple[Seen | None, list[Finding]]:
    """The picture and what there is to say of it by itself; None where it cannot be read.

    `side` is the width and height in pixels that pictures are trained in, `background` the colour behind what is
    transparent.
    """
    try:
        data = images.contents(place)
        decoded = images.decode(data, place)
    except DataError as error:
        what, todo = _gone(place) or (error.what, error.todo)
        found = Finding(level="error", kind="unreadable", where=str(place), what=what, todo=todo)
        return None, [found]
    picture = decoded.pixels
    height, width = picture.shape[:2]
    seen = Seen(
        place=place,
        sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        thumbnail=thumbnail(picture),
    )
    return seen, [*_of_file(place, data, decoded.notes, background), *_of_pixels(place, picture), *_of_size(seen, side)]


def _gone(place: Place) -> tuple[str, str] | None:
    """(what, todo) for a link to nothing, whose own message would be about a file that is clearly there."""
    if isinstance(place, Path) and place.is_symlink() and not place.exists():
        return f"a link to {place.readlink()}, which is not there", "put the picture there, or remove the link"
    return None


def _of_file(place: Place, data: bytes, notes: tuple[str, ...], background: str) -> Iterator[Finding]:
    where = str(place)
    if broken := contents.damage(data):
        yield Finding(
            level="warning",
            kind="damaged",
            where=where,
            what=f"damaged, though it can be decoded: {broken}",
            todo="look at it, and copy it again from where it came from",
            pictures=(place,),
        )
    ending = _ending(place)
    own, meant = contents.kind(data[: contents.FIRST]), contents.ENDINGS.get(ending, "")
    if own and meant and own != meant:
        yield Finding(
            level="warning",
            kind="ending",
            where=where,
            what=f"{contents.article(own)} {own} picture under the ending {ending}",
            todo="gesso reads it, other programs may not: rename it",
            pictures=(place,),
        )
    for note in notes:
        yield Finding(level="note", kind="looks", where=where, what=note, pictures=(place,))
    yield from _transparent(place, data, background)


def _ending(place: Place) -> str:
    if isinstance(place, Inside):
        return "" if isinstance(place.at, Cell) else Path(place.at.name).suffix.lower()
    return place.suffix.lower()


def _transparent(place: Place, data: bytes, background: str) -> Iterator[Finding]:
    with images.opened(data, place) as image:
        if not image.has_transparency_data:
            return
    alpha = images.opacity(data, place)
    share = 0.0 if alpha is None else 1.0 - float(alpha.mean(dtype=np.float64)) / 255.0
    if share >= CLEAR:
        yield Finding(
            level="note",
            kind="looks",
            where=str(place),
            what=f"{share:.0%} of it is transparent and will be {background}",
            todo="choose data.background, or learn its opaque part alone with data.masks = true",
            pictures=(place,),
        )


def _of_pixels(place: Place, picture: Picture) -> Iterator[Finding]:
    def even(pixels: Picture) -> bool:
        return int((pixels.max((0, 1)).astype(np.int16) - pixels.min((0, 1))).max()) <= EVEN

    # A few pixels tell of nearly every picture that it is not of one colour.
    if min(picture.shape[:2]) > 1 and even(picture[::37, ::37]) and even(picture):
        yield Finding(
            level="warning",
            kind="flat",
            where=str(place),
            what="it is all of one colour",
            todo="take it out, unless it is to be learned",
            pictures=(place,),
        )


def _of_size(seen: Seen, side: tuple[int, int] | None) -> Iterator[Finding]:
    if side is None:
        return
    scale = max(side[0] / seen.width, side[1] / seen.height)
    if scale > 1.0:
        yield Finding(
            level="warning" if scale > TINY else "note",
            kind="tiny" if scale > TINY else "small",
            where=str(seen.place),
            what=f"{seen.width} × {seen.height} pixels, enlarged {scale:.1f} times to {side[0]} × {side[1]}",
            todo="use a larger copy of it, or lower train.resolution",
            pictures=(seen.place,),
        )

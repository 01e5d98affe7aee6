"""Pictures that show the same, though their bytes differ: saved again, resized, a little brighter.

Two pictures are alike where at most BITS of 64 signs "this spot is lighter than the one to its right" differ (dHash,
hackerfactor.com "Kind of Like That") and their 9 × 8 thumbnails differ by at most TONES of 255 on average, and nowhere
by more than FARTHEST: signs alone would take a red and a green apple for one, and the average those on a white table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from PIL import Image

from gesso.arrays import Array, Picture, UInt8
from gesso.data import images
from gesso.data.cache import Store, key
from gesso.data.places import Place
from gesso.errors import DataError

BITS = 3
TONES = 12.0
FARTHEST = 40
WIDTH, HEIGHT = 9, 8


def near_duplicates(
    places: Sequence[Place], store: Store | None, progress: Callable[[str, int, int], None] | None = None
) -> list[int]:
    """The group of each picture: the number of the first one that is alike. What cannot be read is like no other.

    Thumbnails are kept in `store`, where there is one, by the picture's bytes. `progress` is told what is done, how
    many pictures of how many.
    """
    found: dict[int, UInt8] = {}
    for at, place in enumerate(places):
        if progress:
            progress("looking for pictures that show the same", at, len(places))
        try:
            name = key(kind="thumbnail 9x8 of a sketch", picture=images.fingerprint(place))
            known = store.get(name) if store else None
            found[at] = known["rgb"] if known else thumbnail(images.sketch(place))
            if store and not known:
                store.put(name, {"rgb": found[at]})
        except DataError:
            continue  # it is named, with all the others like it, when the pictures are prepared
    numbers = list(found)
    alike = {at: numbers[group] for at, group in zip(numbers, groups(list(found.values())), strict=True)}
    return [alike.get(at, at) for at in range(len(places))]


def thumbnail(picture: Picture) -> UInt8:
    """The picture as uint8 [8, 9, 3]."""
    return np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def signs(thumbnails: Sequence[UInt8]) -> np.ndarray:
    """dHash of each thumbnail, uint64 [N]."""
    grey = np.stack(thumbnails).astype(np.int64) @ np.array([299, 587, 114])
    bits = (grey[:, :, :-1] > grey[:, :, 1:]).reshape(len(grey), -1)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def groups(thumbnails: Sequence[UInt8]) -> list[int]:
    """The group of each picture: the number of the first one that is alike, directly or through others.

    Signs that differ in at most three bits agree in at least one of their four quarters: only those are compared.
    """
    if not thumbnails:
        return []
    of = list(range(len(thumbnails)))

    def first(at: int) -> int:
        while of[at] != at:
            of[at] = of[of[at]]
            at = of[at]
        return at

    hashes, tones = signs(thumbnails), np.stack(thumbnails).reshape(len(thumbnails), -1).astype(np.int16)
    for quarter in range(BITS + 1):
        places: dict[Hashable, list[int]] = {}
        for at, part in enumerate((hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)):
            places.setdefault(int(part), []).append(at)
        for same in places.values():
            rows = np.array(same)
            for place, at in enumerate(same[:-1]):
                rest = rows[place + 1 :]
                near = _ones(hashes[rest] ^ hashes[at]) <= BITS
                apart = np.abs(tones[rest] - tones[at])
                near &= (apart.mean(axis=1) <= TONES) & (apart.max(axis=1) <= FARTHEST)
                for other in rest[near]:
                    low, high = sorted((first(at), first(int(other))))
                    of[high] = low
    return [first(at) for at in range(len(of))]


def _ones(words: Array) -> Array:
    """How many bits of each 64-bit word are 1, [N]."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words))
    # numpy 1, which MindSpore needs.
    return np.asarray(np.unpackbits(words.astype(np.uint64)[:, None].view(np.uint8), axis=1).sum(axis=1))

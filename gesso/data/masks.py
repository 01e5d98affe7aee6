"""Where in a picture the loss counts: from a mask or the picture's own transparency down to the latent's pixels.

    mask at a latent pixel = mean over the picture's pixels that it stands for of  outside + (1 − outside)·white

The step's loss takes the mean of mask · error over the whole latent (gesso/data/batch.py): a mask that lets half of the
picture through makes it count half, as half of a picture's weight does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float32, UInt8
from gesso.data import images
from gesso.data.cache import key
from gesso.data.encoded import Pictures
from gesso.data.images import Decoded, Transform
from gesso.data.record import Record
from gesso.errors import DataError

SLACK = 0.02
"""How far the shape (width over height) of a mask may be off its picture's, as a share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """Masks of records, through the same crop as their pictures."""

    pictures: Pictures

    def get(self, records: Sequence[Record], transforms: Sequence[Transform], height: int, width: int) -> Float32:
        """The mask of each record, float32 [B, 1, height, width] of a latent; ones where a record has none."""
        found = np.ones((len(records), 1, height, width), dtype=np.float32)
        for row, (record, transform) in enumerate(zip(records, transforms, strict=True)):
            if record.mask is not None:
                found[row, 0] = record.outside + (1 - record.outside) * self._white(record, transform, height, width)
        return found

    def check(self, record: Record, transforms: Sequence[Transform]) -> None:
        """Raise DataError where the mask cannot be read or has another shape than its picture.

        Masks that are kept are made here, under each of `transforms`.
        """
        if not self.pictures.keep:
            self._whole(record)
        for transform in transforms if self.pictures.keep else ():
            mean, _ = self.pictures.get([(record.place, transform)])
            self._white(record, transform, *mean.shape[2:])

    def _white(self, record: Record, transform: Transform, height: int, width: int) -> Float32:
        """How white the mask is, from 0 to 1, float32 [height, width]; kept as latents are."""
        assert record.mask is not None
        own = record.mask == record.place
        name = key(
            kind="mask, transparency" if own else "mask",
            picture=self.pictures.sha256(record.mask),
            transform=transform.tag(),
            latent=f"{width}x{height}",
        )
        known = self.pictures.store.get(name) if self.pictures.keep else None
        if known:
            return known["white"]
        mask = self._whole(record)
        white = np.ones((height, width), dtype=np.float32) if mask is None else _small(mask, transform, height, width)
        if self.pictures.keep:
            self.pictures.store.put(name, {"white": white})
        return white

    def _whole(self, record: Record) -> UInt8 | None:
        place = record.mask
        assert place is not None
        data = images.contents(place)
        if place == record.place:
            return images.opacity(data, place)
        # Grey as the eye sees it: an editor saves black and white in any mode.
        mask = images.decode(data, place).pixels @ np.array([0.299, 0.587, 0.114])
        width, height = self.pictures.size(record.place)
        if abs(mask.shape[1] * height / (mask.shape[0] * width) - 1.0) > SLACK:
            raise DataError(
                f"the mask is {mask.shape[1]} × {mask.shape[0]} pixels, its picture {width} × {height}",
                where=str(place),
                todo="make the mask of the picture as it is now, in the same shape",
            )
        grey: UInt8 = np.rint(mask).astype(np.uint8)
        return grey


def _small(mask: UInt8, transform: Transform, height: int, width: int) -> Float32:
    """The mask [any height, any width] under the transform, averaged to float32 [height, width], from 0 to 1."""
    whole = images.apply(Decoded.of(np.repeat(mask[..., None], 3, axis=2)), transform)[0]
    parts = whole.reshape(height, whole.shape[0] // height, width, whole.shape[1] // width)
    return np.asarray((parts.mean((1, 3), dtype=np.float64) + 1.0) / 2.0, dtype=np.float32)

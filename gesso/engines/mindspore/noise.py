"""The normal noise that PyTorch's CPU generator draws, in numpy: one seed is then one picture, whichever engine draws.

PyTorch fills float32 arrays of 16 values or more with uniform numbers of 24 bits from the Mersenne Twister, and turns
each 16 of them into normal ones by Box and Muller's transform, eight by eight (ATen, DistributionTemplates.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from gesso.arrays import Float32

BLOCK = 16
HALF = BLOCK // 2


class Noise:
    """Stands where mindone's pipelines want a numpy.random.Generator; they ask for nothing but normal numbers."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def standard_normal(self, size: Sequence[int]) -> Float32:
        """What `torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed))` would give next, float32.

        Up to rounding of the logarithm and the cosine. ValueError below 16 values, which PyTorch draws in another way.
        """
        count = int(np.prod(size))
        if count < BLOCK:
            raise ValueError(f"{count} values are fewer than the {BLOCK} that are drawn together")
        values = self._uniform(count)
        whole = count // BLOCK * BLOCK
        values[:whole] = _normal(values[:whole])
        if whole < count:  # the last block is drawn anew, over the end of the one before
            values[-BLOCK:] = _normal(self._uniform(BLOCK))
        return values.reshape(tuple(size))

    def _uniform(self, count: int) -> Float32:
        words = self._twister.randint(0, 2**32, count, dtype=np.uint32)
        return cast(Float32, (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24))


def _normal(uniform: Float32) -> Float32:
    blocks = uniform.reshape(-1, 2, HALF)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    angle = np.float32(2.0 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32).reshape(-1)

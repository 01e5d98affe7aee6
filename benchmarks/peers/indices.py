"""In which order a script must take its pictures to train on what gesso drew."""

from __future__ import annotations

import numpy as np


def indices(ids: np.ndarray, pairs: tuple[int, int] | None) -> list[int]:
    """The pictures by index, of gesso's `ids` int64 [S, B]; with `pairs` of so many pictures and class pictures.

    DreamBooth's scripts take an index modulo the number of pictures, and modulo the number of class pictures: where
    these have no common divisor, there is an index for every pair. gesso's rows are then B/2 pictures and B/2 class
    pictures, whose ids come after the pictures'.
    """
    if not pairs:
        return [int(row) for row in ids.reshape(-1)]
    instances, classes = pairs
    both = ((int(i), int(c) - instances) for row in ids for i, c in zip(*np.split(row, 2), strict=True))
    return [next(k for k in range(i, instances * classes, instances) if k % classes == c) for i, c in both]

"""In which order a script must take its pictures, and their noise, to train on what gesso drew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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


def by_picture(ids: np.ndarray, drawn: np.ndarray) -> Iterator[np.ndarray]:
    """Batches without end of what gesso drew for each picture, in the order of the pictures, [B, …] each.

    For a script that encodes every picture once, beforehand. `drawn` [S, B, …] belongs to the pictures `ids` int64
    [S, B]; those that gesso did not take get zeros. ValueError: gesso took one twice, and drew for it twice.
    """
    order = [int(row) for row in ids.reshape(-1)]
    if len(set(order)) < len(order):
        raise ValueError("the script encodes a picture once, and gesso drew for it in more than one epoch")
    rows = dict(zip(order, drawn.reshape(-1, *drawn.shape[2:]), strict=True))
    for first in itertools.count(step=ids.shape[1]):
        yield np.stack([rows.get(at, np.zeros_like(drawn[0, 0])) for at in range(first, first + ids.shape[1])])

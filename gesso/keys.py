"""Randomness without state: every draw is a pure function of (seed, stream, integers).

A generator is made from a key, used once, and forgotten. Nothing is advanced, so nothing must be saved: a resumed
run, another micro-batch split or another process draws the same numbers (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3": Philox is a counter-based generator, and the key is all there is).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from gesso.arrays import Float32, Int64


def generator(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """The generator for one purpose (`stream`) at one place (`numbers`: epoch, row id, step, …)."""
    text = "|".join((str(seed), stream, *map(str, numbers))).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def permutation(seed: int, stream: str, epoch: int, rows: int) -> Int64:
    """The order of `rows` rows in one epoch."""
    return generator(seed, stream, epoch).permutation(rows).astype(np.int64)


def normals(seed: int, stream: str, places: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> Float32:
    """Standard normal noise [len(places), *shape], each row a function of its own place only."""
    return np.stack([generator(seed, stream, *place).standard_normal(shape, dtype=np.float32) for place in places])


def uniforms(seed: int, stream: str, places: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [len(places)], each a function of its own place only."""
    return np.array([generator(seed, stream, *place).random() for place in places], dtype=np.float64)

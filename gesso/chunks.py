"""Captions that are longer than a text encoder reads at once are read in chunks, whose vectors are put end to end.

Each chunk has its own marks of beginning and end, as in the web interfaces in which such prompts are common. One
number of a caption, such as SDXL's pooled vector, is that of its first chunk.

Captions of unlike length meet in a batch by being repeated. Cross-attention does not see that: with every key and value
there r times, softmax(q·[k … k])·[v … v] = softmax(q·k)·v. So a caption means the same whatever stands beside it, and
no mask has to reach the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import numpy as np

from gesso.arrays import Array


def cut(ids: Sequence[int], room: int, most: int = 0) -> list[list[int]]:
    """Token ids without marks as chunks of up to `room` of them, at most `most` chunks (0: all), at least one."""
    chunks = [list(ids[at : at + room]) for at in range(0, len(ids), room)] or [[]]
    return chunks[:most] if most else chunks


def level(rows: Sequence[Array]) -> Array:
    """The rows as one array [B, …], each repeated along its first axis until all are of one length."""
    lengths = {len(row) if row.ndim else 1 for row in rows}
    if len(lengths) == 1:
        return np.stack(rows)
    length = lcm(*lengths)
    return np.stack([np.concatenate([row] * (length // len(row))) for row in rows])

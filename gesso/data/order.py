"""The order of very many rows, computed place by place.

A permutation of ten million rows as an array takes 80 MB and seconds at the start of each epoch and of each resumption.
Beyond `MANY` rows a place is therefore permuted by itself: a Feistel network over the next power of four, whose rounds
are keyed as every other draw, walked until it comes back into the rows (Black & Rogaway 2002, "Ciphers with Arbitrary
Finite Domains", section 4; the round's mixer is SplitMix64's, Steele et al. 2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

from gesso.arrays import Int64
from gesso.keys import generator, permutation

MANY = 2**20
ROUNDS = 6
_MASK = 2**64 - 1


class Walked:
    """The order of `rows` rows: `order[place]` is the row that has that place. Nothing is held but the keys."""

    def __init__(self, seed: int, stream: str, epoch: int, rows: int) -> None:
        self.rows = rows
        self.half: int = max((rows - 1).bit_length() + 1, 2) // 2
        drawn = generator(seed, stream, epoch).integers(0, _MASK, size=ROUNDS, dtype="uint64", endpoint=True)
        self.keys: list[int] = drawn.tolist()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.rows:
            raise IndexError(place)
        found: int = self._once(place)
        while found >= self.rows:  # at most four times as many places as rows: it ends after four steps on average
            found = self._once(found)
        return found

    def _once(self, value: int) -> int:
        """A permutation of the numbers below 4 ** half."""
        low = (1 << self.half) - 1
        left, right = value >> self.half, value & low
        for key in self.keys:
            left, right = right, left ^ (_mixed((right + key) & _MASK) & low)
        return (left << self.half) | right


def order(seed: int, stream: str, epoch: int, rows: int) -> Int64 | Walked:
    """The order of `rows` rows in one epoch: by place, the row that is seen there."""
    return Walked(seed, stream, epoch, rows) if rows > MANY else permutation(seed, stream, epoch, rows)


def _mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)

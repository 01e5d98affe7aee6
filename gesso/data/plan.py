"""Which rows each step sees: pure arithmetic, nothing replayed, so that resuming at any step costs nothing.

Each group is an endless stream of epochs, each epoch a permutation of its own. With n rows, the position
k = step·batch + i lies in epoch k // n and holds row permutation[k % n]. A step is `batch` rows of "instance", then as
many of "class" where there is one (prior preservation), so both halves are in every step whatever their sizes.

Pictures of several sizes (buckets.py) change only who meets whom: an epoch is still a permutation of its n rows, in
which as many steps as possible hold one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gesso.arrays import Int64
from gesso.data.buckets import Size, arranged
from gesso.data.many import Coded
from gesso.data.order import Walked, order
from gesso.data.record import Record
from gesso.data.records import groups
from gesso.errors import DataError
from gesso.keys import generator, permutation

GROUPS = ("instance", "class")
"""The groups in the order they have in every step."""


class Slot(NamedTuple):
    """A row of the data in one epoch of its group."""

    row: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of the data; `rows` gives the row numbers of each group, `batch` counts one group's rows in a step.

    `sizes` says what each row is trained at, by row number; () where all are alike.
    """

    seed: int
    rows: Mapping[str, Sequence[int] | Int64]
    batch: int
    sizes: Sequence[Size] = ()
    _last: dict[str, tuple[int, Int64 | Walked]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The permutation used last in each group: a saving of time, never of meaning."""
    _known: dict[str, Int64] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = set(self.rows) - set(GROUPS)
        if unknown:
            raise DataError(f"the group {sorted(unknown)[0]!r} is not known", todo="groups are " + " and ".join(GROUPS))
        if not len(self.rows.get("instance", ())):
            raise DataError("there is no picture to learn from", todo="name a folder of pictures in [[data]]")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that each step holds, in order."""
        return tuple(group for group in GROUPS if len(self.rows.get(group, ())))

    def step(self, step: int) -> list[Slot]:
        """The slots of step 0, 1, …: `batch` for each group."""
        first = step * self.batch
        return [self._slot(group, k) for group in self.groups for k in range(first, first + self.batch)]

    def _slot(self, group: str, k: int) -> Slot:
        rows = self.rows[group]
        epoch, place = divmod(k, len(rows))
        last = self._last.get(group)
        if last is None or last[0] != epoch:
            last = (epoch, self._order(group, epoch))
            self._last[group] = last
        return Slot(row=int(rows[int(last[1][place])]), epoch=epoch)

    def _order(self, group: str, epoch: int) -> Int64 | Walked:
        """The places in `rows[group]` as they are seen in one epoch."""
        count, stream, kinds = len(self.rows[group]), f"order/{group}", self._kinds(group)
        if not kinds.any():
            return order(self.seed, stream, epoch, count)
        draw = generator(self.seed, f"buckets/{group}", epoch)
        places = permutation(self.seed, stream, epoch, count)
        return arranged(places, kinds, start=epoch * count, batch=self.batch, draw=draw)

    def _kinds(self, group: str) -> Int64:
        """The size of each of the group's rows as a number, 0 for the least."""
        if group not in self._known:
            if isinstance(self.sizes, Coded):
                self._known[group] = self.sizes.kinds(self.rows[group])
                return self._known[group]
            sizes = [self.sizes[row] for row in self.rows[group]] if self.sizes else []
            number = {size: at for at, size in enumerate(sorted(set(sizes)))}
            self._known[group] = np.array([number[size] for size in sizes], dtype=np.int64)
        return self._known[group]


def by_group(records: Sequence[Record]) -> dict[str, Sequence[int] | Int64]:
    """The row numbers of each group of `records`, without a look at each where whole sources are of one group."""
    return groups(records)

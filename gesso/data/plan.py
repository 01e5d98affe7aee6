"""Which rows each step sees: pure arithmetic, nothing replayed, so that resuming at any step costs nothing.

Each group is an endless stream of epochs, each epoch a permutation of its own. With n rows, the position
k = step·batch + i lies in epoch k // n and holds row permutation[k % n]. A step is `batch` rows of "instance", then as
many of "class" where there is one (prior preservation), so both halves are in every step whatever their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gesso.arrays import Int64
from gesso.data.record import Record
from gesso.errors import DataError
from gesso.keys import permutation

GROUPS = ("instance", "class")
"""The groups in the order they have in every step."""


class Slot(NamedTuple):
    """A row of the data in one epoch of its group."""

    row: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of the data; `rows` gives the row numbers of each group, `batch` counts one group's rows in a step."""

    seed: int
    rows: Mapping[str, tuple[int, ...]]
    batch: int
    _last: dict[str, tuple[int, Int64]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The permutation used last in each group: a saving of time, never of meaning."""

    def __post_init__(self) -> None:
        unknown = set(self.rows) - set(GROUPS)
        if unknown:
            raise DataError(f"the group {sorted(unknown)[0]!r} is not known", todo="groups are " + " and ".join(GROUPS))
        if not self.rows.get("instance"):
            raise DataError("there is no picture to learn from", todo="name a folder of pictures in [[data]]")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that each step holds, in order."""
        return tuple(group for group in GROUPS if self.rows.get(group))

    def step(self, step: int) -> list[Slot]:
        """The slots of step 0, 1, …: `batch` for each group."""
        first = step * self.batch
        return [self._slot(group, k) for group in self.groups for k in range(first, first + self.batch)]

    def _slot(self, group: str, k: int) -> Slot:
        rows = self.rows[group]
        epoch, place = divmod(k, len(rows))
        last = self._last.get(group)
        if last is None or last[0] != epoch:
            last = (epoch, permutation(self.seed, f"order/{group}", epoch, len(rows)))
            self._last[group] = last
        return Slot(row=rows[int(last[1][place])], epoch=epoch)


def by_group(records: Sequence[Record]) -> dict[str, tuple[int, ...]]:
    """The row numbers of each group of `records`."""
    groups = dict.fromkeys(record.group for record in records)
    return {group: tuple(row for row, record in enumerate(records) if record.group == group) for group in groups}

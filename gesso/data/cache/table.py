"""Where the entries of all packs are, in 24 bytes of memory each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gesso.data.cache.packs import ALIGN, Rows

PLACE = np.dtype([("pack", "<u4"), ("unit", "<u4"), ("length", "<u4"), ("ordinal", "<u4")])
RECENT = 4096
"""Entries that wait in a dictionary before they are sorted in with the others, at least."""


class Where(NamedTuple):
    """The number of a pack, the offset of an entry in it and the length of its payload in bytes, its number there."""

    pack: int
    offset: int
    length: int
    ordinal: int


class Table:
    """Places by the first 8 bytes of keys: a sorted array, and a small dictionary of what came last."""

    def __init__(self) -> None:
        self._prefixes = np.empty(0, dtype=np.uint64)
        self._places = np.empty(0, dtype=PLACE)
        self._recent: dict[int, list[Where]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._prefixes) + self._waiting

    def add(self, pack: int, rows: Rows) -> None:
        """Take in entries of one pack."""
        if len(rows) > max(RECENT, len(self._prefixes) // 8):
            places = np.empty(len(rows), dtype=PLACE)
            places["pack"] = pack
            for name in ("unit", "length", "ordinal"):
                places[name] = rows[name]
            self._merge(rows["prefix"], places)
            return
        for prefix, unit, length, _, ordinal in rows.tolist():
            self.add_one(prefix, Where(pack, unit * ALIGN, length, ordinal))

    def add_one(self, prefix: int, where: Where) -> None:
        self._recent.setdefault(prefix, []).append(where)
        self._waiting += 1
        if self._waiting > max(RECENT, len(self._prefixes) // 8):
            found = [(prefix, w) for prefix, places in self._recent.items() for w in places]
            places = np.array([(w.pack, w.offset // ALIGN, w.length, w.ordinal) for _, w in found], dtype=PLACE)
            self._recent, self._waiting = {}, 0
            self._merge(np.array([prefix for prefix, _ in found], dtype=np.uint64), places)

    def find(self, prefix: int) -> Iterator[Where]:
        """The places that may be meant, those added last first."""
        yield from reversed(self._recent.get(prefix, ()))
        at = int(np.searchsorted(self._prefixes, np.uint64(prefix)))
        while at < len(self._prefixes) and int(self._prefixes[at]) == prefix:
            pack, unit, length, ordinal = self._places[at].tolist()
            yield Where(pack, unit * ALIGN, length, ordinal)
            at += 1

    def _merge(self, prefixes: np.ndarray, places: np.ndarray) -> None:
        both = np.concatenate([prefixes.astype(np.uint64), self._prefixes])
        order = np.argsort(both, kind="stable")
        self._prefixes, self._places = both[order], np.concatenate([places, self._places])[order]

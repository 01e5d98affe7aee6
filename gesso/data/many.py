"""Millions of pictures whose indexes vouch for them: what a run must know of its data, computed column by column.

An index that `gesso pack` wrote holds SHA-256, width and height of each picture, taken when the picture was decoded
whole. From MANY rows on a run trusts it: nothing is read or decoded before it is seen, and then held against its
SHA-256. A smaller set is looked at picture by picture, since a broken one is better known at the start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gesso.arrays import Array, Int64
from gesso.data import buckets
from gesso.data.buckets import Bucket, Buckets, Size
from gesso.data.captions import Style
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.data.records import AT_ONCE, Indexed, Span, spans
from gesso.keys import generator

MANY = 20_000
"""Rows from which indexes are trusted."""
SAMPLE = 4096
"""Rows of which the captions are looked at."""


def vouched(span: Span) -> Indexed | None:
    """The source of a span where its index holds SHA-256 and size of each picture."""
    return span.part if isinstance(span.part, Indexed) and span.part.table.vouches else None


def doubted(records: Sequence[Record]) -> Sequence[int]:
    """The rows that have to be looked at before the first step: all of a small set, and those without a full index."""
    if len(records) < MANY:
        return range(len(records))
    own = [span for span in spans(records) if vouched(span) is None]
    return [row for span in own for row in range(span.start, span.start + len(span))]


def sizes(records: Sequence[Record], *, once: bool = False) -> Iterator[tuple[int, Int64]]:
    """Width and height in pixels of trusted pictures, int64 [N, 2], of rows side by side, with the first of these.

    `once`: without repetitions.
    """
    seen = set[int]()
    for span in spans(records) if len(records) >= MANY else ():
        part = vouched(span)
        if part is None or (once and span.rows is None and id(part.table) in seen):
            continue  # a source that is repeated stands there several times, as itself
        seen |= {id(part.table)}
        for first in range(0, len(span), AT_ONCE):
            rows = slice(first, first + AT_ONCE) if span.rows is None else span.rows[first : first + AT_ONCE]
            sides = [part.table.columns[name][rows] for name in ("width", "height")]
            yield span.start + first, np.stack(sides, axis=1, dtype=np.int64)
        part.table.release()


def shapes(records: Sequence[Record], *, once: bool = False) -> Counter[Size]:
    """How many rows, or `once` how many pictures, there are of each width and height."""
    found = Counter[Size]()
    for _, each in sizes(records, once=once):
        pairs, _, counts = _distinct(each)
        found.update(dict(zip(pairs, counts.tolist(), strict=True)))
    return found


def _distinct(found: Int64) -> tuple[list[Size], Int64, Int64]:
    """The different rows of int64 [N, 2], the number of its own for each of the N, and how often each occurs."""
    pairs, inverse, counts = np.unique(found @ np.array([2**32, 1]), return_inverse=True, return_counts=True)
    return list(zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True)), inverse, counts


def smaller(
    records: Sequence[Record], trained_at: Callable[[int, int], Size], first: int
) -> tuple[int, int, list[int], set[Size]]:
    """How many trusted pictures are narrower or lower than `trained_at` says, of how many, the `first` rows of them,
    and these sizes."""
    count, total, rows, wanted = 0, 0, list[int](), set[Size]()
    for start, found in sizes(records, once=True):
        pairs, inverse, _ = _distinct(found)
        targets = [trained_at(*pair) for pair in pairs]
        small = np.array([pair[0] < size[0] or pair[1] < size[1] for pair, size in zip(pairs, targets, strict=True)])
        wanted |= {size for size, is_small in zip(targets, small, strict=True) if is_small}
        places = np.flatnonzero(small[inverse])
        count += len(places)
        rows += (places[: first - len(rows)] + start).tolist()
        total += len(found)
    return count, total, rows, wanted


@dataclass(frozen=True, eq=False)
class Coded(Sequence[Size]):
    """A size for each row as a number: `table` holds the different ones in ascending order, `numbers` is int32 [N]."""

    table: Sequence[Size]
    numbers: Array

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        return self.table[self.numbers[row]]

    def kinds(self, rows: Sequence[int] | Int64) -> Int64:
        """The size of each of `rows` as a number, 0 for the least size among them, int64 [len(rows)]."""
        whole = isinstance(rows, range) and rows.step == 1
        own = self.numbers[rows.start : rows.stop] if isinstance(rows, range) and whole else self.numbers[rows]
        there = np.bincount(own, minlength=len(self.table)) > 0
        found: Int64 = (np.cumsum(there) - 1)[own]
        return found


def coded(records: Sequence[Record], chosen: Buckets, others: Mapping[int, Size]) -> Coded:
    """What each row is trained at; `others` says it for the rows that no index vouches for."""
    known = {pair: chosen.size(*pair) for pair in shapes(records, once=True)}
    table = sorted({*known.values(), *others.values()})
    number = {size: at for at, size in enumerate(table)}
    numbers = np.empty(len(records), np.int32)
    for start, found in sizes(records):
        pairs, inverse, _ = _distinct(found)
        of = np.array([number[known[pair]] for pair in pairs], np.int32)
        numbers[start : start + len(found)] = of[inverse]
    for row, size in others.items():
        numbers[row] = number[size]
    return Coded(table, numbers)


def held_out(records: Sequence[Record], share: float, seed: int) -> tuple[Int64, Int64]:
    """(rows that stay, rows that are held out): of the trusted ones, about `share`, drawn by the picture's SHA-256.

    So equal pictures are on one side. A picture is held out once, however often its source is repeated; the rows that
    no index vouches for stay.
    """
    odd = np.uint64(int(generator(seed, "holdout of many").integers(2**63)) * 2 + 1)
    stay, held, seen = list[Int64](), list[Int64](), set[int]()
    for span in spans(records):
        rows = np.arange(span.start, span.start + len(span), dtype=np.int64)
        part = vouched(span)
        if part is None:
            stay.append(rows)
            continue
        own = part.table.columns["sha256"][slice(None) if span.rows is None else span.rows, :8]
        value = np.ascontiguousarray(own).view("<u8").ravel() * odd  # uniform, as the hash is; modulo 2 ** 64
        out = (value >> np.uint64(11)) < share * 2**53
        stay.append(rows[~out])
        held += [] if span.rows is None and id(part.table) in seen else [rows[out]]
        seen |= {id(part.table)}
        part.table.release()
    return np.concatenate(stay), np.concatenate([*held, np.empty(0, np.int64)])


def drawn(records: Sequence[Record]) -> int:
    """How many records have captions in which something is drawn each time they are seen."""
    found = 0
    for span in spans(records):
        if isinstance(span.part, Indexed):
            found += len(span) if _draws(span.part.alike.style) else 0
        else:
            rows = range(len(span)) if span.rows is None else span.rows.tolist()
            found += sum(_draws(span.part[row].style) for row in rows)
    return found


def _draws(style: Style) -> bool:
    return style.shuffle or bool(style.drop) or style.wildcards


def masked(records: Sequence[Record]) -> bool:
    """Whether pictures that an index vouches for have masks."""
    return any(part.alike.masks for span in spans(records) if (part := vouched(span)) is not None)


def sample(records: Sequence[Record]) -> list[Record]:
    """SAMPLE of the records, spread evenly."""
    rows, found = np.linspace(0, len(records) - 1, SAMPLE).astype(np.int64), list[Record]()
    for span in spans(records):
        inside = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.start + len(span))]
        found += [records[row] for row in inside.tolist()]
        if isinstance(span.part, Indexed):
            span.part.table.release()
    return found


def table(
    records: Sequence[Record], chosen: Buckets, others: Callable[[Place], Size], batch: int
) -> tuple[Bucket, ...]:
    """Who is trained at what size, as buckets.table; `others` gives the size of pictures that no index vouches for."""
    pictures, rows = shapes(records, once=True), shapes(records)
    own = [records[row].place for row in doubted(records)]
    pictures.update(others(place) for place in dict.fromkeys(own))
    rows.update(others(place) for place in own)
    return buckets.counted(chosen, pictures, rows, batch)


def said(trusted: int) -> str:
    """What of so many pictures is not looked at before the first step, for the user."""
    return (
        f"of {trusted:,} pictures the indexes are trusted, which hold SHA-256 and size of "
        "each: a picture is read, and held against its SHA-256, when it is seen. Equal pictures are not looked for, "
        f"and of the captions a sample of {SAMPLE:,}"
    )

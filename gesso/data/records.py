"""Records in great number: each is made when it is asked for, from columns that may lie on the disk.

A folder of pictures is a list of records. A shard or a table with millions of rows is `Indexed`; several sources are
`joined`; a share of the rows is `Chosen`. All of them are sequences, and hold nothing for a row but a number at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from gesso.arrays import Array, Int64
from gesso.data.captions import Style
from gesso.data.index import Index
from gesso.data.places import Cell, File, Inside, Member
from gesso.data.record import Record

AT_ONCE = 2**14
"""Rows whose columns are looked at together."""


class Rows(Sequence[Record]):
    """A sequence of records by row; slices are sequences of the same kind."""

    def at(self, row: int) -> Record:
        """The record of a row from 0 to the length."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Record]:
        return (self.at(row) for row in range(len(self)))  # Sequence's own would take any IndexError for the end

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Chosen(self, np.arange(*row.indices(len(self)), dtype=np.int64))
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self.at(int(row) % len(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """What the records of one source have in common: `prompt` is for those without a caption, and stands at `asked`."""

    group: str
    weight: float
    masks: bool
    outside: float
    background: str
    style: Style
    reader: str
    prompt: str
    asked: str


class Indexed(Rows):
    """The pictures of one file, after its index. `inner` gives the place of a row in the file."""

    def __init__(self, path: File, index: Index, inner: Callable[[int], Member | Cell], alike: Alike) -> None:
        self.path, self.table, self.inner, self.alike = path, index, inner, alike

    def __len__(self) -> int:
        return len(self.table)

    def at(self, row: int) -> Record:
        same, inner = self.alike, self.inner(row)
        captions, shares = self.table.captions(row)
        place = Inside(self.path, inner)
        return Record(
            path=self.path,
            captions=captions or (same.prompt,),
            group=same.group,
            weight=same.weight,
            mask=place if same.masks else None,
            outside=same.outside,
            background=same.background,
            origin=str(place) if captions else same.asked,
            inner=inner,
            shares=shares,
            style=same.style,
            reader=same.reader if captions else same.asked,
        )


class Joined(Rows):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, row: int) -> Record:
        part = bisect_right(self.ends, row)
        return self.parts[part][row - (self.ends[part - 1] if part else 0)]


class Chosen(Rows):
    """Some rows of a sequence, in the order of `rows`, int64 [N]."""

    def __init__(self, records: Sequence[Record], rows: Int64) -> None:
        self.records, self.rows = records, rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, row: int) -> Record:
        return self.records[int(self.rows[row])]


def joined(parts: Iterable[Sequence[Record]]) -> Sequence[Record]:
    """All of `parts`, one after the other: a list where all of them are lists."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    if any(isinstance(part, Rows) for part in found):
        return Joined(found)
    return [record for part in found for record in part]


def repeated(records: Sequence[Record], times: int) -> Sequence[Record]:
    return joined([records] * times)


def chosen(records: Sequence[Record], rows: Int64) -> Sequence[Record]:
    """The records of `rows`, in that order: a list of a list."""
    return Chosen(records, rows) if isinstance(records, Rows) else [records[int(row)] for row in rows]


def of_group(records: Sequence[Record], group: str) -> Sequence[Record]:
    """The records of `group`, in their order."""
    rows = groups(records).get(group)
    if rows is None:
        return []
    return records if len(rows) == len(records) else chosen(records, np.asarray(rows, dtype=np.int64))


def groups(records: Sequence[Record]) -> dict[str, Sequence[int] | Array]:
    """The rows of each group, in their order, without a look at every record where a whole source is of one group."""
    found: dict[str, list[range | Array]] = {}
    for start, part in _parts(records):
        if isinstance(part, Indexed):
            found.setdefault(part.alike.group, []).append(range(start, start + len(part)))
            continue
        if isinstance(part, Chosen) and len(inner := groups(part.records)) == 1:
            found.setdefault(next(iter(inner)), []).append(range(start, start + len(part)))
            continue
        names = np.array([record.group for record in part])
        for group in dict.fromkeys(names.tolist()):
            found.setdefault(group, []).append(start + np.flatnonzero(names == group))
    return {group: _one(spans) for group, spans in found.items()}


def readers(records: Sequence[Record]) -> Counter[str]:
    """How many captions come from which reader."""
    found = Counter[str]()
    for _, part in _parts(records):
        if isinstance(part, Indexed):
            found[part.alike.reader] += len(part) - part.table.silent
            found[part.alike.asked] += part.table.silent
        else:
            found.update(record.reader for record in part)
    return +found


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one source that stand side by side: `rows` of `part`, int64 [N], or all of them; `start` is the first."""

    start: int
    part: Sequence[Record]
    rows: Int64 | None = None

    def __len__(self) -> int:
        return len(self.part) if self.rows is None else len(self.rows)


def spans(records: Sequence[Record], start: int = 0) -> Iterator[Span]:
    """What `records` is made of, in order: sources as they are read, without a look at any record."""
    if isinstance(records, Joined):
        for first, part in zip((0, *records.ends), records.parts, strict=False):
            yield from spans(part, start + first)
    elif isinstance(records, Chosen):
        yield from _chosen(records, start)
    elif len(records):
        yield Span(start, records)


def _chosen(records: Chosen, start: int) -> Iterator[Span]:
    inner = list(spans(records.records))
    ends = np.cumsum([len(span) for span in inner])
    for first in range(0, len(records), AT_ONCE):
        rows = records.rows[first : first + AT_ONCE]
        of = np.searchsorted(ends, rows, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(rows)]
        for one, other in pairwise(cuts):
            span = inner[int(of[one])]
            own = rows[one:other] - span.start
            yield Span(start + first + one, span.part, own if span.rows is None else span.rows[own])


def _parts(records: Sequence[Record], start: int = 0) -> Iterable[tuple[int, Sequence[Record]]]:
    """The sequences that `records` is joined from, each with its first row."""
    if not isinstance(records, Joined):
        yield start, records
        return
    for first, part in zip((0, *records.ends), records.parts, strict=False):
        yield from _parts(part, start + first)


def _one(spans: Sequence[range | Array]) -> Sequence[int] | Array:
    """The spans as one: a range where each begins where the one before ends, otherwise int64."""
    ranges = [span for span in spans if isinstance(span, range)]
    meet = all(one.stop == other.start for one, other in pairwise(ranges))
    if len(ranges) == len(spans) and meet:
        return range(ranges[0].start, ranges[-1].stop)
    return np.concatenate([np.asarray(span, dtype=np.int64) for span in spans])

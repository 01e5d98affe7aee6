"""What a user should know of the data before a run, one sentence each, so that nothing is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from gesso.data import images
from gesso.data.captions import plain
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.data.sources import listed, orphans
from gesso.schema import DataTable

FEW = 3
"""Up to so many captions that are cut, or groups of equal pictures, are named one by one."""

Counter = Callable[[Sequence[str]], tuple[list[int], int]]
"""How many tokens each caption has before any cut, and how many the encoder takes (`Engine.token_counts`)."""


def check(
    records: Sequence[Record],
    tables: Sequence[DataTable],
    *,
    fingerprints: Mapping[Place, str] | None = None,
    counter: Counter | None = None,
) -> list[str]:
    """Notes on captions that are not used, equal pictures, shared caption files, and captions that will be cut.

    `fingerprints` (SHA-256 by path) saves reading the pictures again.
    """
    unused = [note for table in {table.path: table for table in tables}.values() for note in orphans(table)]
    return [*unused, *duplicates(records, fingerprints or {}), *shared(records), *cut(records, counter)]


def duplicates(records: Sequence[Record], fingerprints: Mapping[Place, str]) -> list[str]:
    """Picture files with the same bytes; each is learned as often as it is there."""
    same = _grouped((fingerprints.get(path) or images.fingerprint(path), path) for path in _places(records))
    groups = [paths for paths in same if len(paths) > 1]
    more = groups[FEW:]
    rest = [f"{sum(map(len, more))} more files hold pictures that are there several times"] if more else []
    return [*(f"{len(paths)} files hold the same picture: {listed(paths)}" for paths in groups[:FEW]), *rest]


def shared(records: Sequence[Record]) -> list[str]:
    """Caption files that several pictures take their caption from, as a.png and a.jpg do."""
    files = {
        record.place: record.origin
        for record in records
        if record.inner is None and record.origin.lower().endswith((".txt", ".caption"))
    }
    same = _grouped((origin, path) for path, origin in files.items())
    return [f"{len(paths)} pictures share one caption file: {listed(paths)}" for paths in same if len(paths) > 1]


def cut(records: Sequence[Record], counter: Counter | None) -> list[str]:
    """Captions with more tokens than are read, marks of beginning and end included; one sentence for many of them."""
    said = {plain(caption, record.style): record.origin for record in records for caption in record.captions}
    if counter is None or not said:
        return []
    counts, limit = counter(list(said))
    over = [(origin, count) for origin, count in zip(said.values(), counts, strict=True) if count > limit]
    if len(over) <= FEW:
        return [
            f"{origin}: the caption has {count} tokens, the text encoder takes {limit}; the end is cut off"
            for origin, count in over
        ]
    longest = ", ".join(f"{origin} ({count})" for origin, count in sorted(over, key=lambda each: -each[1])[:FEW])
    return [
        f"{len(over)} of {len(said)} captions have more tokens than the {limit} that the text encoder takes, and their "
        f"ends are cut off; the longest: {longest}. train.caption_chunks reads longer ones"
    ]


def _places(records: Sequence[Record]) -> list[Place]:
    return list(dict.fromkeys(record.place for record in records))


def _grouped(pairs: Iterable[tuple[str, Place]]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name, path in pairs:
        groups.setdefault(name, []).append(str(path))
    return list(groups.values())

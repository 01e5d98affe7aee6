"""What the data of a run was: a list of it and a SHA-256 over all of it, by which a resumption knows it again.

Of very many pictures in packed shards (gesso/data/many.py) the list names the indexes instead, with their own SHA-256,
and the SHA-256 over all is taken column by column. It covers, row by row and in order, the picture's SHA-256, width and
height, its captions and their weights, its group, weight and mask: the same whatever shards the rows lie in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Array, Int64
from gesso.data import index, many
from gesso.data.encoded import Pictures
from gesso.data.index import Index
from gesso.data.places import File
from gesso.data.readers import in_order
from gesso.data.record import Record
from gesso.data.records import AT_ONCE, Indexed, Span, spans
from gesso.errors import DataError


def lock(records: Sequence[Record], pictures: Pictures, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """What the data was: file, SHA-256, captions, group and weight of every row, and a SHA-256 over all of it.

    Files are named relative to the first of `folders` that holds them, or else to the folder that all pictures have in
    common: the record says nothing of the machine. Names are left out of the last SHA-256, since they decide nothing
    but the order, which it covers: a folder may be moved between a run and its resumption.
    """
    doubted = many.doubted(records)
    if len(doubted) < len(records):
        return _of_many(records, pictures, folders, doubted)
    roots = _roots({each.path for each in records}, folders)
    rows = [_row(record, pictures, roots) for record in records]
    return {"pictures": rows, "fingerprint": _sha256(_learned(rows))}


def _of_many(
    records: Sequence[Record], pictures: Pictures, folders: Iterable[Path], doubted: Sequence[int]
) -> dict[str, Any]:
    shards = {id(part.table): part for span in spans(records) if (part := many.vouched(span))}
    roots = _roots({part.path for part in shards.values()} | {records[row].path for row in doubted}, folders)
    rows = {row: _row(records[row], pictures, roots) for row in doubted}
    told: list[object] = []
    for own, some in groupby(spans(records), lambda span: many.vouched(span) is not None):
        if own:
            told.append(columns(some))
        else:
            told += _learned([rows[row] for span in some for row in range(span.start, span.start + len(span))])
    with closing(in_order(_of_index, [part.table for part in shards.values()], 0)) as found:
        indexes = [
            {"file": _relative(part.path, roots), "rows": len(part), "sha256": digest.result()}
            for part, (_, digest) in zip(shards.values(), found, strict=True)
        ]
    return {"pictures": list(rows.values()), "indexes": indexes, "fingerprint": _sha256(told)}


def columns(some: Iterable[Span]) -> dict[str, object]:
    """SHA-256 of each column of vouched spans, and which rows have what in common."""
    sums = {name: hashlib.sha256() for name in ("sha256", "size", "captions", "length", "text", "weighted", "weights")}
    common: list[list[object]] = []
    at = 0
    for span in some:
        part = many.vouched(span)
        assert part is not None
        same = part.alike
        alike = [same.group, same.weight, same.masks, same.outside if same.masks else 0.0]
        if common and common[-1][:-1] == alike:
            common[-1][-1] += len(span)  # type: ignore[operator]
        else:
            common.append([*alike, len(span)])
        for rows in _pieces(span):
            for name, column in _columns(part, rows, at).items():
                sums[name].update(np.ascontiguousarray(column).reshape(-1).data)
            at += rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        part.table.release()
    return {"common": common, **{name: each.hexdigest() for name, each in sums.items()}}


def _pieces(span: Span) -> Iterator[slice | Int64]:
    """The rows of a span in pieces of bounded size: a shard may be one file of millions."""
    if span.rows is not None:
        yield span.rows
        return
    for first in range(0, len(span), AT_ONCE):
        yield slice(first, min(first + AT_ONCE, len(span)))


def _columns(part: Indexed, rows: slice | Int64, at: int) -> dict[str, Array]:
    """What is learned of some rows, the first of which is row `at` of all."""
    own = part.table.columns
    counts, inner = _inner(own["captions_end"], rows, part.table)
    weighted, weights = _weighted(own.get("share"), counts, inner)
    length, letters = _inner(own["caption_end"], inner, part.table)
    text = own["captions"][letters]
    silent = np.flatnonzero(counts == 0)
    if silent.size:  # the prompt counts as the caption of what has none
        prompt = np.frombuffer(part.alike.prompt.encode(), np.uint8)
        before = np.cumsum(counts)[silent]
        ends = np.concatenate([[0], np.cumsum(length)])[before]
        text = np.insert(text, np.repeat(ends, len(prompt)), np.tile(prompt, len(silent)))
        length = np.insert(length, before, len(prompt))
        counts = np.maximum(counts, 1)
    return {
        "sha256": own["sha256"][rows],
        "size": np.stack([own["width"][rows], own["height"][rows]], axis=1),
        "captions": counts,
        "length": length,
        "text": text,
        "weighted": weighted + at,
        "weights": weights,
    }


def _inner(ends: Array, rows: slice | Int64, table: Index) -> tuple[Int64, slice | Int64]:
    """How many items each of `rows` has, int64 [N], and where they all are; `ends` is where those of each row end."""
    last = ends[rows]
    if isinstance(rows, slice):
        first = int(ends[rows.start - 1]) if rows.start else 0
        counts = np.diff(last, prepend=first)
        inner: slice | Int64 = slice(first, int(last[-1]) if len(last) else first)
    else:
        begins = np.where(rows > 0, ends[rows - 1], 0)
        counts = last - begins
        inner = np.repeat(begins - np.cumsum(counts) + counts, np.maximum(counts, 0)) + np.arange(counts.sum())
    if (counts < 0).any():
        raise DataError("the rows of the index overlap", where=table.where, todo=index.TODO)
    return counts, inner


def _weighted(shares: Array | None, counts: Int64, inner: slice | Int64) -> tuple[Int64, Array]:
    """Rows whose captions have different weights, and all weights of these."""
    if shares is None or not counts.any():
        return np.empty(0, np.int64), np.empty(0, np.float64)
    told, own = np.flatnonzero(counts), shares[inner]
    starts = (np.cumsum(counts) - counts)[told]
    differ = np.minimum.reduceat(own, starts) != np.maximum.reduceat(own, starts)
    return told[differ], own[np.repeat(differ, counts[told])]


def _of_index(table: Index) -> str:
    """SHA-256 of the file of an index."""
    digest = hashlib.sha256(b"" if table.whole is None else table.whole.data).hexdigest()
    table.release()
    return digest


def _row(record: Record, pictures: Pictures, roots: Sequence[Path]) -> dict[str, Any]:
    return {
        "file": _relative(record.path, roots) + (str(record.inner) if record.inner else ""),
        "sha256": pictures.sha256(record.place),
        "captions": list(record.captions),
        "group": record.group,
        "weight": record.weight,
        **({"shares": list(record.shares)} if record.shares else {}),
        **({"mask": pictures.sha256(record.mask), "outside": record.outside} if record.mask else {}),
    }


def _learned(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "file"} for row in rows]


def _sha256(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _roots(paths: Iterable[File], folders: Iterable[Path]) -> list[Path]:
    here = [str(path.absolute().parent) for path in paths if isinstance(path, Path)]
    common = [Path(os.path.commonpath(here))] if here else []
    return [*(folder.absolute() for folder in folders), *common]


def _relative(path: File, roots: Sequence[Path]) -> str:
    if not isinstance(path, Path):
        return str(path)  # a URL is the same on every machine
    path = path.absolute()
    # A root that is the file itself (an archive) leaves nothing of its name.
    return next(path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root) and path != root)

"""The index of a tar shard: where each picture lies, what it is, and what is said of it, as columns.

It is kept so that a start need not walk the shard again: beside the shard, as `gesso pack` writes it
(`0000.tar.index.safetensors`), or in the cache. The file is mapped into memory and read column by column, so that ten
million rows are no objects in memory. docs/data.md gives the columns for other programs.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from gesso.arrays import Array
from gesso.data.places import Member
from gesso.errors import DataError, StorageError

ENDING = ".index.safetensors"
"""What the name of an index has behind the name of its shard."""
VERSION = 1
FIXED = {"offset": "I64", "size": "I64", "name_end": "I64", "captions_end": "I64", "caption_end": "I64"}
TEXTS = {"names": "U8", "captions": "U8"}
OPTIONAL = {"share": "F64", "sha256": "U8", "width": "I32", "height": "I32"}
COLUMNS = {**FIXED, **TEXTS, **OPTIONAL}
"""The type of each column, as safetensors names it."""
TYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "F64": np.dtype("<f8"),
    "U8": np.dtype("u1"),
}
TODO = "take the file away; gesso then reads the shard itself, or `gesso pack` writes it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One picture of a shard. Captions are as they are read without any setting; `shares` are their weights, if any.

    `width` and `height` are those of the upright picture in pixels, 0 where they are not known.
    """

    member: Member
    captions: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()


class Index(Sequence[Row]):
    """The rows of a shard, made when they are asked for. `columns` may be mapped from a file: `whole` is all of it."""

    def __init__(
        self,
        columns: Mapping[str, Array],
        where: str = "",
        silent: int | None = None,
        whole: Array | None = None,
    ) -> None:
        self.columns, self.where, self.whole = columns, where, whole
        self.silent = silent_rows(columns).size if silent is None else silent
        """How many rows have no caption."""

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def __iter__(self) -> Iterator[Row]:
        return (self[row] for row in range(len(self)))  # Sequence's own would take any IndexError for the end

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        captions, shares = self.captions(row)
        return Row(member=self.member(row), captions=captions, shares=shares)

    @cached_property
    def vouches(self) -> bool:
        """Whether it holds SHA-256, width and height of every picture, as `gesso pack` writes them."""
        if self.whole is None or "sha256" not in self.columns:
            return False
        sides = [self.columns.get(name) for name in ("width", "height")]
        known = all(side is not None and bool((side > 0).all()) for side in sides)
        self.release()
        return known

    def release(self) -> None:
        """Let go of the memory of a mapped file; what is wanted again is read again."""
        mapped = None if self.whole is None else self.whole.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def captions(self, row: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The captions of a row, and their weights where they differ."""
        first, last = self._span("captions_end", row, len(self.columns["caption_end"]))
        shares = self.columns.get("share")
        texts = tuple(self._text(at) for at in range(first, last))
        return texts, () if shares is None else _shares(shares[first:last])

    def member(self, row: int) -> Member:
        """Where the picture of a row lies."""
        sha256, width, height = (self.columns.get(name) for name in ("sha256", "width", "height"))
        offset, size = int(self.columns["offset"][row]), int(self.columns["size"][row])
        if offset < 0 or size < 0:
            raise DataError(f"row {row} of the index lies before the shard", where=self.where, todo=TODO)
        return Member(
            name=self._bytes("names", "name_end", row).decode("utf-8", "surrogateescape"),
            offset=offset,
            size=size,
            sha256="" if sha256 is None else sha256[row].tobytes().hex(),
            width=0 if width is None else int(width[row]),
            height=0 if height is None else int(height[row]),
        )

    def _span(self, ends: str, at: int, limit: int) -> tuple[int, int]:
        """From where to where the items of row `at` are, of `limit` items in all."""
        column = self.columns[ends]
        first, last = (int(column[at - 1]) if at else 0), int(column[at])
        if not 0 <= first <= last <= limit:
            raise DataError(f"row {at} of the index leads out of it", where=self.where, todo=TODO)
        return first, last

    def _bytes(self, texts: str, ends: str, at: int) -> bytes:
        first, last = self._span(ends, at, len(self.columns[texts]))
        return self.columns[texts][first:last].tobytes()

    def _text(self, at: int) -> str:
        try:
            return self._bytes("captions", "caption_end", at).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"caption {at} of the index is not UTF-8", where=self.where, todo=TODO) from error


def columns(rows: Iterable[Row]) -> dict[str, Array]:
    """The columns of `rows`; SHA-256 and sizes in pixels only where all of them have one."""
    numbers = {name: array("q") for name in (*FIXED, "width", "height")}
    names, captions, sha256, shares = bytearray(), bytearray(), bytearray(), array("d")
    for row in rows:
        member = row.member
        names += member.name.encode("utf-8", "surrogateescape")  # as tarfile has what is no UTF-8
        sha256 += bytes.fromhex(member.sha256)
        for caption, share in zip(row.captions, row.shares or [1.0] * len(row.captions), strict=True):
            captions += caption.encode()
            numbers["caption_end"].append(len(captions))
            shares.append(share)
        numbers["name_end"].append(len(names))
        numbers["captions_end"].append(len(shares))
        for name in ("offset", "size", "width", "height"):
            numbers[name].append(getattr(member, name))
    made: dict[str, Array] = {name: np.array(found, TYPES[COLUMNS[name]]) for name, found in numbers.items()}
    made |= {"names": np.frombuffer(bytes(names), np.uint8), "captions": np.frombuffer(bytes(captions), np.uint8)}
    if not (made["width"] > 0).all() or not (made["height"] > 0).all():
        del made["width"], made["height"]
    if len(sha256) == 32 * len(made["offset"]):
        made["sha256"] = np.frombuffer(bytes(sha256), np.uint8).reshape(-1, 32)
    weights = np.array(shares, np.float64)
    if (weights != 1.0).any():
        made["share"] = weights
    return made


def silent_rows(columns: Mapping[str, Array]) -> Array:
    """The rows without a caption, int64."""
    return np.flatnonzero(np.diff(columns["captions_end"], prepend=0) == 0)


def beside(shard: str) -> str:
    """Where the index of a shard is looked for: the path or URL of the shard with another ending behind it."""
    return shard + ENDING


def write(path: Path, rows: Iterable[Row], shard_size: int) -> None:
    """Write the index of a shard of `shard_size` bytes by one rename. Raises StorageError."""
    save_columns(path, columns(rows), {"shard_size": shard_size})


def save_columns(path: Path, columns: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write columns with what they are about (JSON). Raises StorageError where the disk refuses."""
    about = {"version": VERSION, "rows": len(columns["offset"]), "silent": int(silent_rows(columns).size), **about}
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    data = save(
        {name: np.ascontiguousarray(column) for name, column in columns.items()},
        metadata={"gesso.index": json.dumps(about, sort_keys=True)},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"the index could not be written ({error.strerror or error})", where=str(path), todo="make room there"
        ) from error


def read(path: Path, about: Mapping[str, Any]) -> Index | None:
    """The index at `path`, mapped into memory; None where there is none, or it is about something else.

    `about` is what it must say of its shard: {"shard_size": bytes}. Raises DataError where the file is damaged.
    """
    try:
        with path.open("rb") as file:
            whole = np.memmap(file, np.uint8, "r")

            def part(first: int, last: int) -> bytes:
                # Not from the map, whose pages would then count for the process, of a thousand shards as well.
                file.seek(first)
                return file.read(last - first)

            return parsed(whole, str(path), about, part)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"the index cannot be read ({error})", where=str(path), todo=TODO) from error


def parsed(
    whole: Array, where: str, about: Mapping[str, Any], part: Callable[[int, int], bytes] | None = None
) -> Index | None:
    """The index in the bytes `whole`, uint8 [N], as `read` gives it; `part` reads some of them in another way."""
    part = part or (lambda first, last: whole[first:last].tobytes())
    try:
        start = 8 + int.from_bytes(part(0, 8), "little")
        header = json.loads(part(8, min(start, len(whole))))
        says = json.loads(header.pop("__metadata__")["gesso.index"])
        if says["version"] != VERSION or any(says.get(name) != value for name, value in about.items()):
            return None
        found = {name: _column(whole, start, name, header[name]) for name in header if name in COLUMNS}
        missing = [name for name in (*FIXED, *TEXTS) if name not in found]
        if not missing and says.get("rows", len(found["offset"])) != len(found["offset"]):
            raise ValueError("rows")
        if not missing:
            ends = {name: start + header[name]["data_offsets"][1] for name in FIXED}
            _fit(found, {name: _number(part(end - 8, end)) if len(found[name]) else 0 for name, end in ends.items()})
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError, OverflowError) as error:
        raise DataError("this is not an index of a shard, or a damaged one", where=where, todo=TODO) from error
    if missing:
        raise DataError(f'the index has no column "{missing[0]}"', where=where, todo=TODO)
    return Index(found, where, says.get("silent"), whole)


def _column(whole: Array, start: int, name: str, entry: Mapping[str, Any]) -> Array:
    """A column of a safetensors file (its header: github.com/huggingface/safetensors, "Format")."""
    first, last = entry["data_offsets"]
    if entry["dtype"] != COLUMNS[name] or not 0 <= first <= last <= len(whole) - start:
        raise ValueError(name)
    kind = TYPES[entry["dtype"]]
    return np.frombuffer(whole, kind, (last - first) // kind.itemsize, start + first).reshape(entry["shape"])


def _fit(columns: Mapping[str, Array], last: Mapping[str, int]) -> None:
    """ValueError where lengths do not fit: a damaged index must not lead out of its own columns."""
    lengths = dict.fromkeys(("size", "name_end", "captions_end", "sha256", "width", "height"), len(columns["offset"]))
    lengths |= {"caption_end": last["captions_end"], "share": last["captions_end"]}
    lengths |= {"names": last["name_end"], "captions": last["caption_end"]}
    wrong = [name for name, length in lengths.items() if name in columns and len(columns[name]) != length]
    if wrong:
        raise ValueError(wrong[0])


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _shares(shares: Array) -> tuple[float, ...]:
    """The weights of a row's captions; none where all are alike."""
    found = tuple(float(share) for share in shares)
    return found if len(set(found)) > 1 else ()

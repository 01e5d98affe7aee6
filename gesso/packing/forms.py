"""The forms that `gesso pack` writes: one file after the other, each a whole data set of its own.

Equal samples give equal bytes: nothing of the machine or the hour is in them. The layouts are those of their own
libraries: huggingface.co/docs/datasets (Image feature, save_to_disk) and github.com/webdataset/webdataset.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from gesso.data import arrow, index
from gesso.data.places import Member
from gesso.errors import RecipeError
from gesso.storage import write_bytes, write_json

ROWS, HELD = 100, 32 << 20
"""Rows and bytes of pictures from which on a group of rows is written: what a reader must take into memory for one."""
PLAIN = re.compile(r"[^A-Za-z0-9_-]+")
MASK = "masklabel.png"
"""How the mask of a sample ends in a tar file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture as it is packed. `name` is its path in the source, `ending` that of its contents (".jpg").

    `width` and `height` are those of the upright picture, in pixels.
    """

    row: int
    name: str
    ending: str
    picture: bytes
    captions: tuple[str, ...]
    shares: tuple[float, ...]
    mask: bytes | None
    width: int
    height: int

    @property
    def nbytes(self) -> int:
        """Bytes of pictures and captions."""
        return len(self.picture) + len(self.mask or b"") + sum(len(each.encode()) for each in self.captions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What there is in the data set besides pictures: several captions a picture, weights of captions, masks."""

    several: bool
    weighted: bool
    masks: bool


class Shard(ABC):
    """A file being written."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.rows = self.nbytes = 0

    def add(self, sample: Sample) -> None:
        """Put a sample behind the others."""
        self._put(sample)
        self.rows += 1
        self.nbytes += sample.nbytes

    @abstractmethod
    def _put(self, sample: Sample) -> None: ...

    @abstractmethod
    def close(self) -> list[Path]:
        """End the file; all the files that belong to it."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of the file, which nobody will read."""


class Tar(Shard):
    """A WebDataset shard, with its index beside it."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns)
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._index: list[index.Row] = []

    def _put(self, sample: Sample) -> None:
        key = f"{sample.row:08d}-{PLAIN.sub('_', Path(sample.name).stem)[:60]}"
        at = self._member(key + sample.ending, sample.picture)
        if sample.mask is not None:
            self._member(f"{key}.{MASK}", sample.mask)
        if not self.columns.several:
            self._member(f"{key}.txt", sample.captions[0].encode())
        else:
            pairs = zip(sample.captions, sample.shares, strict=False)
            told: list[Any] = list(pairs if sample.shares else sample.captions)
            self._member(f"{key}.json", json.dumps({"text": told}, ensure_ascii=False).encode())
        member = Member(
            name=key + sample.ending, offset=at, size=len(sample.picture),
            sha256=hashlib.sha256(sample.picture).hexdigest(), width=sample.width, height=sample.height,
        )  # fmt: skip
        self._index.append(index.Row(member=member, captions=sample.captions, shares=sample.shares))

    def _member(self, name: str, data: bytes) -> int:
        """Write a file and give the offset of its first byte."""
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        at = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(entry, BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has written
        return at

    def close(self) -> list[Path]:
        self._tar.close()
        self._file.close()
        beside = Path(index.beside(str(self.path)))
        index.write(beside, self._index, self.path.stat().st_size)
        return [self.path, beside]

    def abandon(self) -> None:
        self._file.close()


class Table(Shard):
    """An Arrow stream or a Parquet file with the columns image, text and, where there are masks, mask."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns)
        pa = arrow.library()
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields = [("image", picture), ("text", pa.list_(pa.string()) if columns.several else pa.string())]
        fields += [("mask", picture)] if columns.masks else []
        told = json.dumps({"info": {"features": features(columns)}})
        self._schema = pa.schema(fields, metadata={"huggingface": told})
        self._held: list[dict[str, Any]] = []
        self._bytes = 0
        self._sink, self._writer = self._opened()

    @abstractmethod
    def _opened(self) -> tuple[Any, Any]:
        """The file, and what writes tables to it."""

    def _put(self, sample: Sample) -> None:
        text = list(sample.captions) if self.columns.several else sample.captions[0]
        name = Path(sample.name).name
        name += "" if Path(name).suffix else sample.ending
        row: dict[str, Any] = {"image": {"bytes": sample.picture, "path": name}, "text": text}
        if self.columns.masks:
            row["mask"] = None if sample.mask is None else {"bytes": sample.mask, "path": f"{Path(name).stem}.png"}
        self._held.append(row)
        self._bytes += sample.nbytes
        if len(self._held) >= ROWS or self._bytes >= HELD:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(arrow.library().Table.from_pylist(self._held, schema=self._schema))
            self._held, self._bytes = [], 0

    def close(self) -> list[Path]:
        self._flush()
        self._writer.close()
        self._sink.close()
        return [self.path]

    def abandon(self) -> None:
        with suppress(OSError):
            self._writer.close()
        self._sink.close()


class Stream(Table):
    """An Arrow stream, as save_to_disk keeps it."""

    def _opened(self) -> tuple[Any, Any]:
        pa = arrow.library()
        sink = pa.OSFile(str(self.path), "wb")
        return sink, pa.ipc.new_stream(sink, self._schema)


class Parquet(Table):
    """A Parquet file as the Hub shows it."""

    def _opened(self) -> tuple[Any, Any]:
        sink = arrow.library().OSFile(str(self.path), "wb")
        return sink, arrow.library("pyarrow.parquet").ParquetWriter(sink, self._schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form: what its files are, and what they are called."""

    shard: type[Shard]
    name: str

    def file(self, number: int) -> str:
        return self.name.format(number)


FORMS: Mapping[str, Form] = {
    "save_to_disk": Form(shard=Stream, name="train/data-{:05d}.arrow"),
    "parquet": Form(shard=Parquet, name="train-{:05d}.parquet"),
    "webdataset": Form(shard=Tar, name="train-{:05d}.tar"),
}


def check(form: str, columns: Columns) -> None:
    """RecipeError for a form that cannot hold what there is."""
    if form != "webdataset":
        arrow.library()
        if columns.weighted:
            raise RecipeError(
                f"some captions have weights, for which {form} has no column", todo="--to webdataset keeps them"
            )


def features(columns: Columns) -> dict[str, Any]:
    """The columns as the library `datasets` describes them."""
    text: dict[str, Any] = {"dtype": "string", "_type": "Value"}
    found: dict[str, Any] = {"image": {"_type": "Image"}}
    found["text"] = {"feature": text, "_type": "List"} if columns.several else text
    return found | ({"mask": {"_type": "Image"}} if columns.masks else {})


def complete(folder: Path, form: str, columns: Columns, shards: Sequence[Mapping[str, Any]]) -> None:
    """Write what makes the shards in `folder` a data set: for save_to_disk its state, else a card for the Hub."""
    if form == "save_to_disk":
        print_ = hashlib.sha256("".join(each["files"][each["file"]] for each in shards).encode()).hexdigest()[:16]
        nothing = dict.fromkeys(("_format_columns", "_format_type", "_split"))
        files = [{"filename": Path(each["file"]).name} for each in shards]
        state = {"_data_files": files, "_fingerprint": print_, "_format_kwargs": {}, "_output_all_columns": False}
        write_json(folder / "train" / "state.json", {**state, **nothing})
        info = {"citation": "", "description": "", "homepage": "", "license": "", "features": features(columns)}
        write_json(folder / "train" / "dataset_info.json", info)
        write_json(folder / "dataset_dict.json", {"splits": ["train"]})
        return
    rows = sum(each["stop"] - each["start"] - len(each["skipped"]) for each in shards)
    pattern = shards[0]["file"].replace("00000", "*")
    card = f"""\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: "{pattern}"
---

{rows} pictures with captions, packed by gesso.
"""
    write_bytes(folder / "README.md", card.encode())

"""Small data sets of every form, for the tests of the readers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gesso.data import images
from gesso.data.sources import read
from gesso.schema import DataTable

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


def colour(place: Any) -> tuple[int, ...]:
    """The colour of a picture of one colour, read through its place."""
    return tuple(images.load(place)[0, 0].tolist())


def rgb(name: str) -> tuple[int, ...]:
    return Image.new("RGB", (1, 1), name).getpixel((0, 0))  # type: ignore[return-value]


def png(name: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, name).save(out, "PNG")
    return out.getvalue()


def picture(path: Path, name: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(name))
    return path


def table(path: Path, **keys: object) -> DataTable:
    return DataTable.model_validate({"path": str(path), **keys})


def captions(path: Path, **keys: object) -> list[tuple[str, ...]]:
    return [record.captions for record in read(table(path, **keys))]


def rows(count: int) -> list[dict[str, Any]]:
    """Rows as the Hub's libraries have them: a picture with its name, a caption."""
    return [{"image": {"bytes": png(COLOURS[n % 8]), "path": f"{n}.png"}, "text": f"number {n}"} for n in range(count)]


def parquet(path: Path, content: Sequence[Mapping[str, Any]], row_group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(content)), path, row_group_size=row_group)
    return path


def saved(folder: Path, *files: Sequence[Mapping[str, Any]], batch: int = 2) -> Path:
    """A folder as `datasets.save_to_disk` leaves it, several Arrow streams and state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(files):05d}.arrow" for number in range(len(files))]
    for name, content in zip(names, files, strict=True):
        whole = pa.Table.from_pylist(list(content))
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, whole.schema) as writer:
            writer.write_table(whole, max_chunksize=batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def tar(path: Path, members: Sequence[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path

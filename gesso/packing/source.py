"""What `gesso pack` is given: a recipe or any source, each picture of it once, as it will lie in the pack."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from gesso import recipe
from gesso.data import images
from gesso.data.cache import default_folder
from gesso.data.places import Inside, Member, Place
from gesso.data.record import Record
from gesso.data.records import Rows
from gesso.data.sources import folders, loose, read
from gesso.data.sources.folder import LISTS, scan
from gesso.errors import DataError, RecipeError
from gesso.packing.forms import FORMS, Columns, Sample, check
from gesso.schema import DataTable

ENDINGS = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif",
    "AVIF": ".avif",
}  # fmt: skip
QUALITY = 95
"""Of resized pictures that were JPEG or another lossy form; PNG, TIFF, BMP and GIF become PNG."""
IN_RECIPE = ("group", "background", "repeats", "weight", "trigger", "prefix", "suffix", "shuffle", "keep_tokens",
             "tag_dropout", "separator", "wildcards", "masks", "unmasked_weight")  # fmt: skip
"""Keys of [data] that stay the recipe's: a pack holds pictures and captions as they are."""
AHEAD = 2
"""Pictures read ahead, a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is packed into what. `source` is a recipe, or what data.path may be; `table` holds the flags for the latter.

    `shard_bytes` of pictures and captions, from which on a file is ended. `resize` is the shorter side, in pixels, that
    larger pictures get; 0 leaves every byte as it is. `captions` is a list of captions that does not lie in the folder.
    """

    source: str
    out: Path
    form: str
    shard_bytes: int = 500_000_000
    resize: int = 0
    captions: Path | None = None
    skip_broken: bool = False
    push: str = ""
    public: bool = False
    table: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is to be packed, and what of that a pack cannot hold."""

    records: Sequence[Record]
    columns: Columns
    roots: tuple[Path, ...]
    notes: tuple[str, ...]


def prepare(request: Request) -> Prepared:
    """All that can be found out without reading a picture, and with nothing written."""
    if request.form not in FORMS:
        raise RecipeError(f'--to is "{request.form}"', todo=f"use one of {', '.join(FORMS)}")
    if request.shard_bytes < 1:
        raise RecipeError(f"--shard-size is {request.shard_bytes} bytes, must be at least 1")
    if request.resize < 0:
        raise RecipeError(f"--resize is {request.resize}, must be at least 1 pixel")
    if request.public and not request.push:
        raise RecipeError("--public has no effect without --push", todo="name the repository with --push OWNER/NAME")
    if request.push and request.form == "save_to_disk":
        raise RecipeError("the Hub shows and serves Parquet and tar files, not save_to_disk", todo="--to parquet")
    tables, seed = _tables(request)
    out = request.out.expanduser().resolve()
    roots = tuple(Path(each).expanduser().resolve() for table in tables for each in folders(table))
    for root in roots:
        if root in (out, *out.parents):
            raise RecipeError(f"{request.out} lies in the source {root}, which gesso never writes to")
    if request.captions is not None:
        parts: list[Sequence[Record]] = [_listed(request.captions.expanduser(), tables[0])]
    else:
        parts = [read(table.model_copy(update={"repeats": 1}), seed=seed, cache=default_folder()) for table in tables]
    records = _once(parts)
    several = weighted = masks = False
    for record in records:  # once for all: there may be millions, each made when it is asked for
        several = several or len(record.captions) > 1
        weighted = weighted or bool(record.shares)
        masks = masks or own_mask(record) is not None
    columns = Columns(several=several, weighted=weighted, masks=masks)
    check(request.form, columns)
    notes = tuple(_notes(tables[0], columns, doubles=sum(map(len, parts)) - len(records)))
    return Prepared(records=records, columns=columns, roots=roots, notes=notes)


def samples(ready: Prepared, rows: range, resize: int) -> Iterator[tuple[int, Sample | DataError]]:
    """Each row's picture as it is packed, in order, or what is wrong with it; threads read a few ahead."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[tuple[int, Future[Sample | DataError]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="gesso-pack") as pool:
        try:
            for row in rows:
                waiting.append((row, pool.submit(_sample, ready, row, resize)))
                if len(waiting) > AHEAD * threads:
                    at, coming = waiting.popleft()
                    yield at, coming.result()
            while waiting:
                at, coming = waiting.popleft()
                yield at, coming.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def told(ready: Prepared, start: int, stop: int) -> str:
    """SHA-256 over what the source says of some rows: names, captions, and size and time of the files."""
    whole = hashlib.sha256()
    for record in ready.records[start:stop]:
        mask = own_mask(record)
        line = [_name(record, ready.roots), record.captions, record.shares, _stamp(record.place), mask and _stamp(mask)]
        whole.update(json.dumps(line).encode() + b"\n")
    return whole.hexdigest()


def _sample(ready: Prepared, row: int, resize: int) -> Sample | DataError:
    record = ready.records[row]
    mask = own_mask(record)
    try:
        data = images.contents(record.place)
        with images.opened(data, record.place) as image:
            kind = image.format or ""
        decoded = images.decode(data, record.place)
        width, height = decoded.width, decoded.height
        if resize and min(width, height) > resize:
            data, kind, width, height = _smaller(decoded.image, kind, resize)
        return Sample(
            row=row,
            name=_name(record, ready.roots),
            ending=ENDINGS[kind],
            picture=data,
            captions=record.captions,
            shares=record.shares,
            mask=None if mask is None else images.contents(mask),
            width=width,
            height=height,
        )
    except DataError as error:
        return error


def _smaller(image: Image.Image, kind: str, side: int) -> tuple[bytes, str, int, int]:
    """The picture with a shorter side of `side` pixels: its bytes, format, width and height."""
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    out = BytesIO()
    if kind in ("PNG", "TIFF", "BMP", "GIF"):
        small.save(out, "PNG")
        return out.getvalue(), "PNG", *size
    small.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue(), "JPEG", *size


def _tables(request: Request) -> tuple[list[DataTable], int]:
    """The [data] tables that the source means, and the seed of their lots."""
    path = Path(request.source).expanduser()
    if not (path.is_file() and path.suffix.lower() == ".toml" and _is_recipe(path)):
        try:
            return [DataTable.model_validate({"path": request.source, "masks": True, **request.table})], 0
        except ValidationError as error:
            first = error.errors()[0]
            flag = "--" + str(first["loc"][0]).replace("_", "-")
            raise RecipeError(f"{flag} is {first['input']!r}: {first['msg'].lower()}") from error
    if request.captions is not None:
        raise RecipeError("--captions is for a folder; the recipe says it itself", where=str(path))
    if request.table:
        flag = next(iter(request.table)).replace("_", "-")
        raise RecipeError(f"--{flag} is for a folder; the recipe says it itself", where=str(path))
    loaded = recipe.load(path).recipe
    tables = loaded.data
    for name in IN_RECIPE:
        if len({getattr(table, name) for table in tables}) > 1:
            raise RecipeError(
                f"the recipe's data sets differ in {name}, and a pack holds pictures and captions alone",
                where=str(path),
                todo="pack each of them by its path",
            )
    return [table.model_copy(update={"masks": True}) for table in tables], loaded.seed


def _listed(path: Path, table: DataTable) -> list[Record]:
    """The pictures of a folder with their captions from a list that lies elsewhere."""
    if path.name not in LISTS:
        raise RecipeError(
            f"{path.name} is no list of captions that gesso knows", todo=f"--captions takes {', '.join(LISTS)}"
        )
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), todo="check --captions")
    if table.max_samples:
        raise RecipeError("--captions and --max-samples do not go together", todo="leave one out")
    return loose.read(replace(scan(table.path), lists={path.name: path}), table, "instance", "data")


def _is_recipe(path: Path) -> bool:
    """Whether a TOML file is a recipe, and not the data set of another trainer."""
    try:
        return "datasets" not in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # the recipe's reader says why


def _once(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """All records, each picture once: what a kohya folder repeats is no more than once in a pack."""
    if len(parts) == 1 and isinstance(parts[0], Rows):
        return parts[0]
    found: dict[Place, Record] = {}
    for record in (record for part in parts for record in part):
        if found.setdefault(record.place, record).captions != record.captions:
            raise DataError("this picture is there twice, with different captions", where=str(record.place))
    return list(found.values())


def name_of(ready: Prepared, row: int) -> str:
    """What the picture of a row is called in its source."""
    return _name(ready.records[row], ready.roots)


def own_mask(record: Record) -> Place | None:
    """The mask of a picture where it is a file of its own."""
    return None if record.mask is None or record.mask == record.place else record.mask


def _name(record: Record, roots: Sequence[Path]) -> str:
    """What the picture is called in its source."""
    if isinstance(record.inner, Member):
        return record.inner.name
    if record.inner is not None:
        return f"{record.inner.row}"
    path = Path(str(record.path)).absolute()
    real = path.parent.resolve() / path.name
    return next((real.relative_to(root).as_posix() for root in roots if real.is_relative_to(root)), path.name)


def _stamp(place: Place) -> list[Any]:
    """What tells one version of a picture from another without reading it."""
    path = place.path if isinstance(place, Inside) else place
    at = str(place.at) if isinstance(place, Inside) else ""
    if not isinstance(path, Path):
        return [path.url, path.size, path.stamp, at]
    try:
        status = path.stat()
    except OSError:
        return [at]  # the reader says why
    return [status.st_size, status.st_mtime_ns, at]


def _notes(table: DataTable, columns: Columns, doubles: int) -> Iterator[str]:
    usual = DataTable(path=".")
    kept = [name for name in IN_RECIPE if name != "masks" and getattr(table, name) != getattr(usual, name)]
    if kept:
        yield f"not in the pack, keep in the recipe: {', '.join(f'data.{name}' for name in kept)}"
    if doubles:
        yield f"pictures that count several times, as in kohya's folders, are in the pack once ({doubles} times less)"
    if columns.masks:
        yield "masks are packed beside the pictures, for other programs; data.masks reads them from folders alone"

"""Arrow and Parquet files, row by row, through pyarrow: the one place that knows it.

A picture's column is what the Hub's libraries write: a struct {bytes, path}, or plain bytes
(huggingface.co/docs/datasets/about_dataset_features). Arrow files are mapped into memory, which costs none of it; of a
Parquet file no more than a row group is held. Rows that are asked for in order are read once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gesso.data.remote import Remote
from gesso.errors import DataError, RecipeError

HELD = {".arrow": 256, ".parquet": 4}
"""How many files stay open: mapped ones take no memory, of each Parquet file a row group may be held."""
ROWS = 8
"""How many rows of a Parquet file are decoded at once."""


def library(name: str = "pyarrow") -> Any:
    """pyarrow or a module of it. Raises RecipeError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise RecipeError(
            "reading Arrow and Parquet files needs pyarrow, which is not installed",
            todo="pip install 'gesso[data]'",
        ) from error


class Table:
    """An open Arrow or Parquet file: its columns by name with whether they hold pictures, and its number of rows."""

    def __init__(self, path: Path | Remote, file: Any, schema: Any, rows: int) -> None:
        self.path, self.file, self.rows = path, file, rows
        self.columns = {field.name: _holds_pictures(field.type) for field in schema}
        self._parquet = hasattr(file, "iter_batches")
        self._lock = threading.Lock()
        self._of, self._first = ("", -1), 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def texts(self, column: str) -> Iterator[Any]:
        """The values of a column that holds no pictures, row by row."""
        with _named(self.path):
            if self._parquet:
                for batch in self.file.iter_batches(columns=[column]):
                    yield from batch.column(0).to_pylist()
            else:
                for chunk in self.file.column(column).chunks:
                    yield from chunk.to_pylist()

    def value(self, column: str, row: int) -> Any:
        """What stands in one row."""
        with _named(self.path), self._lock:
            if not self._parquet:
                return self.file.column(column)[row].as_py()
            for group in range(self.file.num_row_groups):
                length = self.file.metadata.row_group(group).num_rows
                if row < length:
                    return self._moved(column, group, row)[row - self._first].as_py()
                row -= length
        raise DataError("the file has fewer rows than when it was first read", where=str(self.path))

    def _moved(self, column: str, group: int, row: int) -> Any:
        """The few rows of a row group among which `row` is. Later rows are cheap, earlier ones begin the group anew."""
        if self._of != (column, group) or row < self._first:
            batches = self.file.iter_batches(batch_size=ROWS, row_groups=[group], columns=[column])
            self._of, self._first, self._batch, self._batches = (column, group), 0, next(batches, ()), batches
        while row >= self._first + len(self._batch):
            self._first, self._batch = self._first + len(self._batch), next(self._batches, ())
            if not len(self._batch):
                raise _damaged(self.path, "a row group ends before its last row")
        return self._batch.column(0)


_open: dict[str, OrderedDict[tuple[object, ...], Table]] = {}
_lock = threading.Lock()


def opened(path: Path | Remote) -> Table:
    """The file at `path`, Arrow (stream or file) by its ending .arrow, otherwise Parquet. Raises DataError.

    The last few files stay open; one that has changed since is opened anew.
    """
    with _named(path), _lock:
        key = _version(path)
        ending = path.suffix.lower()
        held = _open.setdefault(ending, OrderedDict())
        if key not in held:
            held[key] = _table(path)
        held.move_to_end(key)
        while len(held) > HELD[ending]:
            held.popitem(last=False)
        return held[key]


def picture(path: Path | Remote, column: str, row: int) -> bytes:
    """The bytes of the picture in a row. Raises DataError where there are none."""
    value = opened(path).value(column, row)
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    elsewhere = value.get("path") if isinstance(value, dict) else None
    raise DataError(
        "this row has no picture in it" + (f", only the name of one: {elsewhere}" if elsewhere else ""),
        where=f"{path} row {row}",
        todo="write the data set again with its pictures embedded, or take the row out",
    )


def _version(path: Path | Remote) -> tuple[object, ...]:
    if isinstance(path, Remote):
        return path, path.size, path.stamp
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _table(path: Path | Remote) -> Table:
    pa = library()
    if isinstance(path, Path) and path.suffix.lower() == ".arrow":
        source = pa.memory_map(str(path))
        start = source.read(6)
        source.seek(0)
        whole = (pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream)(source).read_all()
        # Offsets in a damaged file may point anywhere, and pyarrow would follow them. The pictures are not read for it.
        whole.validate(full=True)
        return Table(path, whole, whole.schema, whole.num_rows)
    # Page by page; by default pyarrow reads all of a row group's column at once.
    source = path.open() if isinstance(path, Remote) else path
    file = library("pyarrow.parquet").ParquetFile(source, buffer_size=2**20, pre_buffer=False)
    return Table(path, file, file.schema_arrow, file.metadata.num_rows)


def _holds_pictures(kind: Any) -> bool:
    types = library().types
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


@contextmanager
def _named(path: Path | Remote) -> Iterator[None]:
    """What pyarrow raises for a damaged file, as a DataError that names it."""
    pa = library()
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"a text in it is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}",
            where=str(path),
            todo="write the file again with UTF-8 texts",
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error).strip()) from error


def _damaged(path: Path | Remote, reason: str) -> DataError:
    kind = "Arrow" if path.suffix.lower() == ".arrow" else "Parquet"
    return DataError(f"cannot be read as {kind}: {reason}", where=str(path), todo="copy or download the file again")

"""Where the bytes of a picture are: a file, or a place inside one (a member of a tar, a row of a table).

Nothing is unpacked: a place is read by its offset or its row when the picture is wanted, so that order and resumption
stay exact and memory does not grow with the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gesso.data import arrow
from gesso.errors import DataError


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an uncompressed tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int

    def read(self, path: Path) -> bytes:
        """The member's bytes. Raises DataError where the archive ends before them; OSError where it cannot be read."""
        with path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise DataError(
                f"the archive ends {self.size - len(data)} bytes before the end of this member",
                where=f"{path}/{self.name}",
                todo="copy or download the archive again",
            )
        return data

    def __str__(self) -> str:
        return f"/{self.name}"


@dataclass(frozen=True, slots=True)
class Cell:
    """The picture of one row, counted from 0, of an Arrow or Parquet file."""

    column: str
    row: int

    def read(self, path: Path) -> bytes:
        """The picture's bytes. Raises DataError where the row holds none, or the file is damaged."""
        return arrow.picture(path, self.column, self.row)

    def __str__(self) -> str:
        return f" row {self.row}"


@dataclass(frozen=True, slots=True)
class Inside:
    """A picture inside a file; as text, how messages name it: "shard.tar/a.jpg", "train.parquet row 7"."""

    path: Path
    at: Member | Cell

    def read(self) -> bytes:
        return self.at.read(self.path)

    def __str__(self) -> str:
        return f"{self.path}{self.at}"


Place = Path | Inside

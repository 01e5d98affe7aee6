"""Where the bytes of a picture are: a file, or a place inside one (a member of a tar, a row of a table).

Nothing is unpacked: a place is read by its offset or its row when the picture is wanted, so that order and resumption
stay exact and memory does not grow with the archive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gesso.data import arrow
from gesso.data.remote import Remote
from gesso.errors import DataError

File = Path | Remote
"""A file on this machine or behind a URL."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an uncompressed tar: `size` bytes from `offset` on.

    Where an index knows them: `sha256` of these bytes in hexadecimal, and the upright picture's `width` and `height` in
    pixels. What is read is held against the SHA-256 when it is decoded.
    """

    name: str
    offset: int
    size: int
    sha256: str = field(default="", compare=False)
    width: int = field(default=0, compare=False)
    height: int = field(default=0, compare=False)

    def read(self, path: File) -> bytes:
        """The member's bytes. Raises DataError where the archive ends before them; OSError where it cannot be read."""
        if isinstance(path, Remote):
            data = path.read(self.offset, self.size)
        else:
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

    def read(self, path: File) -> bytes:
        """The picture's bytes. Raises DataError where the row holds none, or the file is damaged."""
        return arrow.picture(path, self.column, self.row)

    def __str__(self) -> str:
        return f" row {self.row}"


@dataclass(frozen=True, slots=True)
class Inside:
    """A picture inside a file; as text, how messages name it: "shard.tar/a.jpg", "train.parquet row 7"."""

    path: File
    at: Member | Cell

    def read(self) -> bytes:
        return self.at.read(self.path)

    @property
    def sha256(self) -> str:
        """SHA-256 of the picture's bytes in hexadecimal, where an index says it; otherwise ""."""
        return self.at.sha256 if isinstance(self.at, Member) else ""

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height of the upright picture in pixels, where an index says them."""
        known = isinstance(self.at, Member) and self.at.width > 0
        return (self.at.width, self.at.height) if known and isinstance(self.at, Member) else None

    def __str__(self) -> str:
        return f"{self.path}{self.at}"


Place = Path | Inside

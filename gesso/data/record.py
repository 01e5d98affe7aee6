"""One picture to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from gesso.data.captions import Style
from gesso.data.places import Cell, File, Inside, Member, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A picture and what is known of it. Readers make these; nothing else touches the folder.

    `path` is the picture's file, or, with `inner`, the file that it lies in, which may be behind a URL.
    `captions` holds every wording given for the picture; one is drawn each time the picture is seen, in proportion to
    `shares` where there are any, and rendered in `style`.
    `group` is "instance" or "class" (prior preservation); `weight` multiplies the picture's loss.
    `mask` is a greyscale picture of the same shape, white where the loss counts; the picture itself for its own
    transparency. Where the mask is black, the loss counts `outside` times. `background` is the colour behind what is
    transparent.
    `origin` says where the caption came from, for messages ("photos/a.txt", "photos/metadata.jsonl:3"), `reader` what
    kind of place that is ("metadata.jsonl").
    """

    path: File
    captions: tuple[str, ...]
    group: str = "instance"
    weight: float = 1.0
    mask: Place | None = None
    outside: float = 0.0
    background: str = "white"
    origin: str = ""
    inner: Member | Cell | None = None
    shares: tuple[float, ...] = ()
    style: Style = field(default_factory=Style)
    reader: str = ""

    @property
    def place(self) -> Place:
        """Where the picture's bytes are."""
        return cast(Path, self.path) if self.inner is None else Inside(self.path, self.inner)

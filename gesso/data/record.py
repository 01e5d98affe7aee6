"""One picture to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A picture file and what is known of it. Readers make these; nothing else touches the folder.

    `captions` holds every wording given for the picture; one is drawn each time the picture is seen.
    `group` is "instance" or "class" (prior preservation); `weight` multiplies the picture's loss.
    `origin` says where the caption came from, for messages ("photos/a.txt", "photos/metadata.jsonl:3").
    """

    path: Path
    captions: tuple[str, ...]
    group: str = "instance"
    weight: float = 1.0
    mask: Path | None = None
    origin: str = ""

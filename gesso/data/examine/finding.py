"""What was found out about one thing in the data: what is wrong with it, where, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gesso.data.places import Place

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""An error stops the run; a warning most probably spoils the result; a note is for those who did not mean it so."""

KINDS: dict[str, str] = {
    "source": "The data set cannot be read",
    "name": "File names that other systems do not take",
    "unreadable": "Pictures that cannot be read",
    "damaged": "Pictures that are damaged",
    "mask": "Masks",
    "list": "Rows of lists that cannot be used",
    "caption": "Captions that cannot be read",
    "missing": "Pictures without a caption",
    "ending": "Pictures under another format's ending",
    "unused": "Files that are not used",
    "link": "Links that are not followed",
    "tiny": "Pictures far smaller than what is trained on",
    "small": "Pictures that are enlarged",
    "wide": "Pictures of which much is cropped away",
    "flat": "Pictures of one colour",
    "looks": "Pictures that are not taken as they are",
    "contradiction": "The same picture under different captions",
    "same": "Files that hold the same picture",
    "alike": "Pictures that show the same",
    "shared": "Pictures that share a caption file",
    "long": "Captions that are cut",
    "trigger": "Captions without the word that the others have",
    "text": "Captions that are hardly meant so",
    "doubled": "Captions in several places",
    "plan": "The run",
}
"""Every kind of finding with its heading, in the order of the report."""

_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found. `pictures` are those it is about, to be shown."""

    level: Level
    kind: str
    where: str
    what: str
    todo: str = ""
    pictures: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def __str__(self) -> str:
        return f"{shown(self.where)}: {shown(self.what)}" if self.where else shown(self.what)


def shown(text: str) -> str:
    """Any name or text as one line of UTF-8: bytes that are not text and control characters as their escapes."""
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    letter = found[0]
    if "\udc80" <= letter <= "\udcff":  # how Python shows a byte of a file name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def ordered(findings: list[Finding]) -> list[Finding]:
    """Problems first: by level, then by kind, then as they were found."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda each: (LEVELS.index(each.level), kinds.index(each.kind)))

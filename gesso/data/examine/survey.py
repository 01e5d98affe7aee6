"""What lies in a folder besides what is used: files of other kinds, and names that make trouble."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from gesso.data.examine import contents
from gesso.data.examine.finding import Finding, shown
from gesso.data.sources import listed
from gesso.data.sources.folder import CAPTIONS, LISTS, PICTURES, SHARDS, stem

SYSTEM = re.compile(r"thumbs\.db|ehthumbs.*\.db|desktop\.ini|icon\r|readme.*|licen[cs]e.*|notice.*", re.IGNORECASE)
"""What systems and hosts of data sets leave in folders; of no concern to anybody."""
OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".ico", ".jfif"}
)
ARCHIVES = ("ZIP archive", "RAR archive", "7-Zip archive", "compressed archive", "tar archive")
_LINES = re.compile(r"[\x00-\x1f\x7f]")


def survey(name: str, root: Path, used: Iterable[str] = ()) -> Iterator[Finding]:
    """Findings on the files below `root` (`name` to the user) whose contents no reader looks at, and on all names.

    `used` are other files, by relative name, that are used.
    """
    files = _files(root)
    known = {*PICTURES, *CAPTIONS, *SHARDS}
    taken = set(used)
    for file, path in files.items():
        where = f"{name}/{file}"
        if _LINES.search(file) and not (path.suffix.lower() in CAPTIONS and _of_picture(file, files)):
            yield Finding(
                level="warning",
                kind="name",
                where=where,
                what="the name holds a line break or another control character",
                todo="rename it: lists of files and other programs cannot take it",
            )
        ending, bare = path.suffix.lower(), file.rpartition("/")[2]
        if ending not in known and bare not in LISTS and file not in taken and not SYSTEM.fullmatch(bare):
            yield _other(where, path, ending)
    yield from _colliding(name, [file for file in files if Path(file).suffix.lower() in known])


def _files(root: Path) -> dict[str, Path]:
    """Files by relative POSIX name, sorted, hidden ones and linked folders left out."""
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(root):
        folders[:] = [each for each in folders if not each.startswith(".")]
        place = Path(here)
        prefix = "" if place == root else f"{place.relative_to(root).as_posix()}/"
        found.update({prefix + each: place / each for each in names if not each.startswith(".")})
    return dict(sorted(found.items()))


def _of_picture(caption: str, files: Iterable[str]) -> bool:
    """Whether the caption has the name of a picture, which then is told of for both."""
    return any(stem(file) == stem(caption) and Path(file).suffix.lower() in PICTURES for file in files)


def _other(where: str, path: Path, ending: str) -> Finding:
    """A file that is not used: serious where somebody may have meant it as a picture."""
    if path.is_symlink() and not path.exists():
        what = f"a link to {path.readlink()}, which is not there"
        return Finding(level="warning", kind="link", where=where, what=what, todo="put it there, or remove the link")
    if not path.is_file():
        what = "neither a file nor a link to one, but a pipe or a device"
        return Finding(level="warning", kind="unused", where=where, what=what, todo="remove it")
    try:
        with path.open("rb") as file:
            kind = contents.kind(file.read(contents.FIRST))
    except OSError:
        kind = ""
    if kind in contents.READ:
        under = f"the ending {ending}" if ending else "a name without ending"
        what = f"{contents.article(kind)} {kind} picture under {under}; it is not used"
        right = next(each for each, format_ in contents.ENDINGS.items() if format_ == kind)
        return Finding(level="warning", kind="unused", where=where, what=what, todo=f"rename it to {right}")
    if kind in contents.OTHERS or ending in OTHER_PICTURES:
        what = f"a picture of a kind that gesso does not read ({kind or ending[1:].upper()}); it is not used"
        return Finding(level="warning", kind="unused", where=where, what=what, todo="save it as JPEG or PNG")
    if kind in ARCHIVES:
        what = f"a {kind}; nothing in it is used"
        return Finding(level="warning", kind="unused", where=where, what=what, todo="unpack it, if it holds pictures")
    return Finding(level="note", kind="unused", where=where, what=f"{kind or 'neither picture nor caption'}; not used")


def _colliding(name: str, files: Iterable[str]) -> Iterator[Finding]:
    """Names that are one on a system which takes capitals, or the two ways to write é, for the same."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(unicodedata.normalize("NFC", file).casefold(), []).append(file)
    told: set[str] = set()
    for same in groups.values():
        if len(same) > 1 and stem(same[0]) not in told:  # the captions' names collide where the pictures' do
            told |= {stem(each) for each in same}
            yield Finding(
                level="warning",
                kind="name",
                where=f"{name}/{same[0]}",
                what=f"{listed([shown(each) for each in same])} differ only in capitals or accents",
                todo="rename them: on Windows and macOS one takes the other's place",
            )

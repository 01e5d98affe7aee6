"""The captions of a folder of picture files, with everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gesso.data.examine.finding import Finding
from gesso.data.sources import beside, kohya, listed, loose
from gesso.data.sources.folder import Folder, Found, stem
from gesso.data.sources.rows import WrongRows
from gesso.errors import DataError
from gesso.schema import DataTable

BESIDE = "a text file beside"
Said = dict[str, tuple[Found, str]]
"""By picture: what was found of it, and by which reader."""


def captions(folder: Folder, table: DataTable, key: str) -> tuple[Said, list[Finding]]:
    """What is said of the pictures that have a caption, and what is wrong with the others and with the files."""
    findings: list[Finding] = []
    told: set[str] = set()
    found = _beside(folder, table, findings, told)
    in_lists = _listed(folder, table, key, findings)
    findings += _doubled(folder, found, in_lists)
    found |= in_lists
    findings += _missing(folder, table, key, set(found) | told)
    return found, findings


def _beside(folder: Folder, table: DataTable, findings: list[Finding], told: set[str]) -> Said:
    found: Said = {}
    for name, path in folder.pictures.items():
        try:
            own = beside.read(replace(folder, pictures={name: path}), table.encoding)
        except DataError as error:
            told.add(name)
            file = beside.caption_of(folder, name)
            gone = file is not None and folder.captions[file].is_symlink() and not folder.captions[file].exists()
            findings.append(
                Finding(
                    level="error",
                    kind="caption",
                    where=error.where,
                    what="a link to a file that is not there" if gone else error.what,
                    todo="put the file there, or remove the link" if gone else error.todo,
                    pictures=(path,),
                )
            )
        else:
            found |= {name: (entry, BESIDE) for name, entry in own.items()}
    return found


def _listed(folder: Folder, table: DataTable, key: str, findings: list[Finding]) -> Said:
    """What the lists in the folder say; of two that differ the first."""
    found: Said = {}
    for name in folder.lists:
        where = f"{folder.name}/{name}"
        try:
            read = dict(loose.read_list(folder, name, table, key))
        except WrongRows as error:
            findings += [_row(where, each, error.todo) for each in error.problems]
            read = dict(error.found)
        except DataError as error:
            findings.append(Finding(level="error", kind="list", where=error.where, what=error.what, todo=error.todo))
            continue
        for picture, entry in read.items():
            if picture in found and found[picture][0][:2] != entry[:2]:
                findings.append(_differ(folder, picture, found[picture][0][2], entry[2]))
            found.setdefault(picture, (entry, name))
    return found


def _row(where: str, problem: str, todo: str) -> Finding:
    line, _, what = problem.removeprefix("line ").partition(": ")
    return Finding(level="error", kind="list", where=f"{where}:{line}", what=what, todo=todo)


def _differ(folder: Folder, picture: str, one: str, other: str) -> Finding:
    return Finding(
        level="error",
        kind="doubled",
        where=f"{folder.name}/{picture}",
        what=f"it has one caption at {one} and another at {other}",
        todo="keep one of the two lists in the folder, or make them agree",
        pictures=(folder.pictures[picture],),
    )


def _doubled(folder: Folder, found: Said, in_lists: Said) -> Iterator[Finding]:
    """Captions that lose against another one."""
    for name, ((texts, _, where), _) in found.items():
        if name in in_lists and in_lists[name][0][0] != texts:
            yield Finding(
                level="warning",
                kind="doubled",
                where=where,
                what=f"not used; the caption of {name} stands in {in_lists[name][1]} and differs",
                todo="remove the one that is wrong",
                pictures=(folder.pictures[name],),
            )
    for name in beside.seconds(folder):
        yield Finding(
            level="note", kind="doubled", where=f"{folder.name}/{name}", what="not used; another caption lies beside it"
        )


def _missing(folder: Folder, table: DataTable, key: str, known: set[str]) -> Iterator[Finding]:
    """Pictures of which nothing is said. With a prompt for all of them that stops nothing."""
    prompt = table.prompt is not None
    without = [name for name in folder.pictures if name not in known]
    if not prompt and len(without) > 1 and not known and not folder.captions and not folder.lists:
        yield Finding(
            level="error",
            kind="missing",
            where=folder.name,
            what=f"none of the {len(without)} pictures has a caption",
            todo=_odd(folder)
            or f"set {key}.prompt for all of them, write texts beside them, or have `gesso caption` write them",
            pictures=tuple(folder.pictures.values()),
        )
        return
    for name in without:
        file = beside.caption_of(folder, name)
        if file is not None and not folder.lists:
            yield Finding(
                level="warning" if prompt else "error",
                kind="missing",
                where=f"{folder.name}/{file}",
                what="the caption is empty" + (f'; "{table.prompt}" is learned instead' if prompt else ""),
                todo="write what the picture shows",
                pictures=(folder.pictures[name],),
            )
        elif not prompt:
            yield Finding(
                level="error",
                kind="missing",
                where=f"{folder.name}/{name}",
                what="it has no caption",
                todo=f"write one to {stem(name)}.txt or into {_list(folder)}, or set {key}.prompt for all of them",
                pictures=(folder.pictures[name],),
            )
    if prompt and known and (bare := [n for n in without if beside.caption_of(folder, n) is None or folder.lists]):
        yield Finding(
            level="note",
            kind="missing",
            where=folder.name,
            what=f"{len(bare)} of {len(folder.pictures)} pictures have no caption of their own; they are learned "
            f'under "{table.prompt}"',
            pictures=tuple(folder.pictures[name] for name in bare),
        )


def _odd(folder: Folder) -> str:
    """What to do where kohya's folders are not taken for such, because of one among them that is none."""
    tops = sorted({name.partition("/")[0] if "/" in name else "." for name in folder.pictures})
    odd = [top for top in tops if not kohya.NAME.fullmatch(top)]
    if len(odd) == len(tops):
        return ""
    return f'kohya folders give captions only where all are such: rename {listed(odd)} to "10_sks dog" or the like'


def _list(folder: Folder) -> str:
    return next(iter(folder.lists), "metadata.jsonl")


def unused(folder: Folder) -> Iterator[Finding]:
    """Captions and lists that belong to no picture."""
    names = {name.casefold(): name for name in folder.pictures}
    stems = {stem(name).casefold(): name for name in names.values()}
    for name in beside.orphans(folder):
        near = stems.get(stem(name).casefold()) or names.get(stem(name).casefold())
        where = f"{folder.name}/{name}"
        yield Finding(
            level="warning",
            kind="unused",
            where=where,
            what="a caption without a picture; it is not used",
            todo=f"call it {stem(near)}.txt if it is meant for {near}" if near else "add the picture, or remove it",
        )
    for name in folder.nested:
        yield Finding(
            level="warning",
            kind="unused",
            where=f"{folder.name}/{name}",
            what=f"not used: a list counts in {folder.name} itself alone",
            todo=f"give its folder a [[data]] of its own, or move it up: {Path(name).name}",
        )

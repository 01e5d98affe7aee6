"""What a source of a recipe holds, as far as it can be used, and everything that is wrong with the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gesso.data.examine import captions
from gesso.data.examine.finding import Finding
from gesso.data.examine.survey import survey
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.data.sources import embedded, kind_of, kohya, kohya_toml, listed, read, some
from gesso.data.sources.folder import CAPTIONS, LISTS, MASK, PICTURES, Folder, scan, stem
from gesso.data.sources.made import records
from gesso.errors import DataError, GessoError
from gesso.schema import DataTable

STANDS_IN = "stands in"


@dataclass(slots=True)
class Source:
    """The records of one source that can be used, and what was found. `places` are all its pictures."""

    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    places: dict[Place, None] = field(default_factory=dict)

    def add(self, other: Source, times: int = 1) -> None:
        self.records += other.records * times
        self.findings += other.findings
        self.places |= other.places


def gather(table: DataTable, *, key: str = "data", group: str = "", seed: int = 0) -> Source:
    """Everything of one [[data]] table, never raising for what lies in it."""
    path, group = Path(table.path).expanduser(), group or table.group
    try:
        if path.is_dir():
            found = _folder(table, key, group)
        elif path.is_file() and path.suffix.lower() == ".toml":
            found = Source()
            for inner in kohya_toml.tables(path, table):
                found.add(_plain(inner, key, "class" if inner.group == "class" else group), inner.repeats)
        else:
            found = _whole(table, key, group)
    except GessoError as error:
        return Source(findings=[_of_source(error)])
    if table.max_samples:
        found.records = list(some(found.records, table.max_samples, seed, f"max-samples/{key}"))
        found.places = dict.fromkeys(record.place for record in found.records)
    found.records *= table.repeats
    return found


def _of_source(error: GessoError) -> Finding:
    return Finding(level="error", kind="source", where=error.where, what=error.what, todo=error.todo)


def _folder(table: DataTable, key: str, group: str) -> Source:
    folder = scan(table.path, key, [])
    kind = kind_of(folder, table, key)
    if kind == "kohya":
        return _kohya(folder, table, key, group)
    if kind == "folder":
        return _plain(table, key, group)
    if kind == "save_to_disk":
        files = embedded.saved(folder.path, folder.name, key)
    elif kind == "parquet":
        files = embedded.shards(folder)[0]
    else:
        files = [each for each in folder.shards.values() if each.suffix.lower() == ".tar"]
    found = Source(findings=list(_surroundings(folder, files)))
    for file in files:  # one that is damaged does not hide the others
        try:
            found.add(_whole(table.model_copy(update={"path": str(file), "format": "auto"}), key, group))
        except GessoError as error:
            found.findings.append(_of_source(error))
    return found


def _surroundings(folder: Folder, files: list[Path]) -> Iterator[Finding]:
    """What lies beside the archives that are read."""
    beside = [*folder.pictures, *folder.captions, *(name for name, path in folder.shards.items() if path not in files)]
    if beside:
        yield Finding(
            level="note",
            kind="unused",
            where=folder.name,
            what=f"{len(beside)} files are not used, for the pictures are read from archives: {listed(beside)}",
            todo='set data.format = "folder" if these are meant',
        )


def _kohya(folder: Folder, table: DataTable, key: str, group: str) -> Source:
    """kohya's folders, each with the caption and the repeats of its name."""
    found = Source()
    own = kohya.NAME.fullmatch(folder.path.absolute().name)
    parts = [""] if own else sorted({name.partition("/")[0] for name in folder.pictures if "/" in name})
    for part in parts:
        match = own or kohya.NAME.fullmatch(part)
        where = f"{folder.name}/{part}" if part else folder.name
        if match is None or not int(match[1]):
            what = "no picture in it counts: its name gives 0 repeats" if match else "its name gives no repeats"
            todo = 'rename it to "10_sks dog" (repeats, then the caption), or set data.format = "folder"'
            level = "note" if match else "error"
            found.findings.append(Finding(level=level, kind="source", where=where, what=what, todo=todo))  # type: ignore[arg-type]
            continue
        prompt = match[2].strip() if table.prompt is None else table.prompt
        found.add(_plain(table.model_copy(update={"path": where, "prompt": prompt}), key, group), int(match[1]))
    return found


def _plain(table: DataTable, key: str, group: str) -> Source:
    """A folder of picture files."""
    problems: list[DataError] = []
    folder = scan(table.path, key, problems)
    found = Source()
    found.findings += [
        Finding(
            level="error",
            kind=_kind(error),
            where=error.where,
            what=error.what,
            todo=error.todo,
        )
        for error in problems
    ]
    found.findings += _links(folder)
    folder = _without_masks(folder, table, found.findings)
    said, told = captions.captions(folder, table, key)
    found.findings += [*told, *captions.unused(folder), *_shards(folder), *survey(folder.name, folder.path, LISTS)]
    if not folder.pictures:
        where, todo = folder.name, "see docs/data.md for what gesso reads"
        found.findings.append(
            Finding(level="error", kind="source", where=where, what="there is no picture in this folder", todo=todo)
        )
    found.places = dict.fromkeys(folder.pictures.values())
    kept = {name: path for name, path in folder.pictures.items() if name in said or table.prompt is not None}
    masks = {name: folder.masks[stem(name)] for name in kept if stem(name) in folder.masks}
    found.records = records(
        table,
        {name: (path, None) for name, path in kept.items()},
        said,
        name=folder.name,
        group=group,
        key=key,
        masks=masks,
    )
    return found


def _kind(error: DataError) -> str:
    """Which kind of finding an entry of a folder is that cannot be used at all."""
    if "name" in error.what:
        return "name"
    ending = Path(error.where).suffix.lower()
    return "unreadable" if ending in PICTURES else "caption" if ending in CAPTIONS else "source"


def _links(folder: Folder) -> Iterator[Finding]:
    for name in folder.links:
        yield Finding(
            level="warning",
            kind="link",
            where=f"{folder.name}/{name}",
            what="a link to a folder; it is not followed, and nothing in it is used",
            todo="give the folder that it leads to a [[data]] of its own",
        )


def _shards(folder: Folder) -> Iterator[Finding]:
    for name, path in folder.shards.items():
        kind = {".tar": "webdataset", ".parquet": "parquet"}.get(path.suffix.lower(), "save_to_disk")
        yield Finding(
            level="warning",
            kind="unused",
            where=f"{folder.name}/{name}",
            what="an archive; nothing in it is used",
            todo=f'give it a [[data]] of its own, or set data.format = "{kind}"',
        )


def _without_masks(folder: Folder, table: DataTable, findings: list[Finding]) -> Folder:
    """The folder without masks that have lost their picture: they would be learned as pictures."""
    lost = [name for name in folder.pictures if stem(name).endswith(MASK)]
    for name in lost:
        findings.append(
            Finding(
                level="warning" if table.prompt is not None else "error",
                kind="mask",
                where=f"{folder.name}/{name}",
                what="a mask without its picture; it would be learned as a picture",
                todo=f"add the picture {stem(name).removesuffix(MASK)}, or remove the mask",
                pictures=(folder.pictures[name],),
            )
        )
    if folder.masks and not table.masks:
        findings.append(
            Finding(
                level="note",
                kind="mask",
                where=folder.name,
                what=f"{len(folder.masks)} masks are not used" if len(folder.masks) > 1 else "a mask is not used",
                todo="set data.masks = true to learn only where they are white",
            )
        )
    return replace(folder, pictures={name: path for name, path in folder.pictures.items() if name not in lost})


def _whole(table: DataTable, key: str, group: str) -> Source:
    """A source that its reader reads in one piece, such as one archive."""
    found = Source()
    stand_in = table if table.prompt is not None else table.model_copy(update={"prompt": STANDS_IN})
    once = stand_in.model_copy(update={"repeats": 1, "max_samples": 0})
    whole = list(read(once, group=group, key=key))
    found.places = dict.fromkeys(record.place for record in whole)
    bare = [record for record in whole if table.prompt is None and record.origin == f"{key}.prompt"]
    for record in bare:
        found.findings.append(
            Finding(
                level="error",
                kind="missing",
                where=str(record.place),
                what="it has no caption",
                todo=f"write the archive again with one, or set {key}.prompt for all of them",
                pictures=(record.place,),
            )
        )
    missing = {record.place for record in bare}
    found.records = [record for record in whole if record.place not in missing]
    return found

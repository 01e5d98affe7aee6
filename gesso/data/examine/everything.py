"""All sources of a run in one pass: every file, every caption, every picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gesso.data import images
from gesso.data.examine import likeness, words
from gesso.data.examine.finding import Finding, ordered
from gesso.data.examine.pictures import Seen, look
from gesso.data.examine.sources import gather
from gesso.data.masks import SLACK
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.data.sources import listed
from gesso.errors import DataError
from gesso.schema import DataTable

THREADS = min(4, os.cpu_count() or 1)
KEPT = 0.4
"""A picture of which the crop keeps a smaller share than this is told of."""

Size = tuple[int, int]
Counter = Callable[[Sequence[str]], tuple[list[int], int]]
Progress = Callable[[str, int, int], None]


@dataclass(slots=True, kw_only=True)
class Examined:
    """What was found. `records` are those that can be used, by the key of their source ("data", "validate", "prior").

    `seen` are the pictures that can be read, in their order, `places` counts all.
    """

    findings: list[Finding] = field(default_factory=list)
    records: dict[str, list[Record]] = field(default_factory=dict)
    seen: dict[Place, Seen] = field(default_factory=dict)
    places: int = 0

    def level(self, level: str) -> list[Finding]:
        return [each for each in self.findings if each.level == level]


def examine(
    sources: Sequence[tuple[str, DataTable]],
    *,
    seed: int = 0,
    side: Size | None = None,
    shape: Callable[[Size], Size] | None = None,
    new_words: Sequence[str] = (),
    count: Counter | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Examined:
    """Everything that there is to say of `sources`, pairs of a recipe's key and table. Raises nothing for the data.

    `side` is what pictures are trained in, width and height in pixels; `shape` gives it for a picture of one size
    where that depends on the picture. `new_words` are words to learn, `count` counts tokens (`Engine.token_counts`).
    """
    found = Examined()
    places: dict[Place, str] = {}  # with the colour behind what is transparent
    for key, table in sources:
        gathered = gather(table, key=key, group="class" if key == "prior" else "", seed=seed)
        found.records.setdefault(key, []).extend(gathered.records)
        found.findings += gathered.findings
        places |= {place: table.background for place in gathered.places if place not in places}
    found.places = len(places)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gesso-check") as workers:
        looked = workers.map(lambda place: look(place, side, places[place]), places)
        for done, (place, (seen, findings)) in enumerate(zip(places, looked, strict=True), 1):
            found.findings += findings
            if seen is not None:
                found.seen[place] = seen
            progress("pictures", done, len(places))
    if shape or side:
        found.findings += _wide(found.seen.values(), shape or (lambda size: side or size))
    everything = [record for records in found.records.values() for record in records]
    once = list({(record.place, record.captions): record for record in everything}.values())
    found.findings += _masks(once, found.seen)
    found.findings += _shared(once)
    found.findings += words.texts(once)
    learned = [record for key in ("data",) for record in found.records.get(key, [])]
    found.findings += words.lacking(list({record.place: record for record in learned}.values()), new_words)
    if count:
        found.findings += words.long(once, count)
    said = {record.place: record.captions for record in once if not record.origin.endswith(".prompt")}
    held = frozenset(record.place for record in found.records.get("validate", []))
    found.findings += likeness.compared(list(found.seen.values()), said, held)
    found.findings = ordered(found.findings)
    return found


def _wide(seen: Iterable[Seen], shape: Callable[[Size], Size]) -> Iterator[Finding]:
    for each in seen:
        width, height = shape((each.width, each.height))
        ratio = each.width * height / (each.height * width)
        kept = min(ratio, 1 / ratio)
        if kept < KEPT:
            yield Finding(
                level="warning",
                kind="wide",
                where=str(each.place),
                what=f"{each.width} × {each.height} pixels, of which {width} × {height} keeps {kept:.0%}",
                todo="cut it to the part that matters, or into several pictures",
                pictures=(each.place,),
            )


def _masks(records: Sequence[Record], seen: Mapping[Place, Seen]) -> Iterator[Finding]:
    """Masks that cannot be read or have another shape than their picture."""
    for record in {record.mask: record for record in records if record.mask}.values():
        if record.mask is None or record.mask == record.place or record.place not in seen:
            continue
        where, picture = str(record.mask), seen[record.place]
        try:
            mask = images.load(record.mask)
        except DataError as error:
            yield Finding(level="error", kind="mask", where=where, what=error.what, todo=error.todo)
            continue
        height, width = mask.shape[:2]
        if abs(width * picture.height / (height * picture.width) - 1.0) > SLACK:
            yield Finding(
                level="error",
                kind="mask",
                where=where,
                what=f"the mask is {width} × {height} pixels, its picture {picture.width} × {picture.height}",
                todo="make the mask of the picture as it is now, in the same shape",
                pictures=(record.place, record.mask),
            )


def _shared(records: Sequence[Record]) -> Iterator[Finding]:
    """Caption files that several pictures take their caption from, as a.png and a.jpg do."""
    files: dict[str, list[Place]] = {}
    for record in records:
        if record.inner is None and record.origin.lower().endswith((".txt", ".caption")):
            files.setdefault(record.origin, []).append(record.place)
    for origin, places in files.items():
        if len(set(places)) > 1:
            yield Finding(
                level="warning",
                kind="shared",
                where=origin,
                what=f"{len(places)} pictures share this caption: {listed([str(place) for place in places])}",
                todo="rename one of the pictures and give it a caption of its own, unless both show the same",
                pictures=tuple(places),
            )

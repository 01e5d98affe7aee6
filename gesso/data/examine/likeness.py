"""Which pictures are the same, byte by byte or to the eye, upright or mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gesso.data.alike import groups
from gesso.data.examine.finding import Finding, shown
from gesso.data.examine.pictures import Seen
from gesso.data.places import Place
from gesso.data.sources import listed

Wordings = Mapping[Place, tuple[str, ...]]


def compared(seen: Sequence[Seen], captions: Wordings, held: frozenset[Place] = frozenset()) -> Iterator[Finding]:
    """Findings on pictures with the same bytes, and then on those of the rest that show the same.

    `held` are the pictures that a run measures with: those must not be learned as well.
    """
    by_bytes: dict[str, list[Seen]] = {}
    for each in seen:
        by_bytes.setdefault(each.sha256, []).append(each)
    for same in by_bytes.values():
        if len(same) > 1:
            yield from _grouped([each.place for each in same], captions, held, exact=True)
    firsts = [same[0] for same in by_bytes.values()]
    for near in _alike(firsts):
        yield from _grouped([firsts[at].place for at in near], captions, held, exact=False)


def _alike(seen: Sequence[Seen]) -> list[list[int]]:
    """The numbers of pictures that show the same, group by group; a mirrored picture shows the same."""
    count = len(seen)
    thumbnails = [each.thumbnail for each in seen]
    together: dict[int, set[int]] = {}
    for at, group in enumerate(groups([*thumbnails, *(each[:, ::-1] for each in thumbnails)])):
        together.setdefault(group, set()).add(at % count)
    of = list(range(count))  # each picture is in two sets, as it is and mirrored, which may join others

    def first(at: int) -> int:
        while of[at] != at:
            at = of[at]
        return at

    for same in together.values():
        low = min(first(at) for at in same)
        for at in same:
            of[first(at)] = low
    found: dict[int, list[int]] = {}
    for at in range(count):
        found.setdefault(first(at), []).append(at)
    return [same for same in found.values() if len(same) > 1]


def _grouped(places: list[Place], captions: Wordings, held: frozenset[Place], *, exact: bool) -> Iterator[Finding]:
    names = listed([str(place) for place in places])
    wordings = list(dict.fromkeys(captions[place] for place in places if place in captions))
    first = str(places[0])
    if exact and len(wordings) > 1:
        yield Finding(
            level="warning",
            kind="contradiction",
            where=first,
            what=f"{len(places)} files hold the same picture under {len(wordings)} different captions: {names} ("
            + listed([f'"{shown(wording[0])}"' for wording in wordings], 3)
            + ")",
            todo="keep the caption that is true; several for one picture can stand in a list (docs/data.md)",
            pictures=tuple(places),
        )
    elif held & set(places) and not held >= set(places):
        yield Finding(
            level="warning",
            kind="same" if exact else "alike",
            where=first,
            what=f"{names} show the same, and one is learned while another is held out to measure with",
            todo="take it out of one of the two, or the measurement will flatter",
            pictures=tuple(places),
        )
    else:
        hold = "hold the same picture" if exact else "show the same"
        yield Finding(
            level="warning",
            kind="same" if exact else "alike",
            where=first,
            what=f"{len(places)} files {hold}: {names}",
            todo="keep one (data.repeats makes it count more), unless it is to be learned so often",
            pictures=tuple(places),
        )

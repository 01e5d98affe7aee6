"""What a run was shown: a few of its pictures beside what it draws, and a sheet of them with their captions."""

from __future__ import annotations

from collections.abc import Sequence

from gesso.data import images
from gesso.data.record import Record
from gesso.errors import DataError
from gesso.report.cells import button, spread
from gesso.report.html import Markup, element, join
from gesso.report.reading import Run, Shown

FEW, MANY, OF_CLASS = 12, 48, 12
"""At most so many pictures beside what is drawn, on the sheet, and of the class on the sheet."""
THUMB, LARGE = 192, 320
"""Pixels of their longer sides."""


def packed(records: Sequence[Record]) -> list[Shown]:
    """Pictures that lie inside archives or behind URLs, evenly chosen, for pages: a data lock cannot lead back to them.

    None where every picture is a file of its own. One that cannot be read now is left out.
    """
    found = []
    for record in spread(records, MANY):
        if record.inner is None:
            continue
        try:
            picture = images.sketch(record.place, LARGE)
        except (DataError, OSError):
            continue  # the run has read it before; without it the page is short of a thumbnail, and of nothing else
        found.append(Shown(file=str(record.place), captions=tuple(record.captions), picture=picture))
    return found


def beside(run: Run) -> Markup | None:
    """A few of the pictures, to hold what was drawn against."""
    drawn = [
        button(source, _alt(each), THUMB) for each in spread(run.shown, FEW) if (source := each.find()) is not None
    ]
    buttons = [each for each in drawn if each is not None]
    if not buttons:
        return None
    total = _total(run)
    count = f"{len(buttons)} of {total:,} training pictures" if total > len(buttons) else f"{total} training pictures"
    count = "1 training picture" if total == 1 else count
    words = dict.fromkeys(caption for each in run.shown for caption in each.captions)
    with_words = join(", all with the words ", element("q", next(iter(words)))) if len(words) == 1 else None
    return element(
        "aside",
        element("h3", "What it was shown"),
        element("div", *buttons, class_="thumbs" if len(buttons) > 6 else "thumbs few"),
        element("p", count, with_words, class_="note"),
    )


def sheet(run: Run) -> Markup | None:
    """The contact sheet: pictures with their captions, those of the class below."""
    learned, of_class = _figures(run.shown, MANY), _figures(run.of_class, OF_CLASS)
    if not learned and not of_class:
        return None
    return element(
        "section",
        element("h2", "The pictures and their captions"),
        _grid(learned, max(_total(run), len(run.shown)), "training pictures"),
        element("h3", "Pictures of the class, which keep it as it was") if of_class else None,
        _grid(of_class, len(run.of_class), "class pictures"),
    )


def _grid(figures: Sequence[Markup], total: int, what: str) -> Markup | None:
    if not figures:
        return None
    told = f"{len(figures)} of {total:,} {what}, evenly chosen." if total > len(figures) else None
    return join(element("div", *figures, class_="sheet"), element("p", told, class_="note") if told else None)


def _figures(shown: Sequence[Shown], most: int) -> list[Markup]:
    figures = []
    for each in spread(shown, most):
        source = each.find()
        drawn = button(source, _alt(each), LARGE) if source is not None else None
        if drawn is not None:
            figures.append(element("figure", drawn, element("figcaption", *_words(each))))
    return figures


def _words(each: Shown) -> list[object]:
    """What stands below a picture: its first caption, how many more there are, and its name."""
    more = len(each.captions) - 1
    name = each.file.rpartition("/")[2]
    return [
        element("span", each.captions[0], class_="words") if each.captions else element("span", "no caption"),
        element("small", f"and {more} more caption{'s' if more > 1 else ''}") if more > 0 else None,
        element("small", name) if each.group == "instance" or not each.captions else None,  # gesso's own say nothing
    ]


def _alt(each: Shown) -> str:
    return each.captions[0] if each.captions and each.captions[0] else each.file


def _total(run: Run) -> int:
    """How many pictures were learned from; a lock of very many does not list them."""
    return int(run.latest("started").get("pictures") or 0) or len(run.shown)

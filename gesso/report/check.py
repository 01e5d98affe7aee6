"""The page of `gesso check`: problems first, then what will be trained, then the pictures themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gesso.data import images
from gesso.data.buckets import Bucket
from gesso.data.examine.finding import KINDS, LEVELS, Finding, shown
from gesso.data.places import Place
from gesso.errors import DataError
from gesso.report.cells import button
from gesso.report.document import document
from gesso.report.html import Markup, element, join, scroll

MARK = "gesso check"
"""Who made the page; `gesso check` overwrites no other."""
LARGEST = 256
"""Pixels of a thumbnail's longer side."""
THUMBS = 6
"""Pictures shown with one finding."""
SHEET, DRAWN = 120, 400
"""Pictures on the contact sheet, and on the whole page; more make one that no telephone opens."""
TOLD = 200
"""Findings of one kind; --json lists the others too."""
NAMES: Mapping[str, str] = {"error": "Stops the run", "warning": "Look at these", "note": "Good to know"}

Thumb = Callable[[Place], Markup | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One thing that was foretold: a value, and how it is known."""

    name: str
    value: str
    how: str


@dataclass(slots=True, kw_only=True)
class Content:
    """Everything on the page. `good` is whether training can begin; `sheet` are pictures with their captions."""

    name: str
    verdict: str
    good: bool
    findings: Sequence[Finding] = ()
    facts: Sequence[tuple[str, str]] = ()
    buckets: Sequence[Bucket] = ()
    forecast: Sequence[Forecast] = ()
    sheet: Sequence[tuple[Place, str]] = ()
    pictures: int = 0
    """How many there are; the page shows the first ones."""


def page(content: Content) -> str:
    """The whole document; it needs nothing else and asks no network."""
    thumbs: dict[Place, Markup | None] = {}

    def thumb(place: Place) -> Markup | None:
        if place not in thumbs and len(thumbs) < DRAWN:
            thumbs[place] = _thumb(place)
        return thumbs.get(place)

    body = join(
        element(
            "header",
            element("p", MARK, class_="eyebrow"),
            element("h1", *_path(shown(content.name))),
            element("p", content.verdict, class_="verdict good" if content.good else "verdict bad"),
            element("p", _counted(content.findings), class_="state"),
        ),
        element(
            "main",
            *_problems(content.findings, thumb),
            _plan(content),
            _forecast(content.forecast),
            _sheet(content, thumb),
        ),
        element("footer", element("p", "Written by gesso. Nothing in the data was changed, and nothing was uploaded.")),
    )
    return document(shown(content.name), body, styles=("check.css",), maker=MARK)


def _path(name: str) -> Iterator[object]:
    """A name that may be broken behind its slashes."""
    for part in name.split("/")[:-1]:
        yield f"{part}/"
        yield element("wbr")
    yield name.rpartition("/")[2]


def _counted(findings: Sequence[Finding]) -> str:
    names = {"error": "that stop the run", "warning": "to look at", "note": "good to know"}
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    return ", ".join(f"{count} {names[level]}" for level, count in counts.items() if count) or "Nothing was found."


def _problems(findings: Sequence[Finding], thumb: Thumb) -> Iterator[Markup]:
    for level in LEVELS:
        own = [each for each in findings if each.level == level]
        if not own:
            continue
        groups = [
            element(
                "details",
                element("summary", KINDS[kind], " ", element("small", str(len(some)))),
                element("ul", *(_finding(each, thumb) for each in some[:TOLD]), class_="findings"),
                element("p", f"… and {len(some) - TOLD} more", class_="note") if len(some) > TOLD else None,
                open=level != "note" or None,
            )
            for kind, some in ((kind, list(some)) for kind, some in groupby(own, key=lambda each: each.kind))
        ]
        yield element("section", element("h2", NAMES[level]), *groups, class_=f"level {level}s")


def _finding(finding: Finding, thumb: Thumb) -> Markup:
    strip = [drawn for place in finding.pictures[:THUMBS] if (drawn := thumb(place)) is not None]
    more = len(finding.pictures) - THUMBS
    return element(
        "li",
        element("div", *strip, element("small", f"+ {more}") if more > 0 else None, class_="strip") if strip else None,
        element(
            "div",
            element("code", shown(finding.where)) if finding.where else None,
            element("p", shown(finding.what)),
            element("p", finding.todo, class_="note") if finding.todo else None,
        ),
    )


def _thumb(place: Place) -> Markup | None:
    try:
        return button(images.sketch(place, LARGEST), shown(str(place)), LARGEST)
    except DataError:
        return None  # that it cannot be read is what the finding says


def _plan(content: Content) -> Markup | None:
    if not content.facts:
        return None
    listed = (element("div", element("dt", name), element("dd", value)) for name, value in content.facts)
    facts = element("dl", *listed, class_="facts")
    return element("section", element("h2", "What will be trained"), facts, _buckets(content.buckets))


def _buckets(buckets: Sequence[Bucket]) -> Markup | None:
    if not buckets:
        return None
    names = ("Trained at", "Pictures", "Rows an epoch", "Enlarged", "Cut off on average", "In mixed steps")
    most = max(bucket.rows for bucket in buckets)
    rows = (
        element(
            "tr",
            element("th", f"{bucket.size[0]} × {bucket.size[1]}", scope="row"),
            element("td", f"{bucket.pictures}"),
            element("td", f"{bucket.rows}", _bar(bucket.rows / most)),
            element("td", f"{bucket.enlarged}"),
            element("td", f"{bucket.cut:.0%}"),
            element("td", f"{bucket.mixed}"),
        )
        for bucket in buckets
    )
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    table = element("table", head, element("tbody", *rows), class_="buckets")
    return join(element("h3", "Sizes"), scroll(table, "Sizes"))


def _bar(share: float) -> Markup:
    return element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")


def _forecast(forecast: Sequence[Forecast]) -> Markup | None:
    if not forecast:
        return None
    rows = (
        element("tr", element("th", each.name, scope="row"), element("td", each.value), element("td", each.how))
        for each in forecast
    )
    table = element("table", element("tbody", *rows), class_="forecast")
    return element("section", element("h2", "What it will take"), table)


def _sheet(content: Content, thumb: Thumb) -> Markup | None:
    figures = []
    for place, caption in content.sheet[:SHEET]:
        drawn = thumb(place)
        if drawn is not None:
            name = shown(str(place)).rpartition("/")[2]
            figures.append(element("figure", drawn, element("figcaption", shown(caption), element("small", name))))
    if not figures:
        return None
    more = content.pictures - len(figures)
    first = f"The first {len(figures)} of {content.pictures} pictures."
    told = element("p", first, class_="note") if more > 0 else None
    return element("section", element("h2", "Pictures and captions"), element("div", *figures, class_="sheet"), told)

"""Pictures that a click enlarges, and how many of them fit a page that a telephone can open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from gesso.arrays import Picture
from gesso.report.html import Markup, element
from gesso.report.pictures import embed

T = TypeVar("T")
COLUMNS, CELLS = 9, 216
"""At most so many columns of a run's grid, and cells of any grid: a page of a few megabytes."""
SIZES = ((48, 512), (120, 320), (CELLS, 256))
"""How large pictures are embedded, in pixels of the longer side, where there are at most so many."""


def size(cells: int) -> int:
    """Pixels of the longer side of each picture, where there are `cells` of them."""
    return next((pixels for most, pixels in SIZES if cells <= most), SIZES[-1][1])


def rows_that_fit(rows: Sequence[tuple[str, int]], columns: int) -> list[tuple[str, int]]:
    """The prompts and seeds to show, in their order: every prompt rather than every seed of a few."""
    seeds = list(dict.fromkeys(seed for _, seed in rows))
    most = max(CELLS // max(columns, 1), 1)
    chosen = set(sorted(rows, key=lambda row: seeds.index(row[1]))[:most])
    return [row for row in rows if row in chosen]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, first and last among them."""
    if most < 1 or len(items) <= most:
        return list(items) if most > 0 else []
    if most == 1:
        return [items[0]]
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def button(source: Path | Picture, alt: str, largest: int) -> Markup | None:
    """A picture that is enlarged when it is clicked; None where there is none to be read."""
    found = embed(source, largest=largest)
    if found is None:
        return None
    kind = "small" if found.small else None
    image = element("img", src=found.uri, alt=alt, width=found.width, height=found.height, class_=kind)
    return element("button", image, class_="zoom", type="button", aria_label=f"Enlarge: {alt}")


def cell(path: Path | None, alt: str, largest: int) -> Markup:
    """The same in a place that is never empty: a word stands there where there is no picture."""
    drawn = button(path, alt, largest) if path else None
    return element("span", "missing", class_="missing") if drawn is None else drawn

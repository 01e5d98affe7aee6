"""What others may add to the page: a piece of HTML, or measurements before and after."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gesso.report.html import Markup, element, join
from gesso.storage import guard, write_json

KEPT = "verdict.json"
Value = str | float
Row = tuple[str, Value, Value, bool]
"""What was measured, before training, after training, and whether that is as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Measurements that show whether the lesson was learned, and what they come to in one sentence.

    A value in 0 … 1 or a text such as "3 of 32" or "85 %" is drawn as a bar; any other stands as it is.
    """

    rows: Sequence[Row]
    sentence: str


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the page. A `Verdict` stands right below before and after; `Markup` goes in as it is, and plain
    text is escaped."""

    title: str
    body: Verdict | Markup | str

    def html(self, *, sentence: bool = True) -> Markup:
        """The section as it stands in the page; without the verdict's sentence where the page has said it already."""
        if isinstance(self.body, Verdict):
            said = element("p", self.body.sentence) if sentence else None
            inner = join(said, _measured(self.body))
        else:
            inner = self.body if isinstance(self.body, Markup) else element("p", self.body)
        return element("section", element("h2", self.title), inner)


def kept(folder: Path, sections: Sequence[Section]) -> Sequence[Section]:
    """`sections`, their measurements now also in the folder; those kept there where there are none."""
    path = folder / KEPT
    verdicts = [section for section in sections if isinstance(section.body, Verdict)]
    if verdicts:
        with guard(folder, what="the measurements"):
            write_json(path, [asdict(section) for section in verdicts])
    if sections or not path.is_file():
        return sections
    said = json.loads(path.read_text(encoding="utf-8"))
    return [
        Section(
            each["title"], Verdict(rows=[tuple(row) for row in each["body"]["rows"]], sentence=each["body"]["sentence"])
        )
        for each in said
    ]


def _measured(verdict: Verdict) -> Markup:
    names = ("What was measured", "Before", "After", "")
    head = element("tr", *(element("th", name, scope="col") for name in names))
    rows = (
        element(
            "tr",
            element("th", what, scope="row"),
            element("td", _value(before), data_label="before"),
            element("td", _value(after, "after"), data_label="after"),
            element("td", _mark(good), class_="mark"),
        )
        for what, before, after, good in verdict.rows
    )
    return element("table", element("thead", head), element("tbody", *rows), class_="verdict")


def _value(value: Value, kind: str = "before") -> Markup:
    shown = value if isinstance(value, str) else f"{value:.3g}"
    number = element("span", shown, class_="number")
    share = _share(value)
    if share is None:
        return number
    bar = element("i", style=f"width:{100 * share:.1f}%")
    return join(number, element("span", bar, class_=f"bar {kind}", aria_hidden="true"))


def _share(value: Value) -> float | None:
    if not isinstance(value, str):
        return float(value) if 0 <= value <= 1 else None
    if found := re.fullmatch(r"\s*(\d+)\s*(?:of|/)\s*(\d+)\s*", value):
        return min(int(found[1]) / int(found[2]), 1.0) if int(found[2]) else None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
    return min(float(found[1]) / 100, 1.0) if found else None


def _mark(good: bool) -> Markup:
    path = "M3 9l4 4 8-9" if good else "M4 4l10 10M14 4L4 14"
    drawn = element("svg", element("path", d=path), viewBox="0 0 18 18", class_="tick", aria_hidden="true")
    return element("span", drawn, "as hoped" if good else "not as hoped", class_="good" if good else "bad")

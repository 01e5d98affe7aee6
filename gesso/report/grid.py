"""The pictures of a run: before and after, what it was shown, and every prompt at every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from gesso.arrays import Picture
from gesso.report.html import Markup, element, join
from gesso.report.pictures import LARGEST, embed
from gesso.report.reading import Drawn, Run

T = TypeVar("T")
PAIRS, THUMBS, COLUMNS = 4, 12, 9
"""At most so many pairs, training pictures and columns of the grid."""
CELL = 320
THUMB = 192


def before_after(run: Run, thumbs: Sequence[Path | Picture] = ()) -> Markup | None:
    """The same prompts and seeds before and after, with what the run was shown beside them."""
    taught = _taught(run, thumbs)
    steps = sorted({drawn.step for drawn in run.drawn})
    seeds = list(dict.fromkeys(drawn.seed for drawn in run.drawn))
    rows = sorted(_rows(run), key=lambda row: seeds.index(row[1]))[:PAIRS]  # many prompts rather than many seeds
    if not rows and taught is None:
        return None
    first, last = (steps[0], steps[-1]) if steps else (0, 0)
    at = {(drawn.step, drawn.prompt, drawn.seed): drawn for drawn in run.drawn}
    ends = [(first, "Before")] if first == last else [(first, "Before"), (last, "After")]
    pairs = [
        element(
            "figure",
            element("div", *(_end(at.get((step, *row)), row, word, step) for step, word in ends), class_="ends"),
            element("figcaption", element("q", row[0]), " ", element("small", f"seed {row[1]}")),
            class_="pair",
        )
        for row in rows
    ]
    if not pairs:
        pairs = [element("p", "No samples have been drawn yet.", class_="none")]
    body = element(
        "div", taught, element("div", *pairs, class_="pairs"), class_="learned" if taught else "learned alone"
    )
    title = "Before and after" if first != last else "Samples"
    return element("section", element("h2", title), body, class_="hero")


def prompts_by_step(run: Run) -> Markup | None:
    """A table with a row for each prompt and seed and a column for each step at which samples were drawn."""
    steps = sorted({drawn.step for drawn in run.drawn})
    if len(steps) < 2:
        return None
    columns = spread(steps, COLUMNS)
    at = {(drawn.step, drawn.prompt, drawn.seed): drawn for drawn in run.drawn}
    rows = _rows(run)
    several = len({seed for _, seed in rows}) > 1
    head = element("tr", element("th", "Prompt", scope="col"), *(element("th", _step(s), scope="col") for s in columns))
    body = []
    for prompt, seed in rows:
        note = element("small", f"seed {seed}") if several else None
        cells = (
            element("td", _picture(at.get((step, prompt, seed)), prompt, step, CELL), data_step=_step(step))
            for step in columns
        )
        body.append(element("tr", element("th", element("q", prompt), note, scope="row"), *cells))
    left_out = len(steps) - len(columns)
    said = "Each row is one prompt with one seed: only the training differs from left to right."
    said += f" {left_out} steps in between are left out here; their pictures are in samples/." if left_out else ""
    table = element("table", element("thead", head), element("tbody", *body), class_="grid")
    return element(
        "section",
        element("h2", "Every prompt, step by step"),
        element("p", said, class_="lead"),
        element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Pictures by prompt and step"),
    )


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _rows(run: Run) -> list[tuple[str, int]]:
    return list(dict.fromkeys((drawn.prompt, drawn.seed) for drawn in run.drawn))


def _step(step: int) -> str:
    return f"step {step:,}"


def _end(drawn: Drawn | None, row: tuple[str, int], word: str, step: int) -> Markup:
    label = element("span", element("b", word), f" {_step(step)}", class_="when")
    return element("div", _picture(drawn, row[0], step, LARGEST), label, class_=f"end {word.lower()}")


def _picture(drawn: Drawn | None, prompt: str, step: int, largest: int) -> Markup:
    return picture(drawn.path if drawn else None, f"{prompt}, {_step(step)}", largest)


def picture(path: Path | None, alt: str, largest: int = CELL) -> Markup:
    """A picture that is enlarged when it is clicked; a word in its place where there is none."""
    source = embed(path, largest=largest) if path else None
    if source is None:
        return element("span", "missing", class_="missing")
    image = element(
        "img", src=source.uri, alt=alt, width=source.width, height=source.height, class_=_kind(source.small)
    )
    return element("button", image, class_="zoom", type="button", aria_label=f"Enlarge: {alt}")


def _taught(run: Run, thumbs: Sequence[Path | Picture]) -> Markup | None:
    """The contact sheet: the run's training pictures, where they are still to be found, or those handed in."""
    sources: list[tuple[Path | Picture | None, str]] = [(thumb, "training picture") for thumb in spread(thumbs, THUMBS)]
    if not sources:
        chosen = spread(run.shown, THUMBS)
        sources = [(shown.find(), shown.captions[0] if shown.captions else shown.file) for shown in chosen]
    images = []
    for source, alt in sources:
        found = embed(source, largest=THUMB) if source is not None else None
        if found is not None:
            image = element("img", src=found.uri, alt=alt, title=alt, class_=_kind(found.small))
            images.append(element("button", image, class_="zoom", type="button", aria_label=f"Enlarge: {alt}"))
    if not images:
        return None
    total = max(len(thumbs), len(run.shown))
    count = f"{len(images)} of {total:,} training pictures" if total > len(images) else f"{total} training pictures"
    count = "1 training picture" if total == 1 else count
    words = dict.fromkeys(caption for shown in run.shown for caption in shown.captions)
    with_words = join(", all with the words ", element("q", next(iter(words)))) if len(words) == 1 else None
    return element(
        "aside",
        element("h3", "What it was shown"),
        element("div", *images, class_="thumbs" if len(images) > 6 else "thumbs few"),
        element("p", count, with_words, class_="note"),
    )


def _kind(small: bool) -> str | None:
    return "small" if small else None

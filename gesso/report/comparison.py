"""The page of `gesso compare`: a row for each prompt and seed, a column for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gesso.errors import DataError
from gesso.formats import png
from gesso.report.document import document
from gesso.report.grid import picture
from gesso.report.html import element, join

Cells = Mapping[tuple[str, int], Path]
"""The pictures of one column, by prompt and seed."""


def page(name: str, how: str, rows: Sequence[tuple[str, int]], names: Sequence[str], cells: Sequence[Cells]) -> str:
    """The whole document: `cells` has the pictures of each of the columns `names`, and `rows` are prompts and seeds.

    how: in words, what all pictures have in common.
    """
    head = element("tr", element("th", "Prompt", scope="col"), *(element("th", name, scope="col") for name in names))
    several = len({seed for _, seed in rows}) > 1
    lines = []
    for prompt, seed in rows:
        note = element("small", f"seed {seed}") if several else None
        drawn = (
            element("td", picture(column.get((prompt, seed)), f"{prompt}, {label}"), data_step=label)
            for label, column in zip(names, cells, strict=True)
        )
        lines.append(element("tr", element("th", element("q", prompt), note, scope="row"), *drawn))
    table = element("table", element("thead", head), element("tbody", *lines), class_="grid")
    body = join(
        element(
            "header",
            element("p", "gesso compare", class_="eyebrow"),
            element("h1", " · ".join(names) if len(names) <= 3 else f"{len(names)} models"),
            element(
                "p", "Each row is one prompt with one seed: only the model differs from left to right.", class_="lead"
            ),
            element("p", how, class_="state"),
        ),
        element(
            "main",
            element(
                "div", table, class_="scroll", tabindex="0", role="region", aria_label="Pictures by prompt and model"
            ),
        ),
        element(
            "footer", element("p", "Written by gesso. Each picture file says how it was made. Nothing was uploaded.")
        ),
    )
    return document(name, body)


def by_prompt_and_seed(folder: Path) -> dict[tuple[str, int], Path]:
    """The pictures in a folder by what they say of themselves, the last one of a prompt and a seed."""
    found = {}
    for file in sorted(folder.glob("*.png")):
        try:
            data = png.read(file)
        except DataError:
            continue
        if "prompt" in data and "seed" in data:
            found[str(data["prompt"]), int(data["seed"])] = file
    return found

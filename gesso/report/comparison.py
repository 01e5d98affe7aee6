"""The page of `gesso compare`: a row for each prompt and seed, a column for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gesso.report.cells import cell, rows_that_fit, size
from gesso.report.document import document
from gesso.report.html import element, join, scroll

Cells = Mapping[tuple[str, int], Path]
"""The pictures of one column, by prompt and seed."""


def page(name: str, how: str, rows: Sequence[tuple[str, int]], names: Sequence[str], cells: Sequence[Cells]) -> str:
    """The whole document: `cells` has the pictures of each of the columns `names`, and `rows` are prompts and seeds.

    how: in words, what all pictures have in common.
    """
    head = element("tr", element("th", "Prompt", scope="col"), *(element("th", name, scope="col") for name in names))
    kept = rows_that_fit(rows, len(names))
    largest = size(len(kept) * len(names))
    lines = []
    for prompt, seed in kept:
        drawn = (
            element("td", cell(column.get((prompt, seed)), f"{prompt}, seed {seed}, {label}", largest), data_step=label)
            for label, column in zip(names, cells, strict=True)
        )
        words = element("q", prompt, class_="words")
        lines.append(element("tr", element("th", words, element("small", f"seed {seed}"), scope="row"), *drawn))
    less = f" {len(rows) - len(kept)} of {len(rows)} rows are left out for the page's size; the folders have them."
    table = element("table", element("thead", head), element("tbody", *lines), class_="grid")
    body = join(
        element(
            "header",
            element("p", "gesso compare", class_="eyebrow"),
            element("h1", " · ".join(names) if len(names) <= 3 else f"{len(names)} models"),
            element(
                "p",
                "Each row is one prompt with one seed: only the model differs from one picture to the next.",
                less if len(kept) < len(rows) else None,
                class_="lead",
            ),
            element("p", how, class_="state"),
        ),
        element(
            "main",
            scroll(table, "Pictures by prompt and model"),
        ),
        element(
            "footer", element("p", "Written by gesso. Each picture file says how it was made. Nothing was uploaded.")
        ),
    )
    return document(name, body, maker="gesso compare")

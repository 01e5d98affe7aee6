"""The pictures that a run drew: before and after, and every prompt at every step."""

from __future__ import annotations

from collections.abc import Sequence

from gesso.report import shown
from gesso.report.cells import COLUMNS, cell, rows_that_fit, size, spread
from gesso.report.html import Markup, element, scroll
from gesso.report.pictures import LARGEST
from gesso.report.reading import Drawn, Run

PAIRS = 4
"""At most so many pairs of before and after."""


def before_after(run: Run) -> Markup | None:
    """The same prompts and seeds before and after, with what the run was shown beside them."""
    taught = shown.beside(run)
    steps = sorted({drawn.step for drawn in run.drawn})
    seeds = list(dict.fromkeys(drawn.seed for drawn in run.drawn))
    rows = sorted(_rows(run), key=lambda row: seeds.index(row[1]))[:PAIRS]  # many prompts rather than many seeds
    if not rows and taught is None:
        return None
    first, last = (steps[0], steps[-1]) if steps else (0, 0)
    at = _by_place(run)
    ends = [(first, "Before")] if first == last else [(first, "Before"), (last, "After")]
    pairs = [
        element(
            "figure",
            element("div", *(_end(at.get((step, *row)), row, word, step) for step, word in ends), class_="ends"),
            element("figcaption", element("q", row[0], class_="words"), " ", element("small", f"seed {row[1]}")),
            class_="pair",
        )
        for row in rows
    ]
    if not pairs:
        pairs = [element("p", _none(run), class_="none")]
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
    kept = {step for step in steps if (run.folder / f"checkpoint-{step}").is_dir()}
    columns, every = chosen_steps(steps, kept), _rows(run)
    rows = rows_that_fit(every, len(columns))
    at, largest = _by_place(run), size(len(rows) * len(columns))
    head = element("tr", element("th", "Prompt", scope="col"), *(_head(step, step in kept) for step in columns))
    body = []
    for prompt, seed in rows:
        words = element("th", element("q", prompt, class_="words"), element("small", f"seed {seed}"), scope="row")
        cells = (
            element("td", _picture(at.get((step, prompt, seed)), (prompt, seed), step, largest), data_step=_step(step))
            for step in columns
        )
        body.append(element("tr", words, *cells))
    table = element("table", element("thead", head), element("tbody", *body), class_="grid")
    return element(
        "section",
        element("h2", "Every prompt, step by step"),
        element("p", _told(len(steps) - len(columns), len(every) - len(rows)), class_="lead"),
        scroll(table, "Pictures by prompt and step"),
    )


def chosen_steps(steps: Sequence[int], kept: set[int]) -> list[int]:
    """The columns: all steps where they fit; else the first, the last and those with a checkpoint, and some between."""
    must = sorted({steps[0], steps[-1]} | kept)
    if len(steps) <= COLUMNS or len(must) >= COLUMNS:
        return spread(steps if len(steps) <= COLUMNS else must, COLUMNS)
    others = [step for step in steps if step not in must]
    return sorted([*must, *spread(others, COLUMNS - len(must))])


def _told(steps: int, rows: int) -> str:
    said = "Each row is one prompt with one seed: only the training differs from one picture to the next."
    left_out = [
        f"{count} {what}{'s' if count > 1 else ''}" for count, what in ((steps, "step"), (rows, "row")) if count
    ]
    if left_out:
        said += f" For the page's size {' and '.join(left_out)} are left out here; their pictures are in samples/."
    return said


def _none(run: Run) -> str:
    """Why there are no pictures, and what would change it."""
    if run.values and not run.values.get("sample.prompts") and not run.values.get("sample.prompts_file"):
        return "No samples were asked for. With sample.prompts a run draws the same prompts and seeds as it learns."
    return "No samples have been drawn yet."


def _by_place(run: Run) -> dict[tuple[int, str, int], Drawn]:
    return {(drawn.step, drawn.prompt, drawn.seed): drawn for drawn in run.drawn}


def _rows(run: Run) -> list[tuple[str, int]]:
    return list(dict.fromkeys((drawn.prompt, drawn.seed) for drawn in run.drawn))


def _step(step: int) -> str:
    return f"step {step:,}"


def _head(step: int, kept: bool) -> Markup:
    return element("th", _step(step), element("small", "checkpoint") if kept else None, scope="col")


def _end(drawn: Drawn | None, row: tuple[str, int], word: str, step: int) -> Markup:
    label = element("span", element("b", word), f" {_step(step)}", class_="when")
    return element("div", _picture(drawn, row, step, LARGEST), label, class_=f"end {word.lower()}")


def _picture(drawn: Drawn | None, row: tuple[str, int], step: int, largest: int) -> Markup:
    return cell(drawn.path if drawn else None, f"{row[0]}, seed {row[1]}, {_step(step)}", largest)

"""Which checkpoint to keep, and why: as `gesso pick` found it, or as far as the run's own held-out losses tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gesso.pick import file
from gesso.pick.choice import Measured, choose, finite
from gesso.pick.reasons import Reasons, Row, reasons
from gesso.report.cells import cell
from gesso.report.html import Markup, element, join, scroll
from gesso.report.reading import Run

SHOWN, CELL = 6, 256
"""Pictures drawn with the base, with the checkpoint to keep, with the next best and with the last one."""


def section(run: Run) -> Markup | None:
    """The section; None for a run without a checkpoint."""
    steps, picked = _checkpoints(run), file.read(run.folder)
    if not (steps or picked):
        return None
    found = picked or _from_events(run, steps)
    if found is None:
        return element("section", element("h2", "Which checkpoint"), _unknown(run, len(steps)))
    return element(
        "section",
        element("h2", "Which checkpoint"),
        element("p", element("b", found.sentence), " ", " ".join(found.why), class_="lead"),
        element("ul", *(element("li", each) for each in found.doubts), class_="doubts") if found.doubts else None,
        _table(found),
        _pictures(run, found) if picked else None,
        _next(run, found, picked=picked is not None),
    )


def _checkpoints(run: Run) -> list[int]:
    """The steps of the checkpoints that are there."""
    return [int(event["step"]) for event in run.of("saved") if (run.folder / str(event["folder"])).is_dir()]


def _from_events(run: Run, steps: list[int]) -> Reasons | None:
    """What the held-out losses of the run itself tell; None where they were not measured at a checkpoint's step."""
    losses: Mapping[int, tuple[float, ...]] = {
        int(event["step"]): tuple(float("nan") if loss is None else float(loss) for loss in event["by_picture"])
        for event in run.of("validated")
        if event.get("by_picture")
    }
    measured = [Measured(step=step, held_out=losses[step]) for step in steps if step in losses]
    base = Measured(step=0, held_out=losses.get(0, ()))
    alike = all(len(each.held_out) == len(base.held_out) for each in measured)
    if not (measured and base.held_out and finite(base) and alike):
        return None
    others = len(steps) - len(measured)
    notes = [f"{others} of {len(steps)} checkpoints are of steps at which nothing was measured"] if others else []
    return reasons(choose(base, measured), None, notes)


def _unknown(run: Run, checkpoints: int) -> Markup:
    kept = "one checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"
    if any(event.get("by_picture") for event in run.of("validated")):
        told = f"This run has {kept}, and has measured held-out losses at other steps; let validate.every and "
        return element("p", told, "save.every agree. ", *_pick(run), " measures them now.", class_="lead")
    told = f"This run has {kept} and no held-out losses to choose by: hold pictures out with validate.holdout or "
    return element("p", told, "validate.path. ", *_pick(run), " compares what they draw.", class_="lead")


def _pick(run: Run) -> tuple[object, ...]:
    return (element("code", f"gesso pick {run.place}"),)


def _next(run: Run, found: Reasons, *, picked: bool) -> Markup:
    """What to do with the choice."""
    said: list[object] = []
    if found.step is not None:
        folder = f"{run.place}/checkpoint-{found.step}"
        said += ["It is in ", element("code", folder), ": name that folder wherever a model or LoRA is asked for. "]
    if not picked:
        said += ["This is what held-out losses tell. ", *_pick(run), " also draws with each checkpoint, and looks at "]
        said += ["copies, likeness and drift."]
    return element("p", *said, class_="note")


def _table(found: Reasons) -> Markup:
    drawn = any(row.drawn for row in found.rows)
    names = ["Checkpoint", "Held-out loss", *(["Likeness", "Copies", "Drift"] if drawn else []), ""]
    head = element("tr", *(element("th", name, scope="col") for name in names))
    rows = (
        element(
            "tr",
            element("th", f"step {row.step:,}" if row.step else "base", scope="row"),
            element("td", _loss(row), data_label="held-out loss"),
            *((element("td", each, data_label=name.lower()) for name, each in _looks(row)) if drawn else ()),
            element("td", element("b", "keep") if row.step and row.step == found.step else row.against),
            class_="kept" if row.step and row.step == found.step else None,
        )
        for row in found.rows
    )
    table = element("table", element("thead", head), element("tbody", *rows), class_="levels choice")
    return join(
        scroll(table, "Checkpoints"),
        element("p", _explained(drawn), class_="note"),
    )


def _explained(drawn: bool) -> str:
    said = "Mean squared error ± standard error over held-out pictures, each with the same noise at every checkpoint."
    if drawn:
        said += (
            " Likeness: 0 % is what the base draws, 100 % are real pictures of the same. Drift: how far the answers "
        )
        said += "on unrelated prompts have moved from the base's, as a mean squared difference."
    return said


def _loss(row: Row) -> Markup:
    if row.held_out is None:
        return element("small", "–")
    error = element("small", f" ± {row.held_out_error:.2g}") if row.held_out_error is not None else None
    return join(element("span", f"{row.held_out:.4g}", class_="number"), error)


def _looks(row: Row) -> tuple[tuple[str, str], ...]:
    """What the pictures came to, each with the name of its column."""
    likeness = "–" if row.likeness is None else f"{100 * row.likeness:.0f} %".replace("-", "−")
    copies = "–" if row.copies is None else f"{row.copies} of {row.drawn}"
    drift = f"{row.drift:.3g}" if row.step and row.drift is not None else "–"
    return ("Likeness", likeness), ("Copies", copies), ("Drift", drift)


def _pictures(run: Run, found: Reasons) -> Markup | None:
    """The same prompts and seeds drawn with the base, the checkpoint to keep, the next best and the last one."""
    last = max(row.step for row in found.rows)
    best = [row.step for row in found.rows[:2]] if found.step is not None else []
    steps = dict.fromkeys([0, *best, last])
    folders = {step: run.folder / "pick" / f"step-{step}" for step in steps}
    files = [f"{at:05d}.png" for at in range(min(SHOWN, max(row.drawn for row in found.rows)))]
    if not files:
        return None
    rows = []
    for step, folder in folders.items():
        name = _named(step, best, last)
        cells = (element("td", cell(folder / file, f"{name}, picture {at}", CELL)) for at, file in enumerate(files, 1))
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    return scroll(element("table", element("tbody", *rows), class_="grid"), "Pictures by checkpoint")


def _named(step: int, best: Sequence[int], last: int) -> str:
    if step == 0:
        return "base"
    what = ", kept" if step in best[:1] else ", the next best" if step in best else ", the last" if step == last else ""
    return f"step {step:,}{what}"

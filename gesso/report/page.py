"""The report of a run: one HTML file that needs nothing else, made from the run folder alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gesso.report import choice, facts, grid, loss, shown
from gesso.report.curve import Losses
from gesso.report.document import document
from gesso.report.html import Markup, element, join
from gesso.report.outcome import losses, outcome, state
from gesso.report.reading import Run, Shown, read
from gesso.report.section import Section, Verdict, kept
from gesso.storage import guard, write_bytes

__all__ = ["Section", "Verdict", "page", "write"]

FILE = "report.html"


def write(run_folder: Path, *, extra: Sequence[Section] = (), pictures: Sequence[Shown] = ()) -> Path:
    """Make `report.html` in the run folder and give its path. A run that is still going, or paused, gets one as well.

    `extra` adds sections: measurements (`Verdict`) stand right below before and after, the others after the loss curve.
    Measurements are kept in the folder, and are on the page again when it is written without any.
    `pictures` are training pictures to show, where the data lock does not lead to them.
    """
    path = run_folder / FILE
    extra = kept(run_folder, extra)
    whole = page(read(run_folder), extra=extra, pictures=pictures)
    with guard(run_folder, what="the report", needed=len(whole.encode())):
        write_bytes(path, whole.encode())
    return path


def page(run: Run, *, extra: Sequence[Section] = (), pictures: Sequence[Shown] = ()) -> str:
    """The whole document."""
    run = dataclasses.replace(run, shown=pictures) if pictures else run
    found = losses(run)
    measured = [section for section in extra if isinstance(section.body, Verdict)]
    body = join(
        _header(run, found, extra),
        element(
            "main",
            grid.before_after(run),
            *(section.html(sentence=number > 0) for number, section in enumerate(measured)),
            grid.prompts_by_step(run),
            loss.section(run, found),
            choice.section(run),
            *(section.html() for section in extra if not isinstance(section.body, Verdict)),
            facts.taught(run),
            shown.sheet(run),
            facts.use(run),
            facts.warnings(run),
            facts.recipe(run),
        ),
        element("footer", element("p", "Written by gesso from the files of this run folder. Nothing was uploaded.")),
    )
    return document(run.name, body)


def _header(run: Run, found: Losses, extra: Sequence[Section]) -> Markup:
    """The title and the verdict: measurements speak first where there are some, for they judge the pictures."""
    told = outcome(found)
    verdicts = [section.body for section in extra if isinstance(section.body, Verdict)]
    marks = {good for verdict in verdicts for *_, good in verdict.rows}
    good = (marks.pop() if len(marks) == 1 else None) if verdicts else told.good
    sentence = verdicts[0].sentence if verdicts else told.sentence
    rest = join(told.sentence if verdicts else None, " " if verdicts else None, state(run))
    what = str(run.latest("started").get("what", ""))
    return element(
        "header",
        element("p", "gesso run", class_="eyebrow"),
        element("h1", run.name),
        element("p", sentence, class_={True: "verdict good", False: "verdict bad", None: "verdict"}[good]),
        element("p", rest, class_="state"),
        element("p", what, class_="what") if what else None,
    )

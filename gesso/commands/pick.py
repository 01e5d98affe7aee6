"""`gesso pick RUN`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gesso.cli import Parser
from gesso.errors import RecipeError

if TYPE_CHECKING:
    from gesso.pick.reasons import Reasons, Row

EXAMPLES = """\
Measures every checkpoint of a run on the same pictures with the same noise, draws the same prompts with the same seeds,
and names the one to keep: by held-out loss with its error, copies of training pictures, likeness to them, and drift on
unrelated prompts. It says when the numbers cannot tell. The run's report shows the choice. What it means: docs/pick.md.

examples:
  gesso pick runs/dog
  gesso pick runs/dog --count 32 --json
"""


def arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    group = parser.add_argument_group("how")
    group.add_argument("--count", type=int, default=16, help="pictures drawn with each checkpoint (default 16)")
    group.add_argument("--device", default="", help="cpu, cuda, cuda:1, mps, npu (default: the run's)")
    group.add_argument("--json", action="store_true", help="answer with one JSON object on standard output")


def main(options: argparse.Namespace) -> int:
    from gesso.pick.run import pick
    from gesso.stop import Stop
    from gesso.trackers.console import Console

    if options.count < 2:
        raise RecipeError(f"--count is {options.count}, must be at least 2")
    console = Console("auto", stream=sys.stderr)

    def progress(what: str, done: int, total: int) -> None:
        console.progress(what, done, total)
        stop.check()

    # Standard output is for the answer alone.
    with contextlib.redirect_stdout(sys.stderr), contextlib.closing(console), Stop() as stop:
        found = pick(options.run, drawn=options.count, progress=progress, device=options.device)
    if options.json:
        print(json.dumps(asdict(found), allow_nan=False))
    else:
        print(table(found), found.sentence, *found.why, sep="\n")
        print(*(f"But: {each}" for each in found.doubts), f"page: {options.run / 'report.html'}", sep="\n")
    return 0


def table(found: Reasons) -> str:
    """The checkpoints, best first, and the base below."""
    head = ("checkpoint", "held-out loss", "likeness", "copies", "drift", "")
    rows = [head, *(_cells(row, found.step) for row in found.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(row: Row, kept: int | None) -> tuple[str, ...]:
    loss = "" if row.held_out is None else f"{row.held_out:.4g}"
    loss += "" if row.held_out_error is None else f" ± {row.held_out_error:.2g}"
    return (
        f"step {row.step}" if row.step else "base",
        loss or "–",
        "–" if row.likeness is None else f"{100 * row.likeness:.0f} %",
        "–" if row.copies is None else f"{row.copies} of {row.drawn}",
        f"{row.drift:.3g}" if row.step and row.drift is not None else "–",
        "← keep" if row.step == kept and row.step else row.against,
    )

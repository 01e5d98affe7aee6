"""One picture of a demo for the README: what was shown, and the same prompts before and after.

`python -m gesso.demo.poster runs/demo docs/images/demo.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gesso.arrays import Picture
from gesso.demo.run import assets
from gesso.report.contact import sheet
from gesso.trackers.jsonl import current, read

SIDE = 192
"""Width and height of each picture, in pixels."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gesso.demo.poster", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished `gesso demo`")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    given = parser.parse_args(arguments)
    sampled = [event for event in current(read(given.run / "events.jsonl")) if event["event"] == "sampled"]
    before, after = sampled[0]["samples"], sampled[-1]["samples"]
    shown = sorted((assets() / "subjects" / "teddy-bear").glob("*.png"))[: len(before)]
    rows = [
        *(opened(path) for path in shown),
        *(opened(given.run / one["file"]) for one in before),
        *(opened(given.run / one["file"]) for one in after),
    ]
    labels = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in shown]
    labels += [one["prompt"] for one in [*before, *after]]
    whole = sheet(rows, columns=len(before), labels=labels, rows=["shown", "before", "after"])
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(whole).save(given.picture, optimize=True)


def opened(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()

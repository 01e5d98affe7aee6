"""Class pictures for prior preservation (Ruiz et al. 2022, arXiv:2208.12242, section 3.2).

The user's own come first; what is missing is drawn with the base model into the run folder. A drawn picture is named by
its number and its content, and its seed is a function of its number, so an interrupted drawing goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from gesso.data.record import Record
from gesso.data.sources import read
from gesso.engines.engine import Engine, SampleRequest
from gesso.formats import png
from gesso.keys import generator
from gesso.schema import DataTable, Prior

Progress = Callable[[str, int, int], None]
FOLDER = "class"
TOGETHER = 8


def records(prior: Prior, out: Path, *, seed: int, side: int, engine: Engine, progress: Progress) -> list[Record]:
    """`prior.pictures` class pictures as records, drawing those that are missing."""
    own = _own(prior)[: prior.pictures]
    drawn = draw(prior, out / FOLDER, len(own), seed=seed, side=side, engine=engine, progress=progress)
    made = [
        Record(path=path, captions=(prior.prompt,), group="class", origin="drawn with the base model") for path in drawn
    ]
    return own + made


def _own(prior: Prior) -> list[Record]:
    if not prior.path:
        return []
    return read(DataTable(path=prior.path, prompt=prior.prompt), group="class")


def draw(
    prior: Prior, folder: Path, first: int, *, seed: int, side: int, engine: Engine, progress: Progress
) -> list[Path]:
    """The pictures numbered `first` … `prior.pictures` − 1 in `folder`, in order; those already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {int(path.name.split("-")[0]): path for path in folder.iterdir() if _intact(path)}
    wanted = range(first, prior.pictures)
    missing = [number for number in wanted if number not in there]
    for start in range(0, len(missing), TOGETHER):
        progress("drawing class pictures", start, len(missing))
        numbers = missing[start : start + TOGETHER]
        requests = [_request(prior, number, seed, side) for number in numbers]
        for number, request, picture in zip(numbers, requests, engine.sample(requests), strict=True):
            name = f"{number:05d}-{hashlib.sha1(picture.tobytes()).hexdigest()}.png"
            png.write(folder / name, picture, {"prompt": request.prompt, "seed": request.seed})
            there[number] = folder / name
    if missing:
        progress("drawing class pictures", len(missing), len(missing))
    return [there[number] for number in wanted]


def _request(prior: Prior, number: int, seed: int, side: int) -> SampleRequest:
    return SampleRequest(
        prompt=prior.prompt,
        seed=int(generator(seed, "class", number).integers(2**31)),
        width=side,
        height=side,
        steps=prior.sampling_steps,
        guidance=prior.guidance,
    )


def _intact(path: Path) -> bool:
    return re.fullmatch(r"\d{5}-[0-9a-f]{40}\.png", path.name) is not None

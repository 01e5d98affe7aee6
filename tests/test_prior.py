"""Class pictures are drawn once, for exactly what they are asked for, and never taken unseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gesso import prior
from gesso.arrays import Picture
from gesso.data.images import load
from gesso.data.record import Record
from gesso.engines.engine import SampleRequest
from gesso.engines.reference.engine import Engine
from gesso.keys import generator
from gesso.listeners import Listeners
from gesso.schema import Prior, Track
from gesso.stop import Stop

ASKED = {"prompt": "a dog", "pictures": 4, "sampling_steps": 3}


class Painter(Engine):
    """The reference engine, drawing noise by the request alone; it counts its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[SampleRequest] = []
        self.stop: Stop | None = None

    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False) -> list[Picture]:
        self.drawn += requests
        if self.stop is not None and len(self.drawn) == 2:
            self.stop.reason = "Ctrl-C"
        shapes = [(r.seed, (r.height, r.width, 3)) for r in requests]
        return [
            generator(seed, r.prompt).integers(0, 256, shape, np.uint8)
            for (seed, shape), r in zip(shapes, requests, strict=True)
        ]


def drawn(out: Path, asked: dict[str, object] = ASKED, **keys: object) -> tuple[list[Record], Painter]:
    engine = Painter()
    options = {"seed": 1, "side": 16, "base": "unet 1", "engine": engine, "progress": lambda *_: None, **keys}
    return prior.records(Prior.model_validate(asked), out, **options), engine  # type: ignore[arg-type]


def test_pictures_are_drawn_once_and_alone(tmp_path: Path) -> None:
    records, engine = drawn(tmp_path)
    assert [r.path.name[:6] for r in records] == ["00000-", "00001-", "00002-", "00003-"]
    assert {(r.group, r.captions) for r in records} == {("class", ("a dog",))}
    assert len(engine.drawn) == len({r.seed for r in engine.drawn}) == 4
    again, idle = drawn(tmp_path)
    assert (again, idle.drawn) == (records, [])
    more, engine = drawn(tmp_path, {**ASKED, "pictures": 6})
    assert (more[:4], len(engine.drawn)) == (records, 2)
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize(
    "change",
    [{"prompt": "a cat"}, {"sampling_steps": 4}, {"guidance": 1.0}, {"seed": 2}, {"side": 24}, {"base": "unet 2"}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_pictures_draws_its_own(tmp_path: Path, change: dict[str, object]) -> None:
    first, _ = drawn(tmp_path)
    asked = {**ASKED, **{name: value for name, value in change.items() if name in Prior.model_fields}}
    records, engine = drawn(tmp_path, asked, **{name: value for name, value in change.items() if name not in asked})
    assert len(engine.drawn) == 4
    assert {r.path.parent for r in records}.isdisjoint(r.path.parent for r in first)
    assert drawn(tmp_path)[1].drawn == []


def test_a_picture_that_is_not_what_its_name_says_is_drawn_again(tmp_path: Path) -> None:
    records, _ = drawn(tmp_path)
    before = [load(record.path) for record in records]
    Image.new("RGB", (16, 16)).save(records[1].path)
    records[2].path.write_bytes(records[2].path.read_bytes()[:-40])
    again, engine = drawn(tmp_path)
    assert (again, len(engine.drawn)) == (records, 2)
    assert all(np.array_equal(load(r.path), picture) for r, picture in zip(again, before, strict=True))


def test_ones_own_pictures_come_first(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "own" / "mine.png")
    records, engine = drawn(tmp_path, {**ASKED, "path": str(tmp_path / "own")})
    assert [r.path.name[:6] for r in records] == ["mine.p", "00001-", "00002-", "00003-"]
    assert (records[0].origin, len(engine.drawn)) == ("prior.prompt", 3)


def test_a_stop_ends_the_drawing_between_two_pictures(tmp_path: Path) -> None:
    engine, stop = Painter(), Stop()
    engine.stop = stop
    track = Track(tensorboard=False, console="none")
    with pytest.raises(KeyboardInterrupt), Listeners(tmp_path, track, stop) as listeners:
        drawn(tmp_path, engine=engine, progress=listeners.progress)
    assert len(engine.drawn) == len(list(tmp_path.rglob("*.png"))) == 2
    assert len(drawn(tmp_path)[1].drawn) == 2, "the rest only"

"""A LoRA learns a look: pictures under a sepia wash, on the embedded base.

Ten known things on two grounds each, drawn by the base, four tenths of every pixel replaced by one brown, captioned
"… in sks style"; 100 steps of 4 at 2e-3, rank 16, seed 3. Asked are the ten known things that were not among them. What
is measured is the distance of their pixels from the brown, as a part of the same distance when the base draws them:
0.6 is the whole wash. Measured on 2026-11-21 on 20 pictures each (the standard error of the ratio is 0.01):

                                "… in sks style"    without the words    things recognised
    the base                    1.004               1.002                20 of 20
    the LoRA                    0.697               0.694                20 of 20
    sign of the noise turned    1.295               1.297                 0 of 20

The look comes without the words too: nothing in the lesson says when it should not. Greyscale would not do, for the
judge goes by colours: it names 2 of 20 things without any, 24 of 40 at half the saturation, 36 of 40 under this wash.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learning_parts import CONVOLUTIONS, drawn, names, ran, turn_the_sign
from PIL import Image

from gesso.arrays import Float64, Picture
from gesso.demo.glyphs import GROUNDS, KNOWN, caption

WASH, STRENGTH = np.array((160.0, 120.0, 60.0)), 0.4
EVERY = [
    (caption(thing.name, list(GROUNDS)[(3 * number + shift) % len(GROUNDS)]), thing.name)
    for number, thing in enumerate(KNOWN)
    for shift in (0, 5)
]
LEARNED = [each for number, each in enumerate(EVERY) if number // 2 % 2 == 0]
OTHERS = [each for number, each in enumerate(EVERY) if number // 2 % 2 == 1]
STYLE = " in sks style"


def distances(pictures: list[Picture]) -> Float64:
    """Mean distance of a picture's pixels from the wash, float64 [B], of 255 a channel."""
    found: Float64 = np.sqrt(((np.stack(pictures) - WASH) ** 2).sum(-1)).mean((1, 2))
    return found


@pytest.fixture(scope="module")
def washed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("washed")
    for number, (picture, (words, _)) in enumerate(
        zip(drawn("tiny", [prompt for prompt, _ in LEARNED]), LEARNED, strict=True)
    ):
        changed = (picture * (1 - STRENGTH) + WASH * STRENGTH).astype(np.uint8)
        Image.fromarray(changed).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(words + STYLE, encoding="utf-8")
    return folder


def taught(folder: Path, washed: Path) -> tuple[float, int]:
    """The distance as a part of the base's, and how many of the 20 things are recognised."""
    out = ran(
        folder,
        data=[{"path": str(washed)}],
        adapter={"rank": 16, "targets": CONVOLUTIONS},
        train={"steps": 100, "batch": 4},
        optim={"lr": 2e-3},
    )
    before = drawn("tiny", [prompt for prompt, _ in OTHERS])
    after = drawn(out, [prompt + STYLE for prompt, _ in OTHERS])
    found = names(after)
    recognised = sum(one == name for one, (_, name) in zip(found, OTHERS, strict=True))
    return float((distances(after) / distances(before)).mean()), recognised


@pytest.mark.slow
def test_a_lora_learns_a_look_and_puts_it_on_things_it_was_not_shown_in_it(tmp_path: Path, washed: Path) -> None:
    ratio, recognised = taught(tmp_path, washed)
    assert ratio < 0.8
    assert recognised >= 16


@pytest.mark.slow
def test_taught_the_wrong_way_it_does_not(tmp_path: Path, washed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_the_sign(monkeypatch)
    ratio, recognised = taught(tmp_path, washed)
    assert ratio > 1.0
    assert recognised <= 4

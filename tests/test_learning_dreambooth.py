"""DreamBooth on the embedded base learns its subject, and class pictures keep the class.

All weights of the UNet learn the teddy bear from five pictures captioned "a sks toy", 150 steps of 4 at 6e-4, seed 3,
with 24 class pictures of "a toy" or without them (the teacher in their place is measured in test_teacher.py). The base
answers "a toy" with one of its four toys. Measured on 2026-11-21 on 8 pictures of "a sks toy" and 16 of "a toy":

                                      "a sks toy": bears    "a toy": bears    "a toy": toys
    the base                          0 of 8                0 of 16           16 of 16
    class pictures                    8                     0                 15
    without them                      8                     6                      6
    prompts of the halves swapped     0                     16                    0
    class half counting 1e-9          8                     5                      6
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_parts import FULL, drawn, names, ran

from gesso.data.batches import Batches, Step
from gesso.demo.glyphs import KNOWN
from gesso.demo.run import SUBJECT, assets

TOYS = {thing.name for thing in KNOWN if thing.kind == "toy"}
ASKED = ["a sks toy"] * 8 + ["a toy"] * 16
PRIOR = {"prompt": "a toy", "pictures": 24, "sampling_steps": 15, "guidance": 4.0}


def counted(model: Path | str) -> tuple[int, int, int]:
    """Bears of 8 pictures of "a sks toy"; bears and toys of 16 pictures of "a toy"."""
    found = names(drawn(model, ASKED))
    return found[:8].count(SUBJECT), found[8:].count(SUBJECT), sum(name in TOYS for name in found[8:])


def taught(folder: Path, **prior: Any) -> tuple[int, int, int]:
    """The counts after a run with this prior table, or without preservation where there is none."""
    (folder / "bear").mkdir(parents=True)
    for file in (assets() / "subjects" / "teddy-bear").glob("*.png"):
        shutil.copy(file, folder / "bear")
    out = ran(
        folder,
        data=[{"path": str(folder / "bear"), "prompt": "a sks toy"}],
        adapter=FULL,
        train={"steps": 150, "batch": 4},
        optim={"lr": 6e-4},
        validate={"holdout": 0.0, "timesteps": 8},
        **({"prior": prior} if prior else {}),
    )
    return counted(out)


@pytest.mark.slow
def test_class_pictures_keep_the_class_where_without_them_it_is_lost(tmp_path: Path) -> None:
    assert counted("tiny") == (0, 0, 16)
    kept, lost = taught(tmp_path / "with", **PRIOR), taught(tmp_path / "without")
    assert kept[0] >= 6
    assert kept[1] <= 1
    assert kept[2] >= 13
    assert lost[2] <= 9


@pytest.mark.slow
def test_swapped_prompts_teach_the_wrong_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of the class rows on the pictures of the subject, and the other way round."""
    true = Batches.step

    def swapped(self: Batches, step: int) -> Step:
        ((batch, c),) = true(self, step)
        half = len(batch) // 2
        rolled = {name: np.roll(value, half, axis=0) for name, value in batch.cond.items()}
        return ((replace(batch, cond=rolled), c),)

    monkeypatch.setattr(Batches, "step", swapped)
    found = taught(tmp_path, **PRIOR)
    assert found[0] <= 2
    assert found[1] >= 13


@pytest.mark.slow
def test_a_class_half_that_hardly_counts_does_not_keep_the_class(tmp_path: Path) -> None:
    """Were the class rows counted into the mean of the instance rows, unsplit, λ of 1e-9 would change nothing."""
    assert taught(tmp_path, **PRIOR, weight=1e-9)[2] <= 9

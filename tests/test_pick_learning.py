"""Planted series of the embedded model: over-trained, under-trained, copied. The truth is measured apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_parts import ALL_LAYERS, CAPTIONED
from PIL import Image
from runs import events

from gesso.demo.run import assets
from gesso.gathering import quiet
from gesso.pick.reasons import Reasons
from gesso.pick.run import pick
from gesso.recipe import load
from gesso.run import train

pytestmark = pytest.mark.slow

SUBJECT = assets() / "subjects" / "teddy-bear"
UNSEEN = assets() / "subjects" / "teddy-bear-unseen"


def moved(unseen: Path, folder: Path) -> Path:
    """Unseen pictures at other places on their plain grounds: what the truth is measured with."""
    folder.mkdir(parents=True)
    for path in sorted(unseen.glob("*.png")):
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        for number, shift in enumerate(((3, -3), (-3, 2), (2, 4))):
            Image.fromarray(np.roll(pixels, shift, (0, 1))).save(folder / f"{path.stem}-{number}.png")
            shutil.copyfile(path.with_suffix(".txt"), folder / f"{path.stem}-{number}.txt")
    return folder


def series(folder: Path, pictures: Path, every: int, checkpoints: int, *, unseen: Path = UNSEEN, **tables: Any) -> Path:
    """A run with checkpoints every so many steps, its held-out losses measured on `moved` at each of them; its folder.

    Held-out pictures decide nothing in training: afterwards, the recipe names others for `pick`.
    """
    flags = {
        "out": folder / "out",
        "seed": 3,
        "data.path": pictures,
        "validate.path": moved(unseen, folder / "moved"),
        "validate.every": every,
        "save.every": every,
        "save.keep": checkpoints,
        "train.steps": every * checkpoints,
        "train.device": "cpu",
        "torch.threads": 1,
        "track.tensorboard": "false",
        "track.console": "none",
        **tables,
    }
    assert train(load(None, [str(each) for name, value in flags.items() for each in (f"--{name}", value)])) == 0
    return folder / "out"


def truth(out: Path) -> dict[int, float]:
    """Held-out loss of each checkpoint on the moved pictures."""
    return {event["step"]: event["loss"] for event in events(out, "validated") if event["step"]}


def picked(out: Path, unseen: Path = UNSEEN) -> Reasons:
    text = (out / "recipe.toml").read_text(encoding="utf-8")
    moved_to = str(out.parent / "moved")
    assert moved_to in text
    (out / "recipe.toml").write_text(text.replace(moved_to, str(unseen)), encoding="utf-8")
    return pick(out, drawn=16, progress=quiet)


LORA = {"adapter.rank": 32, "adapter.targets": str(ALL_LAYERS).replace("'", '"'), "train.batch": 4}


def test_of_an_over_trained_series_it_picks_within_one_checkpoint_of_the_best(tmp_path: Path) -> None:
    out = series(tmp_path, SUBJECT, 30, 9, **LORA, **{"optim.lr": 1.5e-3})
    losses = truth(out)
    best = min(losses, key=lambda step: losses[step])
    assert losses[max(losses)] > 1.3 * losses[best], "the series is over-trained"
    found = picked(out)
    assert found.step is not None
    assert abs(found.step - best) <= 30, losses


def test_of_an_under_trained_series_it_picks_the_end_and_says_that_more_may_be_better(tmp_path: Path) -> None:
    out = series(tmp_path, SUBJECT, 20, 5, **{"adapter.rank": 8, "train.batch": 4, "optim.lr": 2e-4})
    losses = truth(out)
    assert list(losses.values()) == sorted(losses.values(), reverse=True), "the series is under-trained"
    found = picked(out)
    assert found.step is not None
    assert found.step >= 80
    assert found.step < 100 or any("training for longer" in each for each in found.doubts)


def test_checkpoints_that_copy_are_named_and_not_picked(tmp_path: Path) -> None:
    few, others = tmp_path / "few", tmp_path / "others"
    for number in range(6):
        folder = few if number < 2 else others
        folder.mkdir(exist_ok=True)
        for kind in ("png", "txt"):
            shutil.copy(CAPTIONED / f"owl-{number}.{kind}", folder)
    out = series(tmp_path, few, 80, 6, unseen=others, **LORA, **{"optim.lr": 1.5e-3})
    found = picked(out, others)
    copying = {row.step for row in found.rows if (row.copies or 0) >= 2}
    assert 480 in copying, [(row.step, row.copies) for row in found.rows]
    assert found.step is not None
    assert found.step not in copying
    losses = truth(out)
    assert abs(found.step - min(losses, key=lambda step: losses[step])) <= 80

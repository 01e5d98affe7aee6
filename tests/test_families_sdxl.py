"""What SDXL is told of sizes and crops, row by row, is what was done to the picture of that row."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from data_parts import SIDE, Averages, batches, dataset, quiet
from PIL import Image

from gesso.data.images import Transform
from gesso.data.plan import by_group
from gesso.data.record import Record
from gesso.errors import RecipeError
from gesso.families import find, sd, sdxl

SIZES = [(48, 40), (96, 33), (33, 90), (64, 64), (20, 30), (71, 47)]


def reference(width: int, height: int, side: int, draw: tuple[float, float] | None) -> tuple[int, ...]:
    """diffusers' train_text_to_image_sdxl.py: resize the shorter side, (flip,) then crop; the six numbers."""
    if width <= height:
        resized_width, resized_height = side, int(side * height / width)
    else:
        resized_width, resized_height = int(side * width / height), side
    if draw is None:
        left = max(0, round((resized_width - side) / 2.0))
        top = max(0, round((resized_height - side) / 2.0))
    else:
        left, top = (
            round(share * (whole - side)) for share, whole in zip(draw, (resized_width, resized_height), strict=True)
        )
    return (height, width, top, left, side, side)


def ramp(path: Path, size: tuple[int, int], tag: int) -> Path:
    """Red rises from left to right, green from top to bottom; blue says which picture it is."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    Image.fromarray(np.stack([x, y, np.full_like(x, tag * 20)], axis=2).round().astype(np.uint8)).save(path)
    return path


def records(folder: Path, classes: int = 0) -> list[Record]:
    groups = ["instance"] * (len(SIZES) - classes) + ["class"] * classes
    return [
        Record(path=ramp(folder / f"{tag}.png", size, tag), captions=(str(tag),), group=group)
        for tag, (size, group) in enumerate(zip(SIZES, groups, strict=True))
    ]


def told(time_ids: np.ndarray, means: np.ndarray, flips: list[bool]) -> None:
    """The corner in `time_ids` is where the latents' first block of 8 × 8 pixels comes from."""
    for row, (height, width, top, left, *_) in enumerate(time_ids):
        scale = SIDE / min(height, width)
        place = (left + 3.5) / (width * scale - 1), (top + 3.5) / (height * scale - 1)
        red = 1 - place[0] if flips[row] else place[0]
        found = (means[row, :2, 0, 0] + 1) / 2
        # Half a pixel of rounding on either side.
        assert abs(found[0] - red) * (width * scale - 1) < 1.1, (row, flips[row])
        assert abs(found[1] - place[1]) * (height * scale - 1) < 1.1, row


def test_the_six_numbers_are_height_before_width_and_top_before_left() -> None:
    found = sdxl.geometry((640, 480), (12, 34), (512, 256))["time_ids"]
    assert found.dtype == np.float32
    assert found.tolist() == [480, 640, 34, 12, 256, 512]
    assert sd.geometry((640, 480), (12, 34), (512, 256)) == {}


def test_corners_are_those_of_diffusers_own_script() -> None:
    rng = random.Random(4)
    for _ in range(2000):
        width, height, side = rng.randint(20, 3000), rng.randint(20, 3000), rng.choice([32, 512, 1024])
        draw = rng.random(), rng.random()
        for flip, drawn in itertools.product((False, True), (None, draw)):
            left, top = drawn or (0.5, 0.5)
            transform = Transform(side_width=side, side_height=side, left=left, top=top, flip=flip)
            seen = drawn and (1.0 - left if flip else left, top)
            wanted = reference(width, height, side, seen)
            corner = transform.corner(width, height)
            assert tuple(sdxl.geometry((width, height), corner, (side, side))["time_ids"].tolist()) == wanted
            assert min(corner) >= 0


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("classes", [0, 2])
def test_every_row_carries_its_own_numbers(tmp_path: Path, crop: str, flip: bool, classes: int) -> None:
    data = dataset(records(tmp_path, classes), tmp_path / "cache", crop=crop, flip=flip, geometry=sdxl.geometry)
    data.prepare(quiet)
    made = batches(data, batch=3, objective=batches(data).objective)
    seen = set()
    for number in range(8):
        ((batch, _),) = made.step(number)
        slots = made.plan.step(number)
        assert len(slots) == (6 if classes else 3)
        time_ids, (mean, _) = batch.cond["time_ids"], data.latents(slots)
        assert time_ids.dtype == np.float32
        assert time_ids.shape == (len(slots), 6)
        # Tags: the picture's blue, its caption's number and its size belong to one row.
        tags = np.round((mean[:, 2].mean((1, 2)) + 1) / 2 * 255 / 20).astype(int)
        assert tags.tolist() == batch.ids.tolist() == [int(data.caption(slot)) for slot in slots]
        for row, tag in enumerate(tags):
            assert time_ids[row, [1, 0]].tolist() == list(SIZES[tag])
            assert time_ids[row, 4:].tolist() == [SIDE, SIDE]
        transforms = [data.transform(slot) for slot in slots]
        told(time_ids, mean, [transform.flip for transform in transforms])
        if crop == "center":
            wanted = [reference(*SIZES[tag], SIDE, None) for tag in tags]
            assert [tuple(row) for row in time_ids.tolist()] == wanted
        seen |= {tuple(row) for row in time_ids.tolist()}
    assert (len(seen) > len(by_group(data.records)["instance"]) + classes) == (crop == "random")


def test_numbers_from_the_cache_are_those_of_the_first_time(tmp_path: Path) -> None:
    rows = records(tmp_path)
    first = dataset(rows, tmp_path / "cache", geometry=sdxl.geometry)
    first.prepare(quiet)
    again = dataset(rows, tmp_path / "cache", encoder := Averages(), geometry=sdxl.geometry)
    again.prepare(quiet)
    assert encoder.pictures == 0
    ((one, _),), ((other, _),) = batches(first).step(2), batches(again).step(2)
    assert np.array_equal(one.cond["time_ids"], other.cond["time_ids"])
    assert np.array_equal(one.x0, other.x0)


def test_a_turned_picture_is_measured_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 40)).save(path, exif=exif)
    data = dataset([Record(path=path, captions=("a",))], tmp_path / "cache", geometry=sdxl.geometry)
    slots = batches(data, batch=1).plan.step(0)
    assert data.sizes(slots)["time_ids"].tolist() == [[90, 40, 20, 0, SIDE, SIDE]]


def test_families_know_their_pipelines_and_refuse_a_second_stage() -> None:
    assert find("StableDiffusionXLPipeline").name == "sdxl"
    assert find("StableDiffusionPipeline").name == "sd"
    with pytest.raises(RecipeError, match="second stage"):
        find("StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(RecipeError, match="not known yet"):
        find("FluxPipeline")


def test_scale_is_sdxl_own_or_by_channel() -> None:
    assert sdxl.scale({"scaling_factor": 0.13025, "latents_mean": None, "latents_std": None}) == (0.13025, 0.0)
    scale, shift = sdxl.scale({"scaling_factor": 0.5, "latents_mean": [1.0, -2.0], "latents_std": [4.0, 8.0]})
    assert isinstance(scale, np.ndarray)
    assert isinstance(shift, np.ndarray)
    assert scale.dtype == shift.dtype == np.float32
    assert scale.shape == shift.shape == (2, 1, 1)
    assert scale.ravel().tolist() == [0.125, 0.0625]
    assert shift.ravel().tolist() == [1.0, -2.0]

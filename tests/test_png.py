"""Pictures that say how they were made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gesso.errors import DataError, StorageError
from gesso.formats import png

PICTURE = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)
DATA = {
    "prompt": "a red apple, on a blue background",
    "negative": "blurry",
    "steps": 20,
    "scheduler": "DPMSolverMultistepScheduler",
    "guidance": 7.0,
    "seed": 1,
    "model": "tiny",
}


def test_the_web_ui_text(tmp_path: Path) -> None:
    png.write(tmp_path / "a.png", PICTURE, DATA)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == (
            "a red apple, on a blue background\n"
            "Negative prompt: blurry\n"
            "Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 64x48, Model: tiny"
        )
        assert (np.asarray(image) == PICTURE).all()


def test_data_comes_back_whole(tmp_path: Path) -> None:
    data = {**DATA, "step": 400, "tags": ["x", 1.5], "run": 'dog: the second, "best"'}
    png.write(tmp_path / "a.png", PICTURE, data)
    assert png.read(tmp_path / "a.png") == {**data, "width": 64, "height": 48}


@pytest.mark.parametrize("prompt", ["一只红色的苹果 🍎", "пейзаж\nв две строки", "Käse, ganz groß", "", "\ud83c\udf4e"])
def test_prompts_in_any_script(tmp_path: Path, prompt: str) -> None:
    prompt = prompt.encode("utf-16", "surrogatepass").decode("utf-16")
    png.write(tmp_path / "a.png", PICTURE, {"prompt": prompt, "negative": "模糊", "seed": 3})
    read = png.read(tmp_path / "a.png")
    assert (read["prompt"], read["negative"], read["seed"]) == (prompt, "模糊", 3)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"].startswith(f"{prompt}\nNegative prompt: 模糊\n")


def test_same_picture_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        png.write(tmp_path / name / "same.png", PICTURE, DATA)
    png.write(tmp_path / "c.png", PICTURE, dict(reversed(DATA.items())))
    first = (tmp_path / "a/same.png").read_bytes()
    assert first == (tmp_path / "b/same.png").read_bytes()
    assert first == (tmp_path / "c.png").read_bytes()


def test_text_of_other_programs_is_understood(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    text = "a cat\nin two lines\nNegative prompt: dog\nSteps: 30, Sampler: Euler a, CFG scale: 6.5, Seed: 9, "
    chunks.add_text("parameters", text + 'Size: 512x768, Lora hashes: "x: 1, y: 2", Version: v1.9')
    Image.fromarray(PICTURE).save(tmp_path / "a.png", pnginfo=chunks)
    assert png.read(tmp_path / "a.png") == {
        "prompt": "a cat\nin two lines",
        "negative": "dog",
        "steps": 30,
        "scheduler": "Euler a",
        "guidance": 6.5,
        "seed": 9,
        "width": 512,
        "height": 768,
        "Lora hashes": "x: 1, y: 2",
        "Version": "v1.9",
    }


def test_what_is_written_can_be_parsed() -> None:
    parsed = png.parse(png.parameters({**DATA, "width": 64, "height": 48, "run": 'a, b: "c"'}))
    assert parsed == {**DATA, "scheduler": "DPM++ 2M", "width": 64, "height": 48, "guidance": 7, "run": 'a, b: "c"'}
    assert png.parse("only a prompt") == {"prompt": "only a prompt"}


def test_pictures_without_data_and_files_that_are_none(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "plain.png")
    assert png.read(tmp_path / "plain.png") == {}
    (tmp_path / "page.png").write_text("<html>")
    png.write(tmp_path / "a.png", PICTURE, DATA)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    for name in ("page.png", "cut.png", "none.png"):
        with pytest.raises(DataError, match=name):
            png.read(tmp_path / name)


def test_nothing_half_written_remains(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        png.write(tmp_path / "a.png", PICTURE, DATA)
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(DataError, match="uint8"):
        png.write(tmp_path / "b.png", PICTURE.astype(np.float32), DATA)

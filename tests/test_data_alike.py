"""Pictures that show the same, and the held-out share that keeps them on one side."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gesso.data.alike import groups, near_duplicates, thumbnail
from gesso.data.cache import Store
from gesso.errors import RecipeError
from gesso.gathering import pictures
from gesso.schema import DataTable, Recipe, Validate


def drawing(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth coloured blobs: what a photograph is to a hash."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def versions(folder: Path, seed: int) -> list[Path]:
    """The same drawing as PNG, JPEG, small, brighter, and in grey's neighbourhood of colours."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = drawing(seed)
    whole.save(folder / f"{seed}.png")
    whole.save(folder / f"{seed}-jpeg.jpg", quality=70)
    whole.resize((64, 48)).save(folder / f"{seed}-small.png")
    ImageEnhance.Brightness(whole).enhance(1.06).save(folder / f"{seed}-bright.png")
    return sorted(folder.glob(f"{seed}[.-]*"))


def test_versions_of_a_picture_are_alike_and_others_are_not(tmp_path: Path) -> None:
    paths = [path for seed in range(30) for path in versions(tmp_path, seed)]
    found = near_duplicates(paths, None)
    assert found == [at // 4 * 4 for at in range(120)]


def test_colours_tell_what_shapes_do_not() -> None:
    plain = [np.full((8, 9, 3), value, dtype=np.uint8) for value in (10, 15, 200)]
    assert groups(plain) == [0, 0, 2]
    grey = np.asarray(drawing(1).resize((9, 8)))
    assert groups([grey, grey[..., ::-1].copy()]) == [0, 1]
    assert groups([]) == []


def test_things_on_a_white_table_are_told_apart_by_their_colour() -> None:
    def thing(*colour: int) -> np.ndarray:
        table = np.full((8, 9, 3), 235, dtype=np.uint8)
        table[2:6, 4] = colour
        return table

    assert groups([thing(175, 14, 42), thing(120, 66, 92), thing(180, 20, 40)]) == [0, 1, 0]


def test_being_alike_is_passed_on_and_does_not_hang_on_the_order() -> None:
    chain = [np.full((8, 9, 3), 10 * step, dtype=np.uint8) for step in range(20)]
    assert groups(chain) == [0] * 20
    assert groups(chain[::-1]) == [0] * 20


def test_what_cannot_be_read_is_like_no_other(tmp_path: Path) -> None:
    paths = versions(tmp_path, 1)
    paths[0].write_bytes(b"<html>")
    assert near_duplicates([*paths, tmp_path / "gone.png"], None) == [0, 1, 1, 1, 4]


def test_thumbnails_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, store = versions(tmp_path / "p", 1), Store(tmp_path / "cache")
    first = near_duplicates(paths, store)
    monkeypatch.setattr("gesso.data.images.sketch", lambda place: pytest.fail(f"{place} was read again"))
    assert near_duplicates(paths, Store(tmp_path / "cache")) == first


def test_a_long_pass_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "p"
    for number in range(4):
        folder.mkdir(exist_ok=True)
        drawing(number).save(folder / f"{number}.png")
    told: list[tuple[str, int, int]] = []
    recipe = Recipe.model_validate({"data": [{"path": str(folder), "prompt": "p"}], "validate": {"holdout": 0.25}})
    pictures(recipe, lambda *each: told.append(each))
    assert told == []  # it was over in a moment
    monkeypatch.setattr("gesso.gathering.PATIENCE_SECONDS", -1.0)
    pictures(recipe, lambda *each: told.append(each))
    assert told == [("looking for pictures that show the same", done, 4) for done in range(4)]


def test_twenty_thousand_pictures_take_seconds() -> None:
    found = [thumbnail(np.asarray(drawing(seed, (9, 8)))) for seed in range(2000)]
    many = [np.clip(each.astype(int) + shift, 0, 255).astype(np.uint8) for each in found for shift in range(10)]
    began = time.monotonic()
    assert len(set(groups(many))) == 2000
    assert time.monotonic() - began < 30


def split(folder: Path, share: float, seed: int = 1) -> tuple[set[str], set[str]]:
    data = (DataTable(path=str(folder), prompt="p", repeats=2),)
    learning, held = pictures(Recipe(seed=seed, data=data, validate=Validate(holdout=share)))
    assert len(learning) == 2 * len({record.path for record in learning})
    return {record.path.name for record in learning}, {record.path.name for record in held}


def test_held_out_pictures_have_no_twin_that_is_learned(tmp_path: Path) -> None:
    for seed in range(10):
        versions(tmp_path, seed)
    for seed in range(6):
        learning, held = split(tmp_path, 0.3, seed)
        assert (len(learning), len(held)) == (28, 12)
        assert not {name.partition("-")[0].partition(".")[0] for name in learning} & {
            name.partition("-")[0].partition(".")[0] for name in held
        }
    assert len({frozenset(split(tmp_path, 0.3, seed)[1]) for seed in range(6)}) > 3


def test_a_share_too_small_for_any_group_is_refused(tmp_path: Path) -> None:
    versions(tmp_path, 1)
    with pytest.raises(RecipeError, match="holds out 0, since those that show the same stay together"):
        split(tmp_path, 0.5)
    with pytest.raises(RecipeError, match=r"of 4 pictures holds out 0\n"):
        split(tmp_path, 0.1)

"""Masks: through the picture's own crop down to the latent, into the batch, and what they count in the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import SIDE, batches, dataset, made, picture, quiet, same
from PIL import Image

from gesso.data import images
from gesso.data.batches import held_out
from gesso.data.plan import Slot
from gesso.data.record import Record
from gesso.data.sources import read
from gesso.engines.engine import Optim
from gesso.engines.reference.engine import Engine
from gesso.errors import DataError
from gesso.families import sd
from gesso.objective.objective import Objective
from gesso.schema import DataTable

LATENT = SIDE // 8
FIRST = [Slot(row=0, epoch=0)]


def masked(folder: Path, mask: np.ndarray, size: tuple[int, int] = (SIDE, SIDE), **keys: object) -> Record:
    path = picture(folder / "a.png", 1, size)
    Image.fromarray(mask.astype(np.uint8)).save(folder / "a-masklabel.png")
    return Record(path=path, captions=("a",), mask=folder / "a-masklabel.png", **keys)  # type: ignore[arg-type]


def of(record: Record, cache: Path, **keys: object) -> np.ndarray:
    found = dataset([record], cache, **keys).mask(FIRST, LATENT, LATENT)
    assert found is not None
    assert found.shape == (1, 1, LATENT, LATENT)
    assert found.dtype == np.float32
    return found[0, 0]


def test_a_mask_is_averaged_over_the_pixels_of_each_latent_pixel(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE))
    mask[:8, :8] = 255  # one latent pixel whole
    mask[8:12, 8:16] = 255  # half of another
    mask[16:24, 16:24] = 51  # a fifth of white
    expected = np.zeros((LATENT, LATENT))
    expected[0, 0], expected[1, 1], expected[2, 2] = 1.0, 0.5, 0.2
    assert of(masked(tmp_path, mask), tmp_path / "c") == pytest.approx(expected, abs=1e-6)
    outside = of(masked(tmp_path, mask, outside=0.25), tmp_path / "c")
    assert outside == pytest.approx(0.25 + 0.75 * expected, abs=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_mask_is_cropped_and_mirrored_as_its_picture_is(tmp_path: Path, crop: str, flip: bool) -> None:
    """The picture is its own mask in grey: what the encoder sees of it and the mask agree, pixel for pixel."""
    mask = np.repeat(np.repeat(np.random.default_rng(1).integers(0, 256, (5, 9)), 8, axis=0), 8, axis=1)
    record = masked(tmp_path, mask)
    Image.fromarray(mask.astype(np.uint8)).save(record.path)
    data = dataset([record], tmp_path / "c", crop=crop, flip=flip)
    for epoch in range(6):
        slots = [Slot(row=0, epoch=epoch)]
        mean, _ = data.latents(slots)
        found = data.mask(slots, LATENT, LATENT)
        assert found is not None
        assert found[0, 0] == pytest.approx((mean[0, 0] + 1) / 2, abs=1e-5)


def test_transparency_is_a_mask(tmp_path: Path) -> None:
    alpha = np.zeros((SIDE, SIDE), dtype=np.uint8)
    alpha[:, : SIDE // 2] = 255
    rgba = np.dstack([np.full((SIDE, SIDE, 3), 90, dtype=np.uint8), alpha])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "b.png")
    Image.fromarray(rgba).rotate(90, expand=True).save(tmp_path / "c.png", exif=_sideways())
    table = DataTable(path=str(tmp_path), prompt="p", masks=True)
    clear, opaque, turned = (of(record, tmp_path / "cache") for record in read(table))
    expected = np.repeat([[1.0, 1.0, 0.0, 0.0]], LATENT, axis=0)
    assert np.array_equal(clear, expected)
    assert np.array_equal(opaque, np.ones((LATENT, LATENT)))
    assert np.array_equal(turned, expected)


def _sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_is_read_in_any_mode(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, : SIDE // 2] = 255
    record = masked(tmp_path, mask)
    whole = Image.fromarray(mask.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(mask).convert(mode)
    whole.save(tmp_path / "a-masklabel.png")
    assert np.array_equal(of(record, tmp_path / "c"), np.repeat([[1.0, 1.0, 0.0, 0.0]], LATENT, axis=0))


def test_a_mask_of_another_shape_or_that_is_none_is_named_at_the_start(tmp_path: Path) -> None:
    record = masked(tmp_path, np.zeros((30, 60)))
    with pytest.raises(DataError, match=r"the mask is 60 × 30 pixels, its picture 32 × 32") as caught:
        dataset([record], tmp_path / "c").prepare(quiet)
    assert caught.value.where.endswith("a-masklabel.png")
    Image.new("L", (SIDE * 3, SIDE * 3), 255).save(tmp_path / "a-masklabel.png")  # another size will do
    dataset([record], tmp_path / "c").prepare(quiet)
    (tmp_path / "a-masklabel.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not a readable picture"):
        dataset([record], tmp_path / "c").prepare(quiet)


def test_batches_have_masks_where_a_record_has_one_and_are_otherwise_as_they_were(tmp_path: Path) -> None:
    plain = made(tmp_path / "p", classes=2)
    assert batches(dataset(plain, tmp_path / "c")).step(0)[0][0].mask is None
    half = np.zeros((40, 48))
    half[:, :24] = 255
    Image.fromarray(half.astype(np.uint8)).save(tmp_path / "mask.png")
    records = [replace(plain[0], mask=tmp_path / "mask.png"), *plain[1:]]
    for step in range(4):
        ((before, _),) = batches(dataset(plain, tmp_path / "c")).step(step)
        ((batch, _),) = batches(dataset(records, tmp_path / "c")).step(step)
        if 0 not in batch.ids:
            assert batch.mask is None
            continue
        assert batch.mask is not None
        assert batch.mask.mean((1, 2, 3)) == pytest.approx(np.where(batch.ids == 0, 0.5, 1.0), abs=1e-6)
        assert same(replace(batch, mask=None), before)


def test_half_a_mask_counts_half(linear: Path, tmp_path: Path) -> None:
    """Of equal errors everywhere, a mask that lets half through halves the loss; two halves come to the whole."""
    left = np.zeros((SIDE, SIDE))
    left[:, : SIDE // 2] = 255
    engine, losses = Engine(), {}
    engine.load(linear, sd)  # type: ignore[arg-type]
    engine.attach(None, Optim())
    ones = np.ones((1, 4, LATENT, LATENT), dtype=np.float32)
    cond = {"encoder_hidden_states": ones}
    masks = {"all": left * 0 + 255, "left": left, "right": 255 - left, "grey": left * 0 + 127}
    for name, mask in masks.items():
        data = dataset([masked(tmp_path / name, mask)], tmp_path / "c")
        (batch, c), *_ = held_out(data, objective=Objective(), scale=1.0, seed=1, timesteps=1, batch=1)
        losses[name] = float(engine.evaluate(replace(batch, cond=cond, x0=ones, eps_in=ones, eps_target=ones), c)[0])
    assert losses["left"] == pytest.approx(losses["all"] / 2, rel=1e-6)
    assert losses["left"] + losses["right"] == pytest.approx(losses["all"], rel=1e-6)
    assert losses["grey"] == pytest.approx(losses["all"] * 127 / 255, rel=1e-6)


def test_the_record_of_the_data_names_the_mask_by_its_content(tmp_path: Path) -> None:
    plain = made(tmp_path / "p", 2)
    Image.new("L", (48, 40), 9).save(tmp_path / "mask.png")
    records = [replace(plain[0], mask=tmp_path / "mask.png"), plain[1]]
    lock = dataset(records, tmp_path / "c").lock()
    assert lock["fingerprint"] != dataset(plain, tmp_path / "c").lock()["fingerprint"]
    Image.new("L", (48, 40), 10).save(tmp_path / "mask.png")
    assert lock["fingerprint"] != dataset(records, tmp_path / "c").lock()["fingerprint"]
    assert "mask" not in dataset(plain, tmp_path / "c").lock()["pictures"][0]

"""Pictures and captions on their way through the PyTorch engine: what is encoded when, and what comes in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import events, hashes, pictures, recipe
from torch_runs import Seen, disturb, go, torch_recipe, watch

from gesso.errors import Exit

COUNT = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures", COUNT)
    return tmp_path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


def quick(folder: Path, base: Path, **train: object) -> Path:
    """One step without samples, so that only training asks for encoders; the cache lies in the folder."""
    cache = {"path": str(folder / "cache")}
    return recipe(folder, base, engine="torch", train={"steps": 1, "batch": 2, "device": "cpu", **train}, cache=cache)


def loaded(seen: Seen) -> set[str]:
    return set(seen.loaded) - {"tokenizer"}


def test_a_second_run_loads_no_encoder(folder: Path, blank: Path, seen: Seen) -> None:
    path = quick(folder, blank)
    assert go(path) == Exit.DONE
    assert loaded(seen) == {"vae", "text_encoder", "unet"}
    assert seen.encoded == (COUNT, COUNT)
    first = events(folder / "out", "stepped")
    seen.loaded.clear()
    assert go(path, "--out", folder / "second") == Exit.DONE
    assert loaded(seen) == {"unet"}
    assert seen.encoded == (COUNT, COUNT), "something was encoded again"
    assert [e["loss"] for e in events(folder / "second", "stepped")] == [e["loss"] for e in first]
    assert hashes(folder / "second", "*.safetensors") == hashes(folder / "out", "*.safetensors")


def touched_picture(folder: Path, base: Path) -> None:
    with Image.open(folder / "pictures/2.png") as opened:
        picture = np.array(opened)
    picture[0, 0] ^= 1
    Image.fromarray(picture).save(folder / "pictures/2.png")


def touched_caption(folder: Path, base: Path) -> None:
    (folder / "pictures/3.txt").write_text("another thing", encoding="utf-8")


def touched_autoencoder(folder: Path, base: Path) -> None:
    disturb(base / "vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight")


def touched_text_encoder(folder: Path, base: Path) -> None:
    disturb(base / "text_encoder/model.safetensors", "mlp.fc1.weight")


def touched_unet(folder: Path, base: Path) -> None:
    disturb(base / "unet/diffusion_pytorch_model.safetensors", "conv_in.weight")


def nothing(folder: Path, base: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "train", "encoded"),
    [
        pytest.param(touched_picture, {}, (1, 0), id="one picture"),
        pytest.param(touched_caption, {}, (0, 1), id="one caption"),
        pytest.param(touched_autoencoder, {}, (COUNT, 0), id="autoencoder"),
        pytest.param(touched_text_encoder, {}, (0, COUNT), id="text encoder"),
        pytest.param(touched_unet, {}, (0, 0), id="denoiser"),
        pytest.param(nothing, {"resolution": 96}, (COUNT, 0), id="resolution"),
        pytest.param(nothing, {"flip": True}, (COUNT, 0), id="flip"),
        pytest.param(nothing, {"caption_dropout": 0.5}, (0, 1), id="the empty caption"),
        pytest.param(nothing, {"batch": 3}, (0, 0), id="batch"),
    ],
)
def test_what_changes_is_encoded_again_and_nothing_else(
    folder: Path, blank: Path, seen: Seen, change: object, train: dict[str, object], encoded: tuple[int, int]
) -> None:
    base = folder / "base"
    shutil.copytree(blank, base)
    go(quick(folder, base))
    seen.pixels.clear()
    seen.captions.clear()
    change(folder, base)  # type: ignore[operator]
    assert go(quick(folder, base, **train), "--out", folder / "second") == Exit.DONE
    assert seen.encoded == encoded


@pytest.mark.parametrize("side", [64, 96])
def test_pictures_of_every_make(tmp_path: Path, blank: Path, seen: Seen, side: int) -> None:
    """A phone's JPEG that lies on its side, transparency, CMYK, very tall, very wide: each trains, none is touched."""
    place = tmp_path / "pictures"
    place.mkdir()
    halves = np.zeros((480, 640, 3), dtype=np.uint8)
    halves[:, :320, 0] = halves[:, 320:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(halves).save(place / "a.jpg", exif=exif, quality=95)
    clear = np.zeros((200, 200, 4), dtype=np.uint8)
    clear[:, :100, 3] = 255
    Image.fromarray(clear).save(place / "b.png")
    Image.fromarray(halves).convert("CMYK").save(place / "c.jpg", quality=95)
    grey = np.random.default_rng(0).integers(0, 256, (900, 70)).astype(np.uint8)
    Image.fromarray(grey).save(place / "d.png")
    Image.fromarray(grey.T.copy()).save(place / "e.webp", lossless=True)
    before = hashes(place, "*")
    times = {path: path.stat().st_mtime_ns for path in place.iterdir()}

    path = torch_recipe(
        tmp_path,
        blank,
        data=[{"path": str(place), "prompt": "a thing"}],  # type: ignore[arg-type]
        train={"steps": 5, "resolution": side},
        validate={"holdout": 0.2},
    )
    assert go(path) == Exit.DONE
    assert hashes(place, "*") == before
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == times
    assert [np.isfinite(event["loss"]) for event in events(tmp_path / "out", "stepped")] == [True] * 5

    assert {values.shape for values in seen.pixels} == {(3, side, side)}
    red, blue, black, white = (1, -1, -1), (-1, -1, 1), (-1, -1, -1), (1, 1, 1)
    tops = {tuple(map(colour, quarters(values)[:2])) for values in seen.pixels}
    assert (red, blue) in tops, "the phone's picture stands upright: its left half is at the top"
    lefts = {tuple(map(colour, quarters(values)[2:])) for values in seen.pixels}
    assert (black, white) in lefts, "what is transparent is white"
    assert (red, blue) in lefts, "CMYK is still red and blue"
    assert len(seen.pixels) == 5


def quarters(values: np.ndarray) -> list[np.ndarray]:
    """The top, bottom, left and right quarter of [3, height, width]."""
    edge = values.shape[1] // 4
    return [values[:, :edge], values[:, -edge:], values[:, :, :edge], values[:, :, -edge:]]


def colour(values: np.ndarray) -> tuple[int, ...]:
    """The nearest of the eight pure colours, as −1 or 1 for each channel."""
    return tuple(np.where(values.mean(axis=(1, 2)) > 0, 1, -1).tolist())

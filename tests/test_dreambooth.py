"""DreamBooth's rows: each picture with its own caption, noise, weight and share of the loss, whatever the method."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch_runs import FULL, LORA, Seen, go, torch_recipe, watch

from gesso.arrays import Array

TINY = Path(str(files("gesso.demo") / "assets" / "tiny"))
"""Its autoencoder is trained: pictures are told apart by their latents."""
SIDE = 64
INSTANCES, CLASSES = 3, 4


def tagged(folder: Path, count: int, first: int, words: str) -> dict[int, str]:
    """`count` flat pictures, each of another grey, each with a caption of its own; grey → caption."""
    folder.mkdir(parents=True)
    captions = {}
    for number in range(first, first + count):
        grey = 20 + 30 * number
        Image.fromarray(np.full((SIDE, SIDE, 3), grey, dtype=np.uint8)).save(folder / f"{number}.png")
        captions[grey] = f"{words} number {number}"
        (folder / f"{number}.txt").write_text(captions[grey], encoding="utf-8")
    return captions


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


@pytest.mark.parametrize(
    ("adapter", "train"),
    [(LORA, ["unet"]), (FULL, ["unet", "text_encoder"])],
    ids=["captions encoded beforehand", "text encoder trained"],
)
def test_every_row_has_its_own_caption_weight_and_coefficients(
    tmp_path: Path, seen: Seen, adapter: dict[str, Any], train: list[str]
) -> None:
    captions = tagged(tmp_path / "pictures", INSTANCES, 0, "a sks toy")
    captions |= tagged(tmp_path / "class", CLASSES, INSTANCES, "a toy")
    path = torch_recipe(
        tmp_path,
        TINY,
        adapter=adapter,
        model={"train": train} if adapter is FULL else {},
        prior={"prompt": "a toy", "path": str(tmp_path / "class"), "pictures": CLASSES, "weight": 0.5},
        objective={"weighting": "min_snr"},
        train={"steps": 8, "batch": 2, "micro_batch": 1, "device": "cpu"},
        sample={"prompts": [], "seeds": [0], "steps": 25, "guidance": 7.5},
        optim={"lr": 1e-5},
    )
    assert go(path) == 0

    from gesso.engines.torch.engine import create
    from gesso.families import find
    from gesso.schema import TorchEngine

    engine = create(TorchEngine(), device="cpu", precision="fp32")
    engine.load(TINY, find("StableDiffusionPipeline"))
    latents = {grey: _latents(engine, grey) for grey in captions}
    encode = engine.tokens if adapter is FULL else engine.encode_text
    states = {grey: encode([caption]) for grey, caption in captions.items()}
    met: set[int] = set()
    assert len(seen.steps) == 8
    for micro in seen.steps:
        assert [len(batch) for batch, _ in micro] == [1] * 4
        for place, (batch, c) in enumerate(micro):
            grey = min(latents, key=lambda grey: float(np.abs(batch.x0[0] - latents[grey]).mean()))
            met.add(grey)
            is_class = place >= 2
            assert is_class == (grey >= 20 + 30 * INSTANCES), "instance rows come first, class rows after them"
            for name, value in states[grey].items():
                assert np.array_equal(batch.cond[name][0], value[0]), "another picture's caption"
            assert batch.weight[0] == pytest.approx((0.5 if is_class else 1.0) / 2)
            snr = float(c.snr[0])
            assert c.w[0] == pytest.approx(1.0 if is_class else min(snr, 5.0) / snr)
            assert np.array_equal(batch.eps_in, batch.eps_target)
    assert met == set(captions)


def _latents(engine: Any, grey: int) -> Array:
    pixels = np.full((1, 3, SIDE, SIDE), grey / 127.5 - 1.0, dtype=np.float32)
    mean, _ = engine.encode_images(pixels)
    scale = engine.models.get("vae").config.scaling_factor
    return np.asarray(mean[0] * np.float32(scale))


def test_repeats_make_an_epoch_longer_and_nothing_else(tmp_path: Path, blank: Path, seen: Seen) -> None:
    tagged(tmp_path / "pictures", INSTANCES, 0, "a sks toy")
    path = torch_recipe(
        tmp_path,
        blank,
        adapter=LORA,
        data=[{"path": str(tmp_path / "pictures"), "repeats": 4}],
        train={"epochs": 1.0, "batch": 2, "device": "cpu"},
        sample={"prompts": [], "seeds": [0], "steps": 25, "guidance": 7.5},
    )
    text = path.read_text(encoding="utf-8").replace("steps = 6\n", "", 1)
    path.write_text(text, encoding="utf-8")
    assert go(path) == 0
    rows = [int(row) % INSTANCES for micro in seen.steps for batch, _ in micro for row in batch.ids]
    assert sorted(rows) == sorted(list(range(INSTANCES)) * 4)

"""The oracle names what is shown, says 'none' where nothing is, and judges grounds; numpy alone, no font."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gesso import keys
from gesso.arrays import Picture
from gesso.demo import glyphs, oracle
from gesso.demo.confusers import KINDS, blobs, blurred, plain, static

ASSETS = Path(oracle.__file__).parent / "assets"


@pytest.fixture(scope="module")
def judge() -> oracle.Oracle:
    return oracle.Oracle()


def shipped() -> list[tuple[str, Picture]]:
    bears = [("teddy bear", path) for path in sorted((ASSETS / "subjects" / "teddy-bear").glob("*.png"))]
    others = [(path.stem.rpartition("-")[0], path) for path in sorted((ASSETS / "captioned").glob("*.png"))]
    return [(name, np.asarray(Image.open(path).convert("RGB"))) for name, path in bears + others]


def test_names_every_shipped_picture(judge: oracle.Oracle) -> None:
    truths, pictures = zip(*shipped(), strict=True)
    told = judge.name(pictures)
    assert [name for name, _ in told] == list(truths)
    assert np.mean([chance for _, chance in told]) > 0.95


def test_names_them_through_a_slight_blur(judge: oracle.Oracle) -> None:
    truths, pictures = zip(*shipped(), strict=True)
    small = [np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)) for picture in pictures]
    told = judge.name([blurred(picture, 1.0) for picture in small])
    assert np.mean([name == truth for (name, _), truth in zip(told, truths, strict=True)]) >= 0.9


def test_weights_are_small_and_whole() -> None:
    assert oracle.WEIGHTS.stat().st_size < 400_000
    assert len(oracle.NAMES) == 29
    assert oracle.NAMES[-1] == oracle.NONE


@pytest.mark.parametrize("kind", [plain, static, blobs])
def test_nothing_is_none(judge: oracle.Oracle, kind: object) -> None:
    assert callable(kind)
    assert kind in KINDS
    pictures = [kind(keys.generator(5, "oracle test", number), "") for number in range(40)]
    told = judge.name(pictures)
    assert np.mean([name == oracle.NONE for name, _ in told]) >= 0.9


def test_chance_agrees_with_name(judge: oracle.Oracle) -> None:
    pictures = [picture for _, picture in shipped()][:6]
    rows = judge.probabilities(pictures)
    assert rows.shape == (6, 29)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(judge.chance(pictures, "teddy bear"), rows[:, oracle.NAMES.index("teddy bear")])
    assert judge.name([]) == []


def test_convolution_is_torchs(tmp_path: Path) -> None:
    """One number worked out by hand: output (y, x) sums the window around input (2y, 2x)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 8, 8, 3)).astype(np.float32)
    weight, bias = rng.standard_normal((5, 3, 3, 3)).astype(np.float32), np.float32([4, 4, 4, 4, 4])
    out = oracle.convolved(x, weight, bias)
    assert out.shape == (1, 4, 4, 5)
    window = x[0, 3:6, 1:4].transpose(2, 0, 1)
    assert out[0, 2, 1, 3] == pytest.approx(max((window * weight[3]).sum() + 4, 0), rel=1e-4)
    corner = (x[0, :2, :2].transpose(2, 0, 1) * weight[0][:, 1:, 1:]).sum() + 4
    assert out[0, 0, 0, 0] == pytest.approx(max(corner, 0), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("ground", list(glyphs.GROUNDS))
def test_ground_is_the_nearest_colour_of_the_border(ground: str) -> None:
    rng = np.random.default_rng(1)
    picture = np.clip(np.array(glyphs.GROUNDS[ground]) + rng.normal(0, 12, (64, 64, 3)) + 10, 0, 255).astype(np.uint8)
    picture[8:56, 8:56] = (0, 255, 255)
    picture[:2, 20:40] = (255, 0, 255)  # a thing that touches the border
    assert oracle.Oracle.ground(picture) == ground

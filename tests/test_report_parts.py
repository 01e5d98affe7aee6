"""The parts of the report: what it concludes, how it draws, what it embeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_run import GROUNDS, kite
from PIL import Image

from gesso import keys
from gesso.errors import DataError
from gesso.report import curve, outcome
from gesso.report.contact import sheet
from gesso.report.html import Markup, element
from gesso.report.pictures import embed


def found(train: list[float], held_out: list[float], error: float = 0.001) -> curve.Losses:
    return curve.Losses(
        steps=np.arange(1, len(train) + 1),
        train=np.array(train, dtype=np.float64),
        checked=np.arange(len(held_out)) * 10,
        held_out=np.array(held_out, dtype=np.float64),
        errors=np.full(len(held_out), error),
    )


def test_the_verdict_claims_no_more_than_the_numbers() -> None:
    assert outcome.outcome(found([], [0.2, 0.15, 0.1])).good is True
    worse = outcome.outcome(found([], [0.2, 0.15, 0.25]))
    assert worse.good is False
    assert "lowest, 0.15, at step 10" in worse.sentence
    assert "was lower, 0.1, at step 10" in outcome.outcome(found([], [0.2, 0.1, 0.15])).sentence
    for after in (0.199, 0.201):
        same = outcome.outcome(found([], [0.2, after], error=0.01))
        assert same.good is None
        assert "stayed about the same: 0.2 before" in same.sentence
    noise = keys.generator(0, "noise").normal(0.2, 0.05, 100)
    assert outcome.outcome(found(list(noise), [])).good is None
    assert outcome.outcome(found(list(noise - np.linspace(0, 0.1, 100)), [])).good is True
    assert outcome.outcome(found([0.1] * 3, [])).good is None


def test_the_curve_is_finite_whatever_the_losses() -> None:
    for losses in (
        found([0.1], []),
        found([], [0.1]),
        found([0.1] * 50, [0.1, 0.1], error=float("nan")),
        found([0.1, float("nan"), 0.3, float("nan"), 0.2], [0.2, float("nan")]),
        found(list(keys.generator(0, "long").normal(1, 0.1, 20_000)), [1.0]),
    ):
        drawn = curve.curve(losses, width=1080, height=400, name="wide")
        assert "nan" not in drawn
        assert "inf" not in drawn
        assert len(drawn) < 60_000
    assert "held" in drawn


def test_ticks_are_round_and_inside() -> None:
    assert curve.ticks(0, 200, 4) == [0, 50, 100, 150, 200]
    assert curve.ticks(0, 200, 8) == [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200]
    assert curve.ticks(0.093, 0.217, 5) == [0.1, 0.12, 0.14, 0.16, 0.18, 0.2]
    for low, high in ((0, 1), (0, 20), (-0.3, 0.9), (1e-6, 5e-6), (0, 123_456)):
        made = curve.ticks(low, high, 5)
        assert 3 <= len(made) <= 9
        assert low - 1e-9 <= made[0] <= made[-1] <= high + 1e-9


def test_running_mean_keeps_a_constant_and_quiets_noise() -> None:
    assert np.allclose(curve.smoothed(np.full(7, 0.3)), 0.3)
    noise = keys.generator(0, "noise").normal(0, 1, 400)
    assert curve.smoothed(noise).std() < 0.3 * noise.std()
    steps, values = curve.thinned(np.arange(400_000), np.sin(np.arange(400_000) / 9e3))
    assert len(steps) <= curve.MOST_POINTS
    assert (np.diff(steps) > 0).all()
    assert values.max() > 0.999


def test_embedding_keeps_small_pictures_exact_and_shrinks_large_ones(tmp_path: Path) -> None:
    small = embed(kite(GROUNDS[0], 1.0, 1))
    assert small is not None
    assert (small.width, small.small, small.uri[:15]) == (64, True, "data:image/png;")
    Image.fromarray(kite(GROUNDS[0], 1.0, 1, side=900)).save(tmp_path / "large.png")
    large = embed(tmp_path / "large.png")
    assert large is not None
    assert (large.width, large.small, large.uri[:16]) == (512, False, "data:image/webp;")
    assert embed(tmp_path / "none.png") is None


def test_contact_sheet_places_pictures_exactly() -> None:
    pictures = [np.full((4, 6, 3), 10 * number, np.uint8) for number in range(1, 6)]
    made = sheet(pictures, columns=3, scale=2, gap=2)
    assert made.shape == (2 + 2 * (8 + 2) - 2 + 0 + 2, 2 + 3 * (12 + 2), 3)
    assert (made[2:10, 2:14] == 10).all()
    assert (made[12:20, 16:28] == 50).all()
    assert (made[12:20, 30:42] == 255).all()
    labelled = sheet(
        pictures, columns=3, labels=["a very long label indeed"] * 5, headers=["step 0"], rows=["p"], scale=9
    )
    assert labelled.dtype == np.uint8
    assert labelled.shape[0] > sheet(pictures, columns=3, scale=9).shape[0]
    with pytest.raises(DataError, match="at least one picture"):
        sheet([], columns=3)


def test_elements_escape_everything_but_markup() -> None:
    made = element("a", "<b>", Markup("<i></i>"), title='"&', hidden=True, id=None)
    assert made == '<a title="&quot;&amp;" hidden>&lt;b&gt;<i></i></a>'

"""The parts of the report: what it concludes, how it draws, what it embeds."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_run import GROUNDS, kite
from PIL import Image

from gesso import keys
from gesso.data.places import Member
from gesso.data.record import Record
from gesso.errors import DataError
from gesso.report import cells, curve, grid, levels, loss, outcome, page, reading, shown
from gesso.report.contact import sheet
from gesso.report.html import Markup, element
from gesso.report.pictures import embed
from gesso.report.section import Section, Verdict


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
        drawn = curve.curve(losses, width=1080, height=400, name="wide", unit="loss", span=losses.span)
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


def test_a_grid_keeps_every_prompt_before_a_second_seed_and_every_checkpoint() -> None:
    rows = [(f"prompt {number}", seed) for number in range(50) for seed in range(4)]
    kept = cells.rows_that_fit(rows, 3)
    assert len(kept) == 72
    assert {prompt for prompt, _ in kept} == {prompt for prompt, _ in rows}
    assert kept == sorted(kept, key=rows.index)
    assert [len(cells.rows_that_fit(rows, columns)) for columns in (1, 9, 1000)] == [200, 24, 1]
    steps = list(range(0, 1001, 50))
    columns = grid.chosen_steps(steps, {350, 850, 900})
    assert len(columns) == cells.COLUMNS
    assert {0, 350, 850, 900, 1000} <= set(columns)
    assert columns == sorted(set(columns))
    assert grid.chosen_steps([0, 5, 10], {5}) == [0, 5, 10]
    assert len(grid.chosen_steps(steps, set(steps))) == cells.COLUMNS
    assert [cells.size(count) for count in (1, 48, 49, 216, 9999)] == [512, 512, 320, 256, 256]


def test_a_weighted_loss_stands_apart_from_the_held_out_one() -> None:
    losses = found([0.02, 0.01] * 6, [0.2, 0.1])
    plain = loss.section(reading.Run(folder=Path(), values={"objective.weighting": "uniform"}), losses)
    weighted = loss.section(reading.Run(folder=Path(), values={"objective.weighting": "min_snr"}), losses)
    assert plain is not None
    assert weighted is not None
    assert [drawn.count('class="curve ') for drawn in (plain, weighted)] == [2, 4]
    assert plain.count(">mean squared error<") == 2
    assert (weighted.count(">mean squared error<"), weighted.count(">weighted loss<")) == (2, 2)
    for drawn in (plain, weighted):
        assert drawn.count('class="raw"') == 2
        assert drawn.count('class="error"') == 4
        ids = re.findall(r'id="(.*?)"', drawn)
        assert len(set(ids)) == len(ids)
    alone = loss.section(reading.Run(folder=Path(), values={"objective.loss": "huber"}), found([0.1] * 9, []))
    assert alone is not None
    assert "validate.holdout = 0.1" in alone
    assert ">mean squared error<" not in alone


def test_pictures_in_archives_come_along(tmp_path: Path) -> None:
    Image.fromarray(kite(GROUNDS[1], 1.0, 1, side=300)).save(tmp_path / "plain.png")
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(tmp_path / "plain.png", "inside.png")
    with tarfile.open(tmp_path / "some.tar") as archive:
        at = archive.getmember("inside.png").offset_data
    inner = Member("inside.png", at, (tmp_path / "plain.png").stat().st_size)
    lying = Record(path=tmp_path / "some.tar", inner=inner, captions=("a kite",))
    gone = Record(path=tmp_path / "some.tar", inner=Member("gone.png", 1 << 40, 5), captions=())
    found = shown.packed([lying, Record(path=tmp_path / "plain.png", captions=()), gone])
    assert [(each.file, each.captions) for each in found] == [(f"{tmp_path}/some.tar/inside.png", ("a kite",))]
    assert np.array_equal(found[0].picture, kite(GROUNDS[1], 1.0, 1, side=300))


def test_a_value_is_as_exact_as_its_error() -> None:
    measured = [(0.70034, 0.049), (0.0053478, 0.00163), (1.0699, 0.0172), (12.3, 3.4)]
    said = [re.sub("<.*?>", "", levels._with_error(*each)) for each in measured]
    assert said == ["0.700 ± 0.049", "0.0053 ± 0.0016", "1.070 ± 0.017", "12.3 ± 3.4"]


def test_measurements_stay_on_the_page_when_it_is_written_again(tmp_path: Path) -> None:
    verdict = Verdict(rows=[("a bear", "0 of 12", "12 of 12", True)], sentence="It learned what it was shown.")
    first = page.write(tmp_path, extra=[Section("Measured", verdict)]).read_text(encoding="utf-8")
    assert "12 of 12" in first
    assert page.write(tmp_path).read_text(encoding="utf-8") == first

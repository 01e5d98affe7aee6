"""Losses: pseudo-Huber and smooth L1, their limits, their slope, and how c changes with the noise."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesso.arrays import Float64
from gesso.errors import RecipeError
from gesso.objective.losses import LOSSES, TURNS, Loss
from gesso.objective.objective import Objective
from gesso.objective.schedules import Exploding, Flow, Karras, Schedule
from gesso.objective.weightings import Weighting

EVERY = np.arange(1000)
SIGNAL = Schedule().signal()
SIGMA = np.sqrt((1 - SIGNAL) / SIGNAL)


def counted(objective: Objective, d: Float64) -> Float64:
    """w·rho_c(d) for an error d at every timestep, the formula of Khrapov et al. in float64."""
    c = objective.at(EVERY)
    if c.huber is None:
        return c.w * d**2
    return np.asarray(c.w * 2 * c.huber * (np.sqrt(d**2 + c.huber**2) - c.huber))


def made(name: str, huber_c: float = 0.1, turn: str = "snr", weighting: str = "uniform") -> Objective:
    return Objective(loss=Loss(name=name, huber_c=huber_c, schedule=turn), weighting=Weighting(name=weighting))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", np.full(1000, 0.03)),
        ("exponential", np.exp(np.log(0.03) * EVERY / 1000)),
        ("snr", 0.97 / (1 + SIGMA) ** 2 + 0.03),
    ],
)
def test_c_follows_its_schedule(schedule: str, expected: Float64) -> None:
    c = made("huber", 0.03, schedule).at(EVERY)
    assert c.huber == pytest.approx(expected, rel=1e-12)
    assert (c.w == 1).all()
    smooth = made("smooth_l1", 0.03, schedule).at(EVERY)
    assert smooth.huber == pytest.approx(expected, rel=1e-12)
    assert smooth.w == pytest.approx(1 / expected, rel=1e-12)


def test_c_goes_from_1_without_noise_to_huber_c() -> None:
    zero = Schedule(zero_snr=True)
    for turn in ("exponential", "snr"):
        c = replace(made("huber", 0.05, turn), schedule=zero, prediction="v_prediction").at(EVERY).huber
        assert c is not None
        assert (np.diff(c) < 0).all()
        assert c[0] == pytest.approx(1.0, abs=0.06)
        assert c[-1] == pytest.approx(0.05, rel=4e-3)


@settings(max_examples=30)
@given(d=st.floats(-50.0, 50.0), huber_c=st.floats(0.01, 1.0))
def test_small_errors_count_squared_and_large_ones_straight(d: float, huber_c: float) -> None:
    error = np.full(1000, d)
    huber = counted(made("huber", huber_c, "constant"), error)
    assert (huber <= d**2 + 1e-12).all()
    assert (huber <= 2 * huber_c * abs(d) + 1e-12).all()
    assert counted(made("smooth_l1", huber_c, "constant"), error) == pytest.approx(huber / huber_c, rel=1e-9, abs=1e-12)
    # For d → 0 it is d², for d → ∞ its slope is 2c.
    small = counted(made("huber", huber_c, "constant"), np.full(1000, huber_c * 1e-3))
    assert small == pytest.approx((huber_c * 1e-3) ** 2, rel=1e-6)
    far = [counted(made("huber", huber_c, "constant"), np.full(1000, at)) for at in (1e4, 1e4 + 1)]
    assert far[1] - far[0] == pytest.approx(2 * huber_c, rel=1e-6)


def test_squared_error_is_its_limit() -> None:
    d = np.linspace(-3, 3, 1000)
    c = Objective().at(EVERY)
    for turn, close in ((1e2, 1e-3), (1e3, 1e-5)):
        huge = replace(c, huber=np.full(1000, turn))
        assert huge.huber is not None
        value = 2 * huge.huber * (np.sqrt(d**2 + huge.huber**2) - huge.huber)
        assert value == pytest.approx(d**2, rel=close, abs=1e-9)


def test_its_slope_is_2d_over_the_root_of_1_plus_d_over_c_squared() -> None:
    objective, step = made("huber", 0.2, "constant"), 1e-5
    d = np.linspace(-3, 3, 1000)
    slope = (counted(objective, d + step) - counted(objective, d - step)) / (2 * step)
    assert slope == pytest.approx(2 * d / np.sqrt(1 + (d / 0.2) ** 2), abs=1e-8)


@pytest.mark.parametrize(("name", "turn"), list(product(LOSSES[1:], TURNS)))
def test_losses_go_with_every_schedule_and_weighting(name: str, turn: str) -> None:
    for levels, prediction in ((Exploding(preserving=Schedule()), "epsilon"), (Karras(), "edm"), (Flow(), "flow")):
        c = replace(made(name, turn=turn), schedule=levels, prediction=prediction).at(EVERY)
        assert c.huber is not None
        assert np.isfinite(c.huber).all()
        assert (c.huber > 0).all()
    plain = Objective(weighting=Weighting(name="min_snr")).at(EVERY)
    c = made(name, turn=turn, weighting="min_snr").at(EVERY)
    assert c.huber is not None
    assert c.w == pytest.approx(plain.w / c.huber if name == "smooth_l1" else plain.w, rel=1e-12)


def test_class_rows_have_the_loss_and_held_out_pictures_squared_error() -> None:
    objective = made("smooth_l1", weighting="min_snr")
    at, plain, measured = objective.at(EVERY), objective.plain(EVERY), objective.measured(EVERY)
    assert at.huber is not None
    assert plain.huber is not None
    assert np.array_equal(at.huber, plain.huber)
    assert np.array_equal(plain.w, 1 / plain.huber)
    assert measured.huber is None
    assert (measured.w == 1).all()
    joined = at.joined(plain)
    assert joined.huber is not None
    assert np.array_equal(joined.huber[1000:], plain.huber)


@pytest.mark.parametrize("huber_c", [0.0, -1.0, 1.5, float("nan")])
def test_a_c_that_cannot_be_is_refused(huber_c: float) -> None:
    with pytest.raises(RecipeError, match=r"objective\.huber_c is .*, but must be above 0 and at most 1"):
        Loss(name="huber", huber_c=huber_c)

"""How timesteps are drawn: shares, densities of the papers, and what cannot be drawn from."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from hypothesis import given
from hypothesis import strategies as st

from gesso.errors import RecipeError
from gesso.objective.objective import Objective
from gesso.objective.times import TIMES, Times


@pytest.mark.parametrize(
    ("times", "share"),
    [
        (Times(), 0.25),
        (Times(name="later", portion=0.25, multiplier=3), 0.5),
        (Times(name="earlier", portion=0.25, multiplier=3), 0.25 / 1.5),
        (Times(name="range", begin=750, end=1000, multiplier=3), 0.5),
    ],
)
def test_times_favour_what_they_say(times: Times, share: float) -> None:
    weights = times.weights(1000)
    assert weights.sum() == pytest.approx(1)
    assert weights[750:].sum() == pytest.approx(share)
    drawn = times.draw((np.arange(20000) + 0.5) / 20000, 1000)
    assert (drawn >= 750).mean() == pytest.approx(share, abs=1e-3)
    assert (drawn.min(), drawn.max()) == (0, 999)


@pytest.mark.parametrize(("begin", "end"), [(0, 3), (100, 337), (999, 1000), (500, 1000)])
def test_only_draws_no_others(begin: int, end: int) -> None:
    times = Times(name="only", begin=begin, end=end)
    weights = times.weights(1000)
    assert np.array_equal(np.flatnonzero(weights), np.arange(begin, end))
    edges = np.array([0.0, np.nextafter(0.0, 1.0), np.nextafter(1.0, 0.0)])
    drawn = times.draw(np.concatenate([edges, np.arange(20000) / 20000]), 1000)
    assert np.array_equal(np.unique(drawn), np.arange(begin, end))
    assert drawn.dtype == np.int64


def test_logit_normal_has_the_density_of_equation_19() -> None:
    parts = 400
    t = (np.arange(1000 * parts) + 0.5) / (1000 * parts)
    for mean, std in ((0.0, 1.0), (0.5, 0.6), (-1.0, 1.5)):
        density = np.exp(-((np.log(t / (1 - t)) - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi) * t * (1 - t))
        weights = Times(name="logit_normal", mean=mean, std=std).weights(1000)
        assert weights == pytest.approx(density.reshape(1000, parts).mean(1) / 1000, rel=1e-4, abs=1e-12)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
    noisier, usual = (Times(name="logit_normal", mean=mean).weights(1000) @ np.arange(1000) for mean in (1.0, 0.0))
    assert noisier > usual + 150
    assert usual == pytest.approx(499.5)


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 0.81, 1.29, 1.7])
def test_mode_has_the_distribution_of_equation_20(scale: float) -> None:
    """f falls from 1 to 0: u is below t as often as a uniform number is above the place where f is t."""
    place = np.linspace(0, 1, 1_000_001)
    f = 1 - place - scale * (np.cos(np.pi * place / 2) ** 2 - 1 + place)
    below = 1 - np.interp(np.arange(1, 1001) / 1000, f[::-1], place[::-1])
    weights = Times(name="mode", scale=scale).weights(1000)
    assert np.cumsum(weights) == pytest.approx(below, abs=2e-6)
    assert np.sign(round(weights[500] - weights[100], 9)) == np.sign(scale)


@pytest.mark.parametrize(
    ("times", "density"),
    [
        (Times(name="logit_normal", mean=0.4, std=0.8), {"logit_mean": 0.4, "logit_std": 0.8}),
        (Times(name="mode", scale=1.29), {"mode_scale": 1.29}),
        (Times(name="mode", scale=-0.7), {"mode_scale": -0.7}),
    ],
)
def test_densities_are_those_that_diffusers_draws(times: Times, density: dict[str, float]) -> None:
    draw = partial(compute_density_for_timestep_sampling, times.name, 400_000, generator=torch.manual_seed(0))
    index = (draw(**density) * 1000).long().numpy().clip(0, 999)
    theirs = np.bincount(index // 20, minlength=50) / len(index)
    assert times.weights(1000).reshape(50, 20).sum(1) == pytest.approx(
        theirs, abs=6 * np.sqrt(theirs.max() / len(index))
    )


@given(mean=st.floats(-40, 40), std=st.floats(1e-3, 20), scale=st.floats(-1, 1.75), count=st.integers(1, 50))
def test_every_setting_is_a_distribution(mean: float, std: float, scale: float, count: int) -> None:
    for name in ("logit_normal", "mode"):
        times = Times(name=name, mean=mean, std=std, scale=scale)
        weights = times.weights(count)
        assert weights.shape == (count,)
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1)
        drawn = times.draw(np.array([0.0, 0.5, np.nextafter(1.0, 0.0)]), count)
        assert (weights[drawn] > 0).all()


@pytest.mark.parametrize("name", TIMES)
def test_a_timestep_is_a_function_of_the_seed_and_the_place(name: str) -> None:
    objective = Objective(times=Times(name=name, multiplier=3.0, begin=10, end=20))
    places = [(epoch, row) for epoch in range(3) for row in range(40)]
    drawn = objective.draw(1, places)
    assert np.array_equal(drawn[5:7], objective.draw(1, places[5:7]))
    assert not np.array_equal(drawn, objective.draw(2, places))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "later", "multiplier": 0}, "times_multiplier is 0, but must be above 0"),
        ({"name": "later", "portion": 0}, "times_portion is 0, but is a share"),
        ({"name": "earlier", "portion": 1e-4}, "times_portion = 0.0001 of 1000 timesteps is none of them"),
        ({"name": "range", "begin": 9, "end": 9}, "times_begin = 9 and times_end = 9 do not lie in 0 … 1000"),
        ({"name": "only", "begin": 0, "end": 1001}, "times_end = 1001 do not lie in 0 … 1000"),
        ({"name": "logit_normal", "std": 0}, "times_std is 0, but must be above 0"),
        ({"name": "mode", "scale": 1.8}, "times_scale is 1.8, but must be from -1 to 1.75"),
    ],
)
def test_times_that_cannot_be_are_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Objective(times=Times(**keys))  # type: ignore[arg-type]
    assert said in caught.value.what

"""Randomness and rates are functions of their arguments alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler

from gesso.keys import generator, normals, permutation, uniforms
from gesso.rates import Rate, ema_decay

GOLDEN_UNIFORMS = [0.3190766062624796, 0.7536124201706171]
GOLDEN_ORDER = [3, 0, 1, 5, 4, 2]
GOLDEN_NORMALS = [1.2265339820172634, 1.0361470460380617]


def test_a_draw_depends_on_its_key_alone() -> None:
    alone = normals(7, "noise", [(2, 5)], (3, 4))
    among = normals(7, "noise", [(0, 1), (2, 5), (9, 9)], (3, 4))
    assert np.array_equal(alone[0], among[1])
    assert not np.array_equal(among[0], among[1])
    assert not np.array_equal(alone, normals(8, "noise", [(2, 5)], (3, 4)))
    assert not np.array_equal(alone, normals(7, "other", [(2, 5)], (3, 4)))


def test_draws_never_change_between_versions() -> None:
    """Golden values: changing them would change every run that anybody has."""
    assert uniforms(7, "timestep", [(0, 0), (0, 1)]) == pytest.approx(GOLDEN_UNIFORMS, abs=1e-15)
    assert permutation(7, "order", 0, 6).tolist() == GOLDEN_ORDER
    assert generator(7, "noise", 1).standard_normal(2) == pytest.approx(GOLDEN_NORMALS, abs=1e-12)


def test_normals_are_standard() -> None:
    draws = normals(1, "noise", [(row,) for row in range(400)], (4, 16))
    assert draws.dtype == np.float32
    assert draws.mean() == pytest.approx(0, abs=0.02)
    assert draws.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_rates_equal_diffusers(name: str) -> None:
    """Same formulas, counted in optimiser steps."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=50, num_cycles=3, power=2.0)
    ours = Rate(lr=0.3, name=name, steps=50, warmup=7, cycles=3, power=2.0)
    for step in range(51):
        assert ours.at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_constant_honours_its_warmup() -> None:
    rate = Rate(lr=1.0, warmup=4, steps=10)
    assert [rate.at(step) for step in (0, 2, 4, 9)] == [0.0, 0.5, 1.0, 1.0]


def test_linear_ends_at_zero() -> None:
    assert Rate(lr=1.0, name="linear", steps=100).at(100) == 0.0


def test_ema_decay_rises_to_its_limit() -> None:
    decays = [ema_decay(step, 0.99) for step in range(2000)]
    assert decays == sorted(decays)
    assert (decays[0], decays[-1]) == (0.1, 0.99)

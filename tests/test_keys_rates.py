"""Randomness and rates are functions of their arguments alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from runs import events, pictures, recipe

from gesso.keys import generator, normals, permutation, uniforms
from gesso.rates import Rate, ema_decay
from gesso.recipe import load
from gesso.run import train

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


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("name", "cycles", "power"),
    [
        ("constant_with_warmup", 1, 1.0),
        ("linear", 1, 1.0),
        ("cosine", 1, 1.0),
        *(("cosine_with_restarts", cycles, 1.0) for cycles in (1, 2, 3, 5)),
        *(("polynomial", 1, power) for power in (0.5, 1.0, 2.0, 3.5)),
    ],
)
def test_rates_equal_diffusers(name: str, cycles: int, power: float, warmup: int) -> None:
    """Same formulas, counted in optimiser steps."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    told = {"num_cycles": cycles, "power": power}
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=50, **told)
    ours = Rate(lr=0.3, name=name, steps=50, warmup=warmup, cycles=cycles, power=power)
    for step in range(51):
        assert ours.at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_constant_is_diffusers_constant() -> None:
    theirs = get_scheduler("constant", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3))
    assert {Rate(lr=0.3, name="constant", steps=9).at(step) for step in range(12)} == set(theirs.get_last_lr())


def test_constant_honours_its_warmup() -> None:
    rate = Rate(lr=1.0, warmup=4, steps=10)
    assert [rate.at(step) for step in (0, 2, 4, 9)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("steps", [1, 3, 100, 997])
@pytest.mark.parametrize("lr", [1.0, 1e-4, 0.3])
def test_linear_ends_at_zero(lr: float, steps: int) -> None:
    assert Rate(lr=lr, name="linear", steps=steps).at(steps) == 0.0


def test_rates_are_counted_in_optimiser_steps_however_a_batch_is_split(tmp_path: Path, linear: Path) -> None:
    pictures(tmp_path / "pictures")
    taken = {}
    for micro in (0, 1, 2):
        schedule = {"schedule": "linear", "warmup": 2, "lr": 0.01}
        size = {"steps": 6, "batch": 4, "micro_batch": micro}
        path = recipe(tmp_path, linear, out=str(tmp_path / f"out-{micro}"), optim=schedule, train=size)
        train(load(path, []))
        taken[micro] = [event["lr"] for event in events(tmp_path / f"out-{micro}", "stepped")]
    rate = Rate(lr=0.01, name="linear", steps=6, warmup=2)
    assert rate.at(6) == 0.0
    assert all(found == [rate.at(step) for step in range(6)] for found in taken.values())


def test_ema_decay_rises_to_its_limit() -> None:
    decays = [ema_decay(step, 0.99) for step in range(2000)]
    assert decays == sorted(decays)
    assert (decays[0], decays[-1]) == (0.1, 0.99)

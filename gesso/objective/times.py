"""How timesteps are drawn: the probability of each of T timesteps, as a plain array.

One uniform number per picture and the cumulative sum of these probabilities give the timestep, so a draw is a pure
function of (seed, epoch, row) like every other.

    uniform        every timestep alike
    later          the last `portion` of the timesteps weighs `multiplier` times as much (earlier: the first)
    range          the timesteps from `begin` up to, not including, `end` weigh `multiplier` times as much
    only           those timesteps, and no others
    logit_normal   u = 1/(1 + e^−n) of a normal n            Esser et al. 2024, arXiv:2403.03206, equation 19
    mode           u = f(uniform), f of equation 20          the same; above 0 the middle is favoured, below it the ends

u is the share of noise in flow matching: timestep i has the probability of u in [i/T, (i + 1)/T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A distribution over timesteps. `multiplier` … `scale` each belong to some of the names, as listed above."""

    name: str = "uniform"
    multiplier: float = 1.0
    portion: float = 0.25
    begin: int = 0
    end: int = 1000
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29

    def __post_init__(self) -> None:
        if self.name not in TIMES:
            raise RecipeError(f'objective.times = "{self.name}" is not known', todo="use " + ", ".join(TIMES))
        if self.multiplier <= 0:
            raise RecipeError(
                f"objective.times_multiplier is {self.multiplier:g}, but must be above 0",
                todo="1 draws all timesteps alike, 3 draws the favoured ones three times as often",
            )
        if not 0 < self.portion <= 1:
            raise RecipeError(f"objective.times_portion is {self.portion:g}, but is a share: above 0, at most 1")
        if self.std <= 0:
            raise RecipeError(f"objective.times_std is {self.std:g}, but must be above 0")
        if not -1.0 <= self.scale <= 2.0 / (np.pi - 2.0):
            raise RecipeError(f"objective.times_scale is {self.scale:g}, but must be from -1 to 1.75")

    def weights(self, timesteps: int) -> Float64:
        """Probability of each timestep, float64 [T], summing to 1. RecipeError where begin and end are none of them."""
        if self.name in ("range", "only") and not 0 <= self.begin < self.end <= timesteps:
            raise RecipeError(
                f"objective.times_begin = {self.begin} and times_end = {self.end} do not lie in 0 … {timesteps}",
                todo="begin is included, end is not; begin must be below end",
            )
        if self.name in ("earlier", "later") and not round(self.portion * timesteps):
            raise RecipeError(
                f"objective.times_portion = {self.portion:g} of {timesteps} timesteps is none of them",
                todo=f"favour at least {1 / timesteps:g} of them",
            )
        weights = TIMES[self.name](self, timesteps)
        return np.asarray(weights / weights.sum())

    def draw(self, uniforms: Float64, timesteps: int) -> Int64:
        """Timesteps for uniform numbers in [0, 1), int64 [B]."""
        weights = self.weights(timesteps)
        # Rounding leaves the sum a little below 1: what is above it belongs to the last timestep that can be drawn.
        last = np.flatnonzero(weights)[-1]
        drawn: Int64 = np.minimum(np.searchsorted(np.cumsum(weights), uniforms, side="right"), last)
        return drawn


def _favoured(count: int, start: int, stop: int, inside: float, outside: float = 1.0) -> Float64:
    weights = np.full(count, outside, dtype=np.float64)
    weights[start:stop] = inside
    return weights


def logit_normal(times: Times, count: int) -> Float64:
    edges = np.arange(1, count) / count
    below = [NormalDist(times.mean, times.std).cdf(logit) for logit in np.log(edges / (1.0 - edges))]
    return np.diff([0.0, *below, 1.0])


def mode(times: Times, count: int) -> Float64:
    """Equation 20 has no inverse in closed form; it falls, so halving an interval finds it to the last bit."""
    edges = np.arange(count + 1) / count
    low, high = np.zeros_like(edges), np.ones_like(edges)
    for _ in range(60):
        u = (low + high) / 2.0
        above = 1.0 - u - times.scale * (np.cos(np.pi * u / 2.0) ** 2 - 1.0 + u) > edges
        low, high = np.where(above, u, low), np.where(above, high, u)
    return np.maximum(np.diff(1.0 - low), 0.0)


TIMES: dict[str, Callable[[Times, int], Float64]] = {
    "uniform": lambda it, count: np.ones(count),
    "earlier": lambda it, count: _favoured(count, 0, round(it.portion * count), it.multiplier),
    "later": lambda it, count: _favoured(count, count - round(it.portion * count), count, it.multiplier),
    "range": lambda it, count: _favoured(count, it.begin, it.end, it.multiplier),
    "only": lambda it, count: _favoured(count, it.begin, it.end, 1.0, outside=0.0),
    "logit_normal": logit_normal,
    "mode": mode,
}
"""(times, T) → weight of each timestep, float64 [T]."""

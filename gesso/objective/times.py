"""How timesteps are drawn: the probability of each of T timesteps, as a plain array.

One uniform number per picture and the cumulative sum of these probabilities give the timestep, so a draw is a pure
function of (seed, epoch, row) like every other.

    uniform    every timestep alike
    later      the last `portion` of the timesteps weighs `multiplier` times as much (earlier: the first)
    range      the timesteps from `begin` up to, not including, `end` weigh `multiplier` times as much
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A distribution over timesteps."""

    name: str = "uniform"
    multiplier: float = 1.0
    portion: float = 0.25
    begin: int = 0
    end: int = 1000

    def weights(self, timesteps: int) -> Float64:
        """Probability of each timestep, float64 [T], summing to 1."""
        if self.multiplier <= 0:
            raise RecipeError(
                f"objective.times_multiplier is {self.multiplier:g}, but must be above 0",
                todo="1 draws all timesteps alike, 3 draws the favoured ones three times as often",
            )
        if not 0 < self.portion <= 1:
            raise RecipeError(f"objective.times_portion is {self.portion:g}, but is a share: above 0, at most 1")
        weights = np.ones(timesteps, dtype=np.float64)
        favoured = round(self.portion * timesteps)
        if self.name == "earlier":
            weights[:favoured] *= self.multiplier
        elif self.name == "later":
            weights[timesteps - favoured :] *= self.multiplier
        elif self.name == "range":
            if not 0 <= self.begin < self.end <= timesteps:
                raise RecipeError(
                    f"objective.times_begin = {self.begin} and times_end = {self.end} do not lie in 0 … {timesteps}",
                    todo="begin is included, end is not; begin must be below end",
                )
            weights[self.begin : self.end] *= self.multiplier
        elif self.name != "uniform":
            raise RecipeError(f'objective.times = "{self.name}" is not known: uniform, earlier, later or range')
        return np.asarray(weights / weights.sum())

    def draw(self, uniforms: Float64, timesteps: int) -> Int64:
        """Timesteps for uniform numbers in [0, 1), int64 [B]."""
        edges = np.cumsum(self.weights(timesteps))
        return np.minimum(np.searchsorted(edges, uniforms, side="right"), timesteps - 1).astype(np.int64)

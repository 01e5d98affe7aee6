"""An objective is frozen values: schedule × prediction × weighting × times × noise. Equal ones are equal objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError
from gesso.keys import uniforms
from gesso.objective.coefficients import Coefficients, solvable
from gesso.objective.noise import Noise
from gesso.objective.predictions import PREDICTIONS
from gesso.objective.schedules import Schedule
from gesso.objective.times import Times
from gesso.objective.weightings import Weighting


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is asked of the network, at which noise levels, and how much each counts."""

    schedule: Schedule = field(default_factory=Schedule)
    prediction: str = "epsilon"
    weighting: Weighting = field(default_factory=Weighting)
    times: Times = field(default_factory=Times)
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise RecipeError(
                f'the prediction type "{self.prediction}" is not known', todo="use " + ", ".join(PREDICTIONS)
            )
        solvable(self.plain(np.arange(self.schedule.timesteps)))
        self.times.weights(self.schedule.timesteps)

    @cached_property
    def _signal(self) -> Float64:
        return self.schedule.signal()

    def draw(self, seed: int, places: Sequence[tuple[int, ...]]) -> Int64:
        """A timestep for each place (epoch, row), int64 [B]."""
        return self.times.draw(uniforms(seed, "timestep", places), self.schedule.timesteps)

    def plain(self, timesteps: Int64) -> Coefficients:
        """The coefficients at integer timesteps, every picture counting 1."""
        bar = self._signal[timesteps]
        a, b = np.sqrt(bar), np.sqrt(1.0 - bar)
        p, q = PREDICTIONS[self.prediction](a, b)
        one = np.ones_like(a)
        return Coefficients(a=a, b=b, c_in=one, c_noise=timesteps.astype(np.float64), p=p, q=q, w=one)

    def at(self, timesteps: Int64) -> Coefficients:
        """The coefficients at integer timesteps, weighted."""
        return self.weighting.apply(self.plain(timesteps))

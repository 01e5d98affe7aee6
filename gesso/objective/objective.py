"""An objective is frozen values, a row of each file here. Equal ones are equal objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError
from gesso.keys import uniforms
from gesso.objective.coefficients import Coefficients, solvable
from gesso.objective.losses import Loss
from gesso.objective.noise import Noise
from gesso.objective.predictions import PREDICTIONS
from gesso.objective.schedules import Levels, NoiseSchedule, Schedule
from gesso.objective.times import Times
from gesso.objective.weightings import Weighting


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is asked of the network, at which noise levels, and how much each counts. RecipeError where it cannot be."""

    schedule: NoiseSchedule = field(default_factory=Schedule)
    prediction: str = "epsilon"
    weighting: Weighting = field(default_factory=Weighting)
    loss: Loss = field(default_factory=Loss)
    dream: float | None = None
    """Power p of DREAM's λ = b^p (Zhou et al. 2023, arXiv:2312.00210, section 3.3); None for no DREAM."""
    times: Times = field(default_factory=Times)
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise RecipeError(
                f'the prediction type "{self.prediction}" is not known', todo="use " + ", ".join(PREDICTIONS)
            )
        weighted = self.schedule.weighting != "uniform"
        if weighted and self.weighting.name != "uniform":
            raise RecipeError(
                f'objective.weighting is "{self.weighting.name}", but EDM weighs noise levels already: by 1/sigma² '
                "with objective.edm_style, by its preconditioning in an EDM model",
                todo='set objective.weighting = "uniform"',
            )
        if self.dream is not None and (weighted or self.prediction != "epsilon"):
            raise RecipeError(
                f'objective.dream corrects noise that is predicted as it was mixed in; here "{self.prediction}" is '
                "predicted" + (" the EDM way" if weighted else ""),
                todo="switch objective.dream off, or train a model that predicts epsilon, without objective.edm_style",
            )
        solvable(self.measured(np.arange(self.schedule.timesteps)))
        self.times.weights(self.schedule.timesteps)

    @cached_property
    def _levels(self) -> Levels:
        return self.schedule.levels()

    def draw(self, seed: int, places: Sequence[tuple[int, ...]]) -> Int64:
        """A timestep for each place (epoch, row), int64 [B]."""
        return self.times.draw(uniforms(seed, "timestep", places), self.schedule.timesteps)

    def timesteps_of(self, c_noise: Float64) -> Int64:
        """The timesteps whose coefficients have these c_noise, int64 [B]; EDM's c_noise is no timestep."""
        return np.searchsorted(self._levels.c_noise, c_noise).astype(np.int64)

    def measured(self, timesteps: Int64) -> Coefficients:
        """The coefficients at integer timesteps for plain squared error, as held-out pictures are measured."""
        at = self._levels.at(timesteps)
        p, q = PREDICTIONS[self.prediction](at, self.schedule.sigma_data)
        c = Coefficients(a=at.a, b=at.b, c_in=at.c_in, c_noise=at.c_noise, p=p, q=q, w=np.ones_like(p))
        return Weighting(name=self.schedule.weighting).apply(c)

    def plain(self, timesteps: Int64) -> Coefficients:
        """The coefficients at integer timesteps, every picture counting as it does by itself: for class pictures."""
        return self._with_loss(self.measured(timesteps), timesteps)

    def at(self, timesteps: Int64) -> Coefficients:
        """The coefficients at integer timesteps, weighted: for the pictures to be learned."""
        c = self._with_loss(self.weighting.apply(self.measured(timesteps)), timesteps)
        return c if self.dream is None else replace(c, dream=c.b**self.dream)

    def _with_loss(self, c: Coefficients, timesteps: Int64) -> Coefficients:
        return self.loss.apply(c, timesteps / self.schedule.timesteps)

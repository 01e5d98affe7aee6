"""Noise schedules: how much picture (a) and how much noise (b) there is at each timestep.

A schedule is a frozen value with `signal()`: the cumulative alpha-bar of every timestep, float64 [T]; a = √alpha-bar,
b = √(1 − alpha-bar). The names and numbers of the beta schedules are those of diffusers' scheduler configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gesso.arrays import Float64
from gesso.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The discrete variance-preserving schedule of DDPM (Ho et al. 2020, arXiv:2006.11239)."""

    betas: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_snr: bool = False
    """Rescale so that the last timestep holds no signal (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    given: tuple[float, ...] = ()
    """Betas listed one by one (`trained_betas`), instead of a named schedule."""

    def signal(self) -> Float64:
        """alpha-bar of every timestep, float64 [T], falling."""
        bar = np.cumprod(1.0 - self._betas(), dtype=np.float64)
        if not self.zero_snr:
            return bar
        root = np.sqrt(bar)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return np.asarray(np.square(root))

    def _betas(self) -> Float64:
        if self.given:
            return np.array(self.given, dtype=np.float64)
        if self.betas == "scaled_linear":
            return np.asarray(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps)) ** 2
        if self.betas == "linear":
            return np.asarray(np.linspace(self.beta_start, self.beta_end, self.timesteps))
        if self.betas == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17
            edge = np.cos((np.arange(self.timesteps + 1) / self.timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.asarray(np.minimum(1.0 - edge[1:] / edge[:-1], 0.999))
        raise RecipeError(
            f'the model\'s noise schedule "{self.betas}" is not known',
            todo="gesso knows scaled_linear, linear and squaredcos_cap_v2; check scheduler/scheduler_config.json",
        )


def from_scheduler(config: Mapping[str, Any], *, zero_snr: bool | None = None) -> Schedule:
    """The schedule that a model was trained with, from its diffusers scheduler configuration.

    RecipeError for a configuration whose numbers are none.
    """
    given = config.get("trained_betas") or ()
    if not isinstance(given, list | tuple):
        raise _lacks("trained_betas", given)
    return Schedule(
        betas=str(config.get("beta_schedule", "scaled_linear")),
        beta_start=_number(config.get("beta_start", 0.00085), "beta_start"),
        beta_end=_number(config.get("beta_end", 0.012), "beta_end"),
        timesteps=len(given) or int(_number(config.get("num_train_timesteps", 1000), "num_train_timesteps")),
        zero_snr=bool(config.get("rescale_betas_zero_snr", False)) if zero_snr is None else zero_snr,
        given=tuple(_number(beta, "trained_betas") for beta in given),
    )


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _lacks(name, value)
    return float(value)


def _lacks(name: str, value: Any) -> RecipeError:
    return RecipeError(
        f"the model's configuration lacks {name}: it is {json.dumps(value)}, must be a number above 0",
        where="scheduler/scheduler_config.json",
        todo="fetch or export the model again, or use another one",
    )

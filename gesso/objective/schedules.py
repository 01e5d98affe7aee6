"""Noise schedules: how much picture (a) and how much noise (b) there is at each timestep, and how the network is told.

A schedule is a frozen value with `levels()`, which get noisier with their index, and `weighting`: the row of
weightings.py that it has by itself.

    Schedule    a = √alpha-bar   b = √(1 − alpha-bar)   DDPM              Ho et al. 2020, arXiv:2006.11239
    Exploding   a = 1            b = sigma              the same so put   Song et al. 2020, arXiv:2011.13456
    Karras      a = 1            b = sigma              EDM models        Karras et al. 2022, arXiv:2206.00364
    Flow        a = 1 − sigma    b = sigma              rectified flow    Esser et al. 2024, arXiv:2403.03206

Names and numbers are those of diffusers' scheduler configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError


class Levels(NamedTuple):
    """Noise levels, float64 [T] each: the network sees c_in·(a·x0 + b·eps), and c_noise, which rises with the index."""

    a: Float64
    b: Float64
    c_in: Float64
    c_noise: Float64

    def at(self, timesteps: Int64) -> Levels:
        return Levels(self.a[timesteps], self.b[timesteps], self.c_in[timesteps], self.c_noise[timesteps])


class NoiseSchedule(Protocol):
    """What an objective asks of a schedule."""

    @property
    def timesteps(self) -> int:
        """How many levels there are."""
        ...

    @property
    def sigma_data(self) -> float:
        """Standard deviation that the latents are taken to have."""
        ...

    @property
    def weighting(self) -> str:
        """How much a picture counts where the recipe says nothing: a name of weightings.py."""
        ...

    def levels(self) -> Levels: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The discrete variance-preserving schedule of DDPM."""

    betas: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_snr: bool = False
    """Rescale so that the last timestep holds no signal (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    given: tuple[float, ...] = ()
    """Betas listed one by one (`trained_betas`), instead of a named schedule."""

    sigma_data: ClassVar[float] = 1.0
    weighting: ClassVar[str] = "uniform"

    def levels(self) -> Levels:
        bar = self.signal()
        return Levels(np.sqrt(bar), np.sqrt(1.0 - bar), np.ones_like(bar), np.arange(len(bar), dtype=np.float64))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploding:
    """EDM style: a variance-preserving schedule as x0 + sigma·eps, each picture's error in x0 over sigma².

    The network sees the very same numbers. Its loss is the usual one for epsilon, alpha-bar times it for v.
    """

    preserving: Schedule

    sigma_data: ClassVar[float] = 1.0
    weighting: ClassVar[str] = "snr"

    @property
    def timesteps(self) -> int:
        return self.preserving.timesteps

    def levels(self) -> Levels:
        bar = self.preserving.signal()
        if bar[-1] == 0.0:
            raise RecipeError(
                "x0 + sigma·eps has no finite sigma at zero terminal SNR",
                todo="switch objective.edm_style or objective.zero_snr off",
            )
        sigma = np.sqrt((1.0 - bar) / bar)
        c_in = 1.0 / np.sqrt(np.square(sigma) + 1.0)
        return Levels(np.ones_like(sigma), sigma, c_in, np.arange(len(bar), dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Karras:
    """The noise of EDM models such as playground-v2.5 (Karras et al. 2022, equation 5 and table 1).

    sigma falls from `sigma_max` to `sigma_min` in T + 1 points, of which training never draws the last. Each picture
    counts 1 in x0 space: the makers of playground-v2.5 leave out the paper's own weighting.
    """

    ramp: str = "karras"
    """karras: even in sigma^(1/rho); exponential: even in log sigma."""
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    timesteps: int = 1000

    weighting: ClassVar[str] = "x0"

    def levels(self) -> Levels:
        sigma = self._sigmas()[1:]
        c_in = 1.0 / np.sqrt(np.square(sigma) + self.sigma_data**2)
        return Levels(np.ones_like(sigma), sigma, c_in, 0.25 * np.log(sigma))

    def _sigmas(self) -> Float64:
        share = np.arange(self.timesteps + 1, dtype=np.float64) / self.timesteps
        if self.ramp == "exponential":
            return np.asarray(self.sigma_min * (self.sigma_max / self.sigma_min) ** share)
        low, high = self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)
        return np.asarray((low + share * (high - low)) ** self.rho)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Straight lines from picture to noise; `shift` above 1 moves the levels towards noise (equation 23)."""

    shift: float = 1.0
    timesteps: int = 1000

    sigma_data: ClassVar[float] = 1.0
    weighting: ClassVar[str] = "uniform"

    def levels(self) -> Levels:
        sigma = np.arange(1, self.timesteps + 1, dtype=np.float64) / self.timesteps
        sigma = self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
        return Levels(1.0 - sigma, sigma, np.ones_like(sigma), self.timesteps * sigma)

"""Every training objective is seven numbers per picture.

    x_t    = a·x0 + b·eps                     what is mixed                                   (1)
    net    = network(c_in·x_t, c_noise)       what the network sees                           (2)
    target = p·x0 + q·eps                     what it should answer                           (3)
    loss   = w·mean((net − target)²)                                                          (4)

Epsilon, v, sample and flow matching are choices of (p, q), schedules choices of (a, b), weightings choices of w.
With det = p·b − q·a, (1) and (3) are two equations in x0 and eps, and any answer y gives both back:

    x0  = (b·y − q·x_t) / det        eps = (p·x_t − a·y) / det                                (5)

An error d in y is an error (b/det)·d in x0, (a/det)·d in eps. Hence a weighting stated for one space is a weighting for
every prediction: w_target = w_space · (det_space/det)², where det_space is b for x0, −a for eps. So Min-SNR, stated
as min(snr, gamma) in x0 space, is right for epsilon, v and sample alike (Hang et al. 2023, arXiv:2303.09556).

All of it is float64: in bfloat16 the first two timesteps of Stable Diffusion would receive no noise at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gesso.arrays import Array, Float64
from gesso.errors import RecipeError

Space = Literal["x0", "eps", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The seven numbers of B pictures, float64 [B] each."""

    a: Float64
    b: Float64
    c_in: Float64
    c_noise: Float64
    p: Float64
    q: Float64
    w: Float64

    def __len__(self) -> int:
        return len(self.a)

    @property
    def det(self) -> Float64:
        return self.p * self.b - self.q * self.a

    @property
    def snr(self) -> Float64:
        """Signal-to-noise ratio a²/b²; infinite where there is no noise."""
        with np.errstate(divide="ignore"):
            return np.square(self.a) / np.square(self.b)

    def rows(self, start: int, stop: int) -> Coefficients:
        at = slice(start, stop)
        return Coefficients(**{name: getattr(self, name)[at] for name in ("a", "b", "c_in", "c_noise", "p", "q", "w")})

    def with_weight(self, weight: Float64, space: Space) -> Coefficients:
        """The same objective weighted by `weight`, which is stated in `space`; see (5)."""
        solvable(self)
        if space == "target":
            factor = np.ones_like(self.a)
        else:
            factor = np.square((self.b if space == "x0" else self.a) / self.det)
        return replace(self, w=weight * factor)


def solvable(c: Coefficients) -> None:
    """Raise where the target does not determine the picture (epsilon where no signal is left)."""
    lost = np.flatnonzero(np.abs(c.det) < 1e-12)
    if len(lost):
        raise RecipeError(
            f"the prediction does not determine the picture at timestep {c.c_noise[lost[0]]:g}: "
            "epsilon cannot be predicted at zero terminal SNR",
            todo='set objective.prediction = "v_prediction" or switch objective.zero_snr off',
        )


def mix(c: Coefficients, x0: Array, eps: Array) -> Array:
    """x_t of equation (1) for x0, eps [B, …]."""
    return per_row(c.a, x0) * x0 + per_row(c.b, x0) * eps


def target(c: Coefficients, x0: Array, eps: Array) -> Array:
    """The target of equation (3) for x0, eps [B, …]."""
    return per_row(c.p, x0) * x0 + per_row(c.q, x0) * eps


def recover(c: Coefficients, x_t: Array, y: Array) -> tuple[Array, Array]:
    """x0 and eps from the network's answer y, equation (5)."""
    solvable(c)
    x0 = (per_row(c.b, y) * y - per_row(c.q, y) * x_t) / per_row(c.det, y)
    eps = (per_row(c.p, y) * x_t - per_row(c.a, y) * y) / per_row(c.det, y)
    return x0, eps


def per_row(value: Float64, like: Array) -> Float64:
    """[B] shaped to multiply [B, …]."""
    return value.reshape((-1,) + (1,) * (like.ndim - 1))

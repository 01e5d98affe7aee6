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

Two numbers more are there where they are asked for: `huber` makes the error of (4) robust, `dream` corrects its noise
by what the network would have answered.

All of it is float64: in bfloat16 the first two timesteps of Stable Diffusion would receive no noise at all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from gesso.arrays import Array, Float64
from gesso.errors import RecipeError

Space = Literal["x0", "eps", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The seven numbers of B pictures, float64 [B] each, and two that may be left out."""

    a: Float64
    b: Float64
    c_in: Float64
    c_noise: Float64
    p: Float64
    q: Float64
    w: Float64
    huber: Float64 | None = None
    """c of the pseudo-Huber error 2c(√(d² + c²) − c) in place of d² (losses.py); infinite: d²."""
    dream: Float64 | None = None
    """λ of DREAM (Zhou et al. 2023, arXiv:2312.00210): eps becomes eps + λ(eps − what a first answer takes it for)."""

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
        return Coefficients(**{name: value[at] for name, value in self._given().items()})

    def joined(self, other: Coefficients) -> Coefficients:
        """These rows, then those of `other`."""
        mine, theirs = self._given(), other._given()
        for name, neutral in (("huber", np.inf), ("dream", 0.0)):
            if name in mine or name in theirs:
                mine.setdefault(name, np.full(len(self), neutral))
                theirs.setdefault(name, np.full(len(other), neutral))
        return Coefficients(**{name: np.concatenate([value, theirs[name]]) for name, value in mine.items()})

    def _given(self) -> dict[str, Float64]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

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

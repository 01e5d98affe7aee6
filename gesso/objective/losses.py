"""How an error d of the network's answer counts, beside its square; c is where it turns from square to linear.

    l2          d²
    huber       2c(√(d² + c²) − c)       pseudo-Huber: c → ∞ is d²          Khrapov et al. 2024, arXiv:2403.16728
    smooth_l1   2(√(d² + c²) − c)        the same over c: c → 0 is 2|d|

c changes with the noise, so that no error is cut short where fine detail is learned:

    constant      c = huber_c
    exponential   c = huber_c^(t/T)                                from 1 to huber_c over the timesteps
    snr           c = (1 − huber_c)/(1 + sigma)² + huber_c         from 1 to huber_c over sigma = b/a
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gesso.arrays import Float64
from gesso.errors import RecipeError
from gesso.objective.coefficients import Coefficients

LOSSES = ("l2", "huber", "smooth_l1")
TURNS: dict[str, Callable[[float, Float64, Float64], Float64]] = {
    "constant": lambda c, share, snr: np.full_like(share, c),
    "exponential": lambda c, share, snr: c**share,
    "snr": lambda c, share, snr: (1.0 - c) / np.square(1.0 + snr**-0.5) + c,
}
"""(huber_c, t/T [B], snr [B]) → c [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss by name; `huber_c`, above 0 and at most 1, and its schedule are those of huber and smooth_l1."""

    name: str = "l2"
    huber_c: float = 0.1
    schedule: str = "snr"

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise RecipeError(f'objective.loss "{self.name}" is not known', todo="use " + ", ".join(LOSSES))
        if self.schedule not in TURNS:
            raise RecipeError(
                f'objective.huber_schedule "{self.schedule}" is not known', todo="use " + ", ".join(TURNS)
            )
        if not 0.0 < self.huber_c <= 1.0:
            raise RecipeError(f"objective.huber_c is {self.huber_c:g}, but must be above 0 and at most 1")

    def apply(self, c: Coefficients, share: Float64) -> Coefficients:
        """The same objective under this loss; `share` is t/T of each picture, float64 [B]."""
        if self.name == "l2":
            return c
        with np.errstate(divide="ignore"):  # no signal, sigma = ∞: c = huber_c
            turn = TURNS[self.schedule](self.huber_c, share, c.snr)
        return replace(c, huber=turn, w=c.w / turn if self.name == "smooth_l1" else c.w)

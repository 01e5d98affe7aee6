"""How much each noise level counts: a function of snr = a²/b², stated once in a named space.

`Coefficients.with_weight` carries it to whatever the network predicts, so no weighting here knows of epsilon or v.

    uniform        1                          in the target's own space
    min_snr        min(snr, gamma)            in x0 space      Hang et al. 2023, arXiv:2303.09556, section 3.4
    soft_min_snr   snr·gamma/(snr + gamma)    in x0 space      Crowson et al. 2024, arXiv:2401.11605, appendix B
    debiased       1/√snr                     in eps space     Yu et al. 2023, arXiv:2310.08442, equation 10
    p2             1/(1 + snr)^gamma          in eps space     Choi et al. 2022, arXiv:2204.00227, equation 8
    snr            snr                        in x0 space      what EDM style has by itself: the error over sigma²
    x0             1                          in x0 space      what EDM models have by themselves
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float64
from gesso.errors import RecipeError
from gesso.objective.coefficients import Coefficients, Space

Weigh = Callable[[Float64, float], Float64]

WEIGHTINGS: dict[str, tuple[Space, Weigh]] = {
    "uniform": ("target", lambda snr, gamma: np.ones_like(snr)),
    "min_snr": ("x0", lambda snr, gamma: np.minimum(snr, gamma)),
    "soft_min_snr": ("x0", lambda snr, gamma: gamma * snr / (snr + gamma)),
    "debiased": ("eps", lambda snr, gamma: np.maximum(snr, 1e-3) ** -0.5),
    "p2": ("eps", lambda snr, gamma: (1.0 + snr) ** -gamma),
    "snr": ("x0", lambda snr, gamma: snr),
    "x0": ("x0", lambda snr, gamma: np.ones_like(snr)),
}
GAMMA = {"min_snr": 5.0, "soft_min_snr": 5.0, "p2": 1.0}
"""The usual gamma of those weightings that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """A weighting by name with its gamma (0: the usual one). "uniform" leaves a schedule the weighting of its own."""

    name: str = "uniform"
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in WEIGHTINGS:
            raise RecipeError(f'the weighting "{self.name}" is not known', todo="use " + ", ".join(WEIGHTINGS))
        if not 0.0 <= self.gamma < np.inf:
            raise RecipeError(
                f"objective.gamma is {self.gamma:g}, but must not be negative",
                todo="0 takes the weighting's usual one, which is 5 for min_snr",
            )

    def apply(self, c: Coefficients) -> Coefficients:
        """The same objective under this weighting, in place of the weight it had."""
        if self.name == "uniform":
            return c
        space, weigh = WEIGHTINGS[self.name]
        return c.with_weight(weigh(c.snr, self.gamma or GAMMA.get(self.name, 1.0)), space)

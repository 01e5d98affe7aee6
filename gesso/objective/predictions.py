"""What the network is asked for: rows (p, q) of the table of objectives, by name.

epsilon        target = eps                  Ho et al. 2020, arXiv:2006.11239, equation 14
v_prediction   target = a·eps − b·x0         Salimans & Ho 2022, arXiv:2202.00512, section 4
sample         target = x0
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gesso.arrays import Float64

Row = Callable[[Float64, Float64], tuple[Float64, Float64]]


def epsilon(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    return np.zeros_like(a), np.ones_like(a)


def v_prediction(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    return -b, a


def sample(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    return np.ones_like(a), np.zeros_like(a)


PREDICTIONS: dict[str, Row] = {"epsilon": epsilon, "v_prediction": v_prediction, "sample": sample}

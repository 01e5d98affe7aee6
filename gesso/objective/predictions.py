"""What the network is asked for: rows (p, q) of the table of objectives, by name.

    epsilon        target = eps                      Ho et al. 2020, arXiv:2006.11239, equation 14
    sample         target = x0
    v_prediction   target = a·eps − b·x0             Salimans & Ho 2022, arXiv:2202.00512, section 4
    edm            target = F of equation 7          Karras et al. 2022, arXiv:2206.00364
    flow           target = eps − x0                 Esser et al. 2024, arXiv:2403.03206, equation 13

F and v are one thing. With the picture brought to variance 1 as x = x0/sigma_data, the network's input is

    c_in·x_t = (c_in·a·sigma_data)·x + (c_in·b)·eps

whose two shares are a cosine and a sine, and v is cosine·eps − sine·x as ever. F is −v.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gesso.arrays import Float64
from gesso.objective.schedules import Levels

Row = Callable[[Levels, float], tuple[Float64, Float64]]
"""(noise levels [B], sigma_data) → p, q, float64 [B] each."""


def epsilon(at: Levels, sigma_data: float) -> tuple[Float64, Float64]:
    return np.zeros_like(at.a), np.ones_like(at.a)


def sample(at: Levels, sigma_data: float) -> tuple[Float64, Float64]:
    return np.ones_like(at.a), np.zeros_like(at.a)


def v_prediction(at: Levels, sigma_data: float) -> tuple[Float64, Float64]:
    return -at.b * at.c_in / sigma_data, at.a * at.c_in * sigma_data


def edm(at: Levels, sigma_data: float) -> tuple[Float64, Float64]:
    p, q = v_prediction(at, sigma_data)
    return -p, -q


def flow(at: Levels, sigma_data: float) -> tuple[Float64, Float64]:
    return -np.ones_like(at.a), np.ones_like(at.a)


PREDICTIONS: dict[str, Row] = {
    "epsilon": epsilon,
    "sample": sample,
    "v_prediction": v_prediction,
    "edm": edm,
    "flow": flow,
}

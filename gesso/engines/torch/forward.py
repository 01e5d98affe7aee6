"""One forward pass over a batch: what the network is shown, what it should answer, and how far off it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch

from gesso.arrays import Array
from gesso.data.batch import Batch
from gesso.objective.coefficients import Coefficients

Cond = Mapping[str, torch.Tensor]
Ask = Callable[[torch.Tensor, torch.Tensor, Cond], torch.Tensor]
"""The network's float32 answer to (c_in·x_t, c_noise, cond)."""
Send = Callable[[Array], torch.Tensor]
"""An array on the device."""
Base = Callable[[], AbstractContextManager[None]]
"""While it is entered, the network is what it was before training."""


def row_errors(batch: Batch, c: Coefficients, *, ask: Ask, send: Send, base: Base) -> torch.Tensor:
    """The error of each row, mean over its values, unweighted, float32 [B]."""
    view = _Numbers(c, send)
    x0, eps_in, eps = (send(each) for each in (batch.x0, batch.eps_in, batch.eps_target))
    c_noise = send(c.c_noise.astype(np.float32))
    cond = {name: send(value) for name, value in batch.cond.items()}
    if c.dream is not None and c.dream.any():
        correction = _corrections(x0, eps_in, eps, c_noise, cond, view, ask)
        eps_in, eps = eps_in + correction, eps + correction
    x = view["c_in"] * (view["a"] * x0 + view["b"] * eps_in)
    wanted = view["p"] * x0 + view["q"] * eps
    if batch.teacher is not None and batch.teacher.any():
        taught = send(np.flatnonzero(batch.teacher))
        with torch.no_grad(), base():
            wanted[taught] = ask(x[taught], c_noise[taught], _chosen(cond, taught))
    error = _counted(ask(x, c_noise, cond) - wanted, view)
    if batch.mask is not None:
        error = error * send(batch.mask)
    return torch.mean(error.flatten(1), dim=1)


@torch.no_grad()
def _corrections(
    x0: torch.Tensor,
    eps_in: torch.Tensor,
    eps: torch.Tensor,
    c_noise: torch.Tensor,
    cond: Cond,
    view: _Numbers,
    ask: Ask,
) -> torch.Tensor:
    """DREAM's λ(eps − eps_hat) of each row; the network is asked for those rows alone whose λ is not 0."""
    rows = view.send(np.flatnonzero(np.asarray(view.c.dream)))
    a, b, c_in, p, det, strength = (view[name][rows] for name in ("a", "b", "c_in", "p", "det", "dream"))
    x_t = a * x0[rows] + b * eps_in[rows]
    answer = ask(c_in * x_t, c_noise[rows], _chosen(cond, rows))
    # Equation (5): the noise that the answer takes x_t for.
    guessed = (p * x_t - a * answer) / det
    found = torch.zeros_like(eps)
    found[rows] = strength * (eps[rows] - guessed)
    return found


def _chosen(cond: Cond, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in cond.items()}


def _counted(difference: torch.Tensor, view: _Numbers) -> torch.Tensor:
    """Each value's error: squared, or pseudo-Huber where the row has a finite c."""
    square = difference.square()
    if view.c.huber is None:
        return square
    c = view["huber"]
    finite = torch.where(torch.isfinite(c), c, torch.ones_like(c))
    # 2c(√(d² + c²) − c) without the difference, in which small errors would drown.
    robust = 2.0 * finite * square / ((square + finite.square()).sqrt() + finite)
    return torch.where(torch.isfinite(c), robust, square)


class _Numbers:
    """The coefficients by name, float32 [B, 1, 1, 1] on the device."""

    def __init__(self, c: Coefficients, send: Send) -> None:
        self.c, self.send = c, send

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.send(np.asarray(getattr(self.c, name), dtype=np.float32)).view(-1, 1, 1, 1)

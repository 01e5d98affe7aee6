"""What a batch shows the network and wants of it, and how far off an answer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ops

from gesso.arrays import Array, Float32
from gesso.data.batch import Batch
from gesso.objective.coefficients import Coefficients

Ask = Callable[[Float32, Float32, Mapping[str, Array]], Float32]
"""The network's answer to (c_in·x_t, c_noise, cond), without gradient."""
Base = Callable[[], AbstractContextManager[None]]
"""While it is entered, the network is what it was before training."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A batch as the network gets it: c_in·x_t, c_noise and cond; and the answer that is wanted."""

    x: Float32
    c_noise: Float32
    cond: Mapping[str, Array]
    wanted: Float32


def shown(batch: Batch, c: Coefficients, *, ask: Ask, base: Base) -> Shown:
    """Everything before the pass that has a gradient, float32; DREAM's and the teacher's answers are among it."""
    view = _Numbers(c)
    x0, eps_in, eps, c_noise = batch.x0, batch.eps_in, batch.eps_target, c.c_noise.astype(np.float32)
    if c.dream is not None and c.dream.any():
        correction = _corrections(batch, c_noise, view, ask)
        eps_in, eps = eps_in + correction, eps + correction
    x = view["c_in"] * (view["a"] * x0 + view["b"] * eps_in)
    wanted = view["p"] * x0 + view["q"] * eps
    if batch.teacher is not None and batch.teacher.any():
        rows = np.flatnonzero(batch.teacher)
        with base():
            wanted[rows] = ask(x[rows], c_noise[rows], _chosen(batch.cond, rows))
    return Shown(x, c_noise, batch.cond, wanted)


def errors(answer: ms.Tensor, wanted: ms.Tensor, c: Coefficients, mask: ms.Tensor | None) -> ms.Tensor:
    """The error of each row, mean over its values, unweighted, float32 [B]: squared, or pseudo-Huber for a finite c."""
    error = (answer - wanted).square()
    if c.huber is not None:
        finite = np.isfinite(c.huber)
        scale = _rows(np.where(finite, c.huber, 1.0))
        # 2c(√(d² + c²) − c) without the difference, in which small errors would drown.
        robust = 2.0 * scale * error / ((error + scale.square()).sqrt() + scale)
        choice = _rows(finite)
        error = choice * robust + (1.0 - choice) * error
    if mask is not None:
        error = error * mask
    return ops.mean(error.reshape(error.shape[0], -1), 1)


def _corrections(batch: Batch, c_noise: Float32, view: _Numbers, ask: Ask) -> Float32:
    """DREAM's λ(eps − eps_hat) of each row; the network is asked for those rows alone whose λ is not 0."""
    rows = np.flatnonzero(np.asarray(view.c.dream))
    a, b, c_in, p, det, strength = (view[name][rows] for name in ("a", "b", "c_in", "p", "det", "dream"))
    x_t = a * batch.x0[rows] + b * batch.eps_in[rows]
    answer = ask(c_in * x_t, c_noise[rows], _chosen(batch.cond, rows))
    # Equation (5): the noise that the answer takes x_t for.
    guessed = (p * x_t - a * answer) / det
    found = np.zeros_like(batch.eps_target)
    found[rows] = strength * (batch.eps_target[rows] - guessed)
    return found


def _chosen(cond: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return {name: value[rows] for name, value in cond.items()}


def _rows(value: Array) -> ms.Tensor:
    return ms.Tensor(value.astype(np.float32).reshape(-1, 1, 1, 1))


class _Numbers:
    """The coefficients by name, float32 [B, 1, 1, 1]."""

    def __init__(self, c: Coefficients) -> None:
        self.c = c

    def __getitem__(self, name: str) -> Float32:
        return np.asarray(getattr(self.c, name), dtype=np.float32).reshape(-1, 1, 1, 1)

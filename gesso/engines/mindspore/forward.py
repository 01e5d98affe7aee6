"""What a batch shows the network and wants of it, and how far off an answer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from gesso.arrays import Array, Float32
from gesso.data.batch import Batch
from gesso.engines.mindspore import text
from gesso.engines.mindspore.models import Models
from gesso.families.family import Family
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


def robust(c: Coefficients) -> ms.Tensor | None:
    """Pseudo-Huber's c of each row, 0 where the error is squared, float32 [B, 1, 1, 1]; None where all are squared."""
    return None if c.huber is None else _rows(np.where(np.isfinite(c.huber), c.huber, 0.0))


def errors(answer: ms.Tensor, wanted: ms.Tensor, huber: ms.Tensor | None, mask: ms.Tensor | None) -> ms.Tensor:
    """The error of each row, mean over its values, unweighted, float32 [B]; `huber` as `robust` gives it."""
    error = (answer - wanted).square()
    if huber is not None:
        choice = (huber > 0).astype(ms.float32)
        scale = huber + (1.0 - choice)
        # 2c(√(d² + c²) − c) without the difference, in which small errors would drown.
        softened = 2.0 * scale * error / ((error + scale.square()).sqrt() + scale)
        error = choice * softened + (1.0 - choice) * error
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


class Gradient(nn.Cell):  # type: ignore[misc]
    """The loss of some rows, Σ share·error; its gradients go into `sums`, or on top of what is there (`adds`).

    In graph mode it is one graph. `names` are those of what the denoiser is conditioned on, in the order in which it
    is given.
    """

    def __init__(
        self,
        models: Models,
        family: Family,
        names: Sequence[str],
        trained: Sequence[ms.Parameter],
        sums: Sequence[ms.Parameter],
        *,
        adds: bool,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.predict, self.names = models.get(family.denoiser), family.predict, tuple(names)
        self.reading = text.Reading(models, family) if text.reads(names, family) else None
        self.gradient = ms.value_and_grad(self.loss, None, ms.ParameterTuple(trained))
        self.sums, self.keep, self.each = ms.ParameterTuple(sums), _added if adds else _kept, ops.HyperMap()

    # Each input by its name: MindSpore never lets go of a cell that takes any number of them.
    def construct(
        self,
        x: ms.Tensor,
        c_noise: ms.Tensor,
        wanted: ms.Tensor,
        share: ms.Tensor,
        huber: ms.Tensor | None,
        mask: ms.Tensor | None,
        cond: tuple[ms.Tensor, ...],
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """What `loss` is given; returns it, and the squared norm of each of the sums, float32 [n]."""
        loss, gradients = self.gradient(x, c_noise, wanted, share, huber, mask, cond)
        return loss, ops.stack(self.each(self.keep, self.sums, gradients))

    def loss(
        self,
        x: ms.Tensor,
        c_noise: ms.Tensor,
        wanted: ms.Tensor,
        share: ms.Tensor,
        huber: ms.Tensor | None,
        mask: ms.Tensor | None,
        cond: tuple[ms.Tensor, ...],
    ) -> ms.Tensor:
        known = {}
        for at in range(len(self.names)):
            known[self.names[at]] = cond[at]
        if self.reading is not None:
            known = self.reading(known)
        answer = self.predict(self.net, x, c_noise, known)
        return (errors(answer.astype(ms.float32), wanted, huber, mask) * share).sum()


def _kept(place: ms.Parameter, gradient: ms.Tensor) -> ms.Tensor:
    return _squared(ops.assign(place, gradient))


def _added(place: ms.Parameter, gradient: ms.Tensor) -> ms.Tensor:
    return _squared(ops.assign_add(place, gradient))


def _squared(value: ms.Tensor) -> ms.Tensor:
    """The squared norm; half of the time of square and sum. (ops.L2Loss drifts: 2 percent over 15 million numbers.)"""
    flat = value.reshape(1, -1)
    return ops.MatMul(transpose_b=True)(flat, flat).reshape(())


class _Numbers:
    """The coefficients by name, float32 [B, 1, 1, 1]."""

    def __init__(self, c: Coefficients) -> None:
        self.c = c

    def __getitem__(self, name: str) -> Float32:
        return np.asarray(getattr(self.c, name), dtype=np.float32).reshape(-1, 1, 1, 1)

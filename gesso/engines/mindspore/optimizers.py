"""What AdamW, Adam and SGD remember, and which weights they move when; how far is said in moves.py.

The state has PyTorch's names and meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from gesso.arrays import Array
from gesso.engines.engine import Optim
from gesso.engines.mindspore import moves
from gesso.errors import RecipeError, StorageError

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""What each optimiser remembers of a parameter, beside the number of its steps."""
STEP = "step"
GROWTH_INTERVAL = 2000
"""Steps without an overflow after which fp16's loss scale doubles, as in PyTorch."""
Mode = Callable[[], AbstractContextManager[None]]
"""In which cells are called: eagerly, or as graphs."""


class Scaler:
    """fp16's loss scale: halved by every gradient that is not finite, doubled after a long time without one."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled, self.scale, self.tracker = enabled, 2.0**14 if enabled else 1.0, 0

    def update(self, *, finite: bool) -> None:
        if not self.enabled:
            return
        self.tracker = self.tracker + 1 if finite else 0
        if not finite:
            self.scale *= 0.5
        elif self.tracker == GROWTH_INTERVAL:
            self.scale, self.tracker = self.scale * 2.0, 0


class Stepper:
    """One optimiser over all that is trained; a group (the name's first word) has its own rate, or rests."""

    def __init__(self, optim: Optim, trained: Mapping[str, ms.Parameter], scaler: Scaler, mode: Mode) -> None:
        if optim.name not in MOMENTS:
            raise RecipeError(
                f'the MindSpore engine has no optimiser "{optim.name}"', todo=f"use one of {', '.join(MOMENTS)}"
            )
        self.optim, self.trained, self.scaler = optim, trained, scaler
        self.taken = dict.fromkeys(trained, 0)
        self.moments = {
            f"{kind}/{name}": ms.Parameter(ops.zeros_like(value), name=f"{kind}/{name}", requires_grad=False)
            for kind in MOMENTS[optim.name]
            if kind != "momentum_buffer" or optim.betas[0]
            for name, value in trained.items()
        }
        self.sums = {
            name: ms.Parameter(ops.zeros_like(value), name=f"sum/{name}", requires_grad=False)
            for name, value in trained.items()
        }
        self.mode, self._clear = mode, moves.Each(moves.clear, list(self.sums.values()))
        self._moves: dict[tuple[str, ...], moves.Each] = {}

    def clear(self) -> None:
        """Make all sums of gradients 0."""
        with self.mode():
            self._clear(_scalars(0.0))

    def step(self, lr: Mapping[str, float], squares: Mapping[str, float]) -> float:
        """Move the weights of the groups in `lr` by the sums of their gradients, which carry the scaler's factor.

        `squares` are the squared norms of those sums. Returns the norm, before clipping, of all that count. Where it is
        not finite, nothing has moved.
        """
        own = [name for name in squares if _group(name) in lr]
        if not own:
            return 0.0
        norm = math.sqrt(sum(squares[name] for name in own)) / self.scaler.scale
        finite = math.isfinite(norm)
        if finite:
            factor = min(1.0, self.optim.clip / (norm + 1e-6)) if self.optim.clip else 1.0
            moving = {_layer(name) for name in own if squares[name] or self.taken[name] or _group(name) == "tokens"}
            self._move([name for name in own if _layer(name) in moving], factor / self.scaler.scale, lr)
        self.scaler.update(finite=finite)
        return norm

    def _move(self, names: Sequence[str], factor: float, lr: Mapping[str, float]) -> None:
        alike: dict[tuple[str, int], list[str]] = {}
        for name in names:
            self.taken[name] += 1
            alike.setdefault((_group(name), self.taken[name]), []).append(name)
        for (group, taken), some in alike.items():
            numbers = moves.numbers(self.optim, taken, lr[group], self._decay(group))
            with self.mode():
                self._together(tuple(some))(_scalars(factor, *numbers))

    def _together(self, names: tuple[str, ...]) -> moves.Each:
        """What moves these parameters, for all of which the same numbers hold."""
        if names not in self._moves:
            kinds = [kind for kind in MOMENTS[self.optim.name] if f"{kind}/{names[0]}" in self.moments]
            moments = [[self.moments[f"{kind}/{name}"] for name in names] for kind in kinds]
            own = [[places[name] for name in names] for places in (self.sums, self.trained)]
            self._moves[names] = moves.Each(moves.RULES[self.optim.name, len(kinds)], *own, *moments)
        return self._moves[names]

    def _decay(self, group: str) -> float:
        # The length of a word's vector means something; pulling it to 0 would undo what the word learns.
        if group == "tokens":
            return 0.0
        return self.optim.text_weight_decay if group.startswith("text_encoder") else self.optim.weight_decay

    # ---------------------------------------------------------------- state

    def read(self) -> dict[str, Array]:
        """`<state>/<parameter>` as PyTorch's has it, and the loss scale; nothing of what has not moved yet."""
        found: dict[str, Array] = {
            key: value.asnumpy().copy()
            for key, value in self.moments.items()
            if self.taken[key.split("/", 1)[1]] or key.startswith("momentum_buffer/")
        }
        if self.optim.name != "sgd":
            found |= {f"{STEP}/{name}": np.array(n, dtype=np.float32) for name, n in self.taken.items() if n}
        if self.scaler.enabled:
            found["scaler"] = np.array([self.scaler.scale, self.scaler.tracker], dtype=np.float64)
        return found

    def write(self, saved: Mapping[str, Array]) -> None:
        """The reverse of `read`; StorageError for what this optimiser does not have."""
        self.taken = dict.fromkeys(self.trained, 0)
        for value in self.moments.values():
            ops.assign(value, ops.zeros_like(value))
        for key, array in saved.items():
            kind, _, name = key.partition("/")
            if key == "scaler" and self.scaler.enabled:
                self.scaler.scale, self.scaler.tracker = float(array[0]), int(array[1])
            elif kind == STEP and name in self.taken:
                self.taken[name] = int(array)
            elif key in self.moments and self.moments[key].shape == array.shape:
                ops.assign(self.moments[key], ms.Tensor(np.array(array, dtype=np.float32)))
            else:
                raise StorageError(f'the optimiser state holds "{key}", which this optimiser does not have')


def _scalars(*values: float) -> Any:
    """As inputs of a graph, not constants of it."""
    return ms.mutable(tuple(ms.Tensor(value, ms.float32) for value in values))


def _group(name: str) -> str:
    return name.partition(".")[0]


def _layer(name: str) -> str:
    """What the parameter belongs to: of an adapter's two matrices, whose gradients vanish together, the layer.

    A layer that has never had a gradient has no part in the answer (SDXL reads its text encoders a layer early).
    PyTorch gives it none, and leaves it as it is; MindSpore gives it zeros, by which weight decay would move it.
    """
    return name.partition(".lora_")[0]

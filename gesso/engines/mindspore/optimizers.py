"""AdamW, Adam and SGD with MindSpore's fused operators, and the one way in which they move the weights.

MindSpore's `nn.AdamWeightDecay`, which mindone's scripts use, leaves out Adam's bias correction. The operator below it,

    p −= lr' · (m / (√v + eps') + decay'·p)

is AdamW with it (Loshchilov and Hutter 2019, arXiv:1711.05101), as PyTorch computes it, for the numbers

    lr' = lr·c        eps' = eps·√(1−β2^t)        decay' = decay/c        c = √(1−β2^t)/(1−β1^t)

(Kingma and Ba 2015, arXiv:1412.6980, the end of section 2). One operator for a parameter is a tenth of the time that
three take, decay, assignment and MindSpore's operator Adam. The state has PyTorch's names and meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import ops

from gesso.arrays import Array
from gesso.engines.engine import Optim
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

    def __init__(self, optim: Optim, trained: Mapping[str, ms.Parameter], scaler: Scaler) -> None:
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
        self._adam, self._momentum = ops.AdamWeightDecay(), ops.ApplyMomentum()

    def step(self, lr: Mapping[str, float], gradients: Mapping[str, ms.Tensor]) -> float:
        """Move the weights of the groups in `lr` by their gradients, which carry the scaler's factor.

        Returns the norm, before clipping, of all gradients that count. Where it is not finite, nothing has moved.
        """
        own = {name: value for name, value in gradients.items() if _group(name) in lr}
        if not own:
            return 0.0
        squares = _squares(own)
        norm = math.sqrt(sum(squares.values())) / self.scaler.scale
        finite = math.isfinite(norm)
        if finite:
            factor = min(1.0, self.optim.clip / (norm + 1e-6)) if self.optim.clip else 1.0
            factor /= self.scaler.scale
            moving = {_layer(name) for name in own if squares[name] or self.taken[name] or _group(name) == "tokens"}
            for name, gradient in own.items():
                if _layer(name) in moving:
                    self._move(name, gradient if factor == 1.0 else gradient * factor, lr[_group(name)])
        self.scaler.update(finite=finite)
        return norm

    def _move(self, name: str, gradient: ms.Tensor, lr: float) -> None:
        parameter, decay, optim = self.trained[name], self._decay(name), self.optim
        self.taken[name] += 1
        if decay and optim.name != "adamw":
            gradient, decay = gradient + decay * parameter, 0.0
        if optim.name == "sgd":
            if optim.betas[0]:
                self._momentum(parameter, self.moments[f"momentum_buffer/{name}"], lr, gradient, optim.betas[0])
            else:
                ops.assign(parameter, parameter - lr * gradient)
            return
        first, second = (self.moments[f"{kind}/{name}"] for kind in MOMENTS["adamw"])
        numbers = _numbers(self.taken[name], lr, optim.betas, optim.eps, decay)
        self._adam(parameter, first, second, *numbers, gradient)

    def _decay(self, name: str) -> float:
        group = _group(name)
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


@lru_cache(maxsize=16)  # of one step: hundreds of parameters want the same
def _numbers(taken: int, lr: float, betas: tuple[float, float], eps: float, decay: float) -> tuple[ms.Tensor, ...]:
    """What the operator wants to know of the step after which `taken` have been taken: lr', β1, β2, eps', decay'."""
    first, second = (1.0 - beta**taken for beta in betas)
    c = math.sqrt(second) / first
    return tuple(ms.Tensor(each, ms.float32) for each in (lr * c, *betas, eps * math.sqrt(second), decay / c))


def _group(name: str) -> str:
    return name.partition(".")[0]


def _layer(name: str) -> str:
    """What the parameter belongs to: of an adapter's two matrices, whose gradients vanish together, the layer.

    A layer that has never had a gradient has no part in the answer (SDXL reads its text encoders a layer early).
    PyTorch gives it none, and leaves it as it is; MindSpore gives it zeros, by which weight decay would move it.
    """
    return name.partition(".lora_")[0]


def _squares(values: Mapping[str, ms.Tensor]) -> dict[str, float]:
    """The squared norm of each, brought from the device at once."""
    single = (value if value.dtype == ms.float32 else value.astype(ms.float32) for value in values.values())
    sums = [value.square().sum() for value in single]
    return dict(zip(values, ops.stack(sums).asnumpy().astype(np.float64).tolist(), strict=True))

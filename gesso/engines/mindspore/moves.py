"""AdamW, Adam and SGD with MindSpore's fused operators, on hundreds of parameters at once.

MindSpore's `nn.AdamWeightDecay`, which mindone's scripts use, leaves out Adam's bias correction. The operator below it,

    p −= lr' · (m / (√v + eps') + decay'·p)

is AdamW with it (Loshchilov and Hutter 2019, arXiv:1711.05101), as PyTorch computes it, for the numbers

    lr' = lr·c        eps' = eps·√(1−β2^t)        decay' = decay/c        c = √(1−β2^t)/(1−β1^t)

(Kingma and Ba 2015, arXiv:1412.6980, the end of section 2). One operator for a parameter is a tenth of the time that
three take, decay, assignment and MindSpore's operator Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from gesso.engines.engine import Optim

Numbers = Sequence[ms.Tensor]
"""What the gradient is multiplied with; and what `numbers` says: β1, β2, eps', decay', lr'."""


class Each(nn.Cell):  # type: ignore[misc]
    """A rule carried out on each parameter; of several lists, on those that stand at the same place."""

    def __init__(self, rule: Callable[..., Any], *places: Sequence[ms.Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.rule, self.each = rule, ops.HyperMap()
        self.places = tuple(ms.ParameterTuple(each) for each in places)

    def construct(self, numbers: Numbers) -> ms.Tensor:
        # One answer in place of hundreds, which nobody reads: handing those over would take longer than the rule.
        return ops.depend(numbers[0], self.each(ops.partial(self.rule, numbers), *self.places))


def clear(_: Numbers, place: ms.Parameter) -> ms.Tensor:
    return ops.assign(place, ops.zeros_like(place))


def _adamw(
    numbers: Numbers, gradient: ms.Tensor, value: ms.Parameter, first: ms.Parameter, second: ms.Parameter
) -> Any:
    factor, beta1, beta2, eps, decay, lr = numbers
    return ops.AdamWeightDecay()(value, first, second, lr, beta1, beta2, eps, decay, gradient * factor)


def _adam(numbers: Numbers, gradient: ms.Tensor, value: ms.Parameter, first: ms.Parameter, second: ms.Parameter) -> Any:
    factor, beta1, beta2, eps, decay, lr = numbers
    gradient = gradient * factor + decay * value
    return ops.AdamWeightDecay()(value, first, second, lr, beta1, beta2, eps, 0.0, gradient)


def _momentum(numbers: Numbers, gradient: ms.Tensor, value: ms.Parameter, buffer: ms.Parameter) -> Any:
    factor, beta1, _, _, decay, lr = numbers
    return ops.ApplyMomentum()(value, buffer, lr, gradient * factor + decay * value, beta1)


def _descent(numbers: Numbers, gradient: ms.Tensor, value: ms.Parameter) -> Any:
    factor, _, _, _, decay, lr = numbers
    return ops.assign(value, value - lr * (gradient * factor + decay * value))


RULES: Mapping[tuple[str, int], Callable[..., Any]] = {
    ("adamw", 2): _adamw,
    ("adam", 2): _adam,
    ("sgd", 1): _momentum,
    ("sgd", 0): _descent,
}
"""How a parameter moves, by the optimiser's name and how much it remembers."""


def numbers(optim: Optim, taken: int, lr: float, decay: float) -> tuple[float, ...]:
    """β1, β2, eps', decay', lr' of the step after which `taken` have been taken; momentum, –, –, decay, lr of SGD."""
    if optim.name == "sgd":
        return (optim.betas[0], 0.0, 0.0, decay, lr)
    first, second = (1.0 - beta**taken for beta in optim.betas)
    c = math.sqrt(second) / first
    own = decay / c if optim.name == "adamw" else decay
    return (*optim.betas, optim.eps * math.sqrt(second), own, lr * c)

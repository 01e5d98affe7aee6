"""The learning rate and the EMA decay as pure functions of the optimiser step.

Step s counts from 0, W warm-up steps, T steps in all, progress p = (s − W)/(T − W) after the warm-up. The unit is
optimiser steps: neither devices nor micro-batches appear here, so every decay ends at s = T. The formulas are those of
diffusers' schedules of the same names; "constant" honours the warm-up too, where diffusers' ignores it.

    warm-up                            s/W
    constant, constant_with_warmup     1
    linear                             1 − p
    cosine                             (1 + cos πp)/2                     Loshchilov & Hutter 2017, arXiv:1608.03983
    cosine_with_restarts               the same in each of `cycles` equal parts
    polynomial                         (1 − p)^power, down to an absolute rate of 1e-7
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FLOOR = 1e-7
"""The absolute learning rate at which polynomial ends (diffusers' lr_end)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A learning rate schedule."""

    lr: float
    name: str = "constant"
    steps: int = 1
    warmup: int = 0
    cycles: int = 1
    power: float = 1.0

    def at(self, step: int) -> float:
        """The learning rate of optimiser step `step`, 0-based; at(steps) is where a decay ends."""
        if step < self.warmup:
            return self.lr * step / self.warmup
        if self.name in ("constant", "constant_with_warmup"):
            return self.lr
        progress = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        if self.name == "linear":
            return self.lr * (1.0 - progress)
        if self.name == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.name == "cosine_with_restarts":
            within = 1.0 if progress >= 1.0 else progress * self.cycles % 1.0
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * within))
        if self.name == "polynomial":
            low = min(FLOOR, self.lr)
            return low + (self.lr - low) * float((1.0 - progress) ** self.power)
        raise ValueError(f"no learning rate schedule is called {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The learning rate of one group of parameters: its schedule within `steps` of the run; outside, it rests."""

    rate: Rate
    steps: range

    def at(self, step: int) -> float:
        """The learning rate of optimiser step `step` of the run, 0-based."""
        return self.rate.at(step - self.steps.start)


def rates(courses: Mapping[str, Course], step: int) -> dict[str, float]:
    """The learning rate of each group that learns in a step."""
    return {group: course.at(step) for group, course in courses.items() if step in course.steps}


def ema_decay(step: int, decay: float) -> float:
    """Decay of the weight average after step n = `step`, 0-based: min(decay, (1 + n)/(10 + n)); early steps count."""
    return min(decay, (1.0 + step) / (10.0 + step))

"""A few parameters for optimisers to move, and how to compare what they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from gesso.arrays import Array
from gesso.engines.engine import Optim
from gesso.engines.torch import optimizers, state

BETAS, EPS = (0.8, 0.95), 1e-7
OPTIM = Optim(betas=BETAS, eps=EPS, weight_decay=0.1, text_weight_decay=0.02, clip=0.05, beta3=0.9)
State = Mapping[str, Mapping[str, Array]]


def changing(name: str) -> list[dict[str, float]]:
    """Rates of three steps, different for the two parts where the optimiser can have that; prodigy's is a factor."""
    unit = 1.0 if name == "prodigy" else 1e-3
    text = 1.0 if name == "prodigy" else 0.3
    return [{"unet": lr * unit, "text_encoder": lr * text * unit} for lr in (1.0, 2.0, 0.5)]


def same(one: State, other: State) -> bool:
    """Equal to the last bit."""
    return {file: {k: (v.dtype, v.shape, v.tobytes()) for k, v in one[file].items()} for file in one} == {
        file: {k: (v.dtype, v.shape, v.tobytes()) for k, v in other[file].items()} for file in other
    }


def of(found: State, part: str) -> State:
    """The weights and moments of one part."""
    return {
        file: {key: value for key, value in found[file].items() if f"{part}." in key}
        for file in ("weights", "optimizer")
    }


class Small:
    """A stepper over a few parameters of two parts, driven by made-up gradients."""

    SHAPES: ClassVar = {
        "unet.conv.weight": (8, 4, 3, 3),
        "unet.to_q.weight": (64, 64),  # 4096 values: the least that has 8-bit states
        "unet.to_q.bias": (64,),
        "text_encoder.fc.weight": (80, 64),
        "text_encoder.token_embedding.weight": (10, 4),
    }

    def __init__(self, name: str, *, fp16: bool = False, channels_last: bool = False, **more: Any) -> None:
        rng = np.random.default_rng(3)
        self.trained = {
            key: nn.Parameter(torch.from_numpy(rng.standard_normal(shape).astype(np.float32)))
            for key, shape in self.SHAPES.items()
        }
        if channels_last:
            conv = self.trained["unet.conv.weight"]
            conv.data = conv.data.to(memory_format=torch.channels_last)
        self.stepper = optimizers.create(replace(OPTIM, name=name, **more), self.trained)
        self.scaler = torch.amp.GradScaler("cpu", enabled=fp16, init_scale=16.0)

    def step(self, key: int, lr: Mapping[str, float], *, poison: str = "") -> float:
        """One step with the gradients of `key`; those of the parameter `poison` are not finite."""
        rng = np.random.default_rng(key)
        for name, value in self.trained.items():
            value.grad = torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32)) * self.scale
            if name == poison:
                value.grad[0] = torch.inf
        self.scaler.scale(torch.ones(()))  # the engine does so with its loss; the scale comes to be here
        return float(self.stepper.step(lr, self.scaler))

    @property
    def scale(self) -> float:
        return float(self.scaler.get_scale())

    def read(self) -> State:
        weights = {name: value.detach().numpy().copy() for name, value in self.trained.items()}
        return {
            "weights": weights,
            "optimizer": state.read_optimizer(self.stepper.made, self.trained, self.scaler),
        }

    def write(self, saved: State) -> None:
        state.write_values(self.trained, saved["weights"], "weights")
        state.write_optimizer(self.stepper.made, self.trained, self.scaler, saved["optimizer"])

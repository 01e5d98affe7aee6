"""Optimisers by name: one line each, every one from a kept library. The learning rate is set before every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gesso.engines.engine import Optim
from gesso.errors import RecipeError


def create(optim: Optim, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over float32 `parameters`."""
    betas, eps, decay = optim.betas, optim.eps, optim.weight_decay
    if optim.name == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=decay, fused=True)
    if optim.name == "adam":
        return torch.optim.Adam(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=decay, fused=True)
    if optim.name == "sgd":
        made = torch.optim.SGD(parameters, lr=0.0, momentum=betas[0], weight_decay=decay, fused=True)
        if betas[0]:
            # Left to itself, a first step that is skipped leaves momentum in uninitialised memory.
            for parameter in parameters:
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    raise RecipeError(f'the optimiser "{optim.name}" is not known', todo="use adamw, adam or sgd")

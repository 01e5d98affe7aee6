"""Optimisers by name, every one a class of a kept library, and the one way in which they move the weights.

The parameters of each part ("unet", "text_encoder", "tokens", …) are a group with its own learning rate, set before
every step, and its own weight decay. A step is the same for all: gradients of resting groups are dropped, the rest is
clipped to one norm, and where that is not finite nothing moves, neither a weight nor what the optimiser remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor

from gesso.engines.engine import Optim
from gesso.errors import DeviceError, RecipeError

Trained = Mapping[str, nn.Parameter]
Made = tuple[torch.optim.Optimizer, ...]


def create(optim: Optim, trained: Trained) -> Stepper:
    """What moves the float32 parameters `trained`, named `<part>.<parameter>`.

    Raises RecipeError for an optimiser that cannot be had with these settings or parameters, DeviceError for one that
    does not run on their device; never later, in training.
    """
    if optim.name not in MAKERS:
        raise RecipeError(f'the optimiser "{optim.name}" is not known', todo=f"use one of {', '.join(MAKERS)}")
    try:
        made = MAKERS[optim.name](optim, trained)
    except ValueError as error:  # such as a decay of 1 in optim.betas
        raise RecipeError(f'optim.name = "{optim.name}" cannot be set up: {error}', todo="change [optim]") from error
    return Stepper(optim, trained, made)


def groups(optim: Optim, trained: Trained) -> list[dict[str, Any]]:
    """A group for each part, in the order in which parts first come."""
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in trained.items():
        part = name.partition(".")[0]
        group = found.setdefault(part, {"name": part, "params": [], "weight_decay": _decay(optim, part)})
        group["params"].append(parameter)
    return list(found.values())


def _decay(optim: Optim, part: str) -> float:
    # The length of a word's vector means something; pulling it to 0 would undo what the word learns.
    if part == "tokens":
        return 0.0
    return optim.text_weight_decay if part.startswith("text_encoder") else optim.weight_decay


class Stepper:
    """One or more optimisers as one."""

    def __init__(self, optim: Optim, trained: Trained, made: Made) -> None:
        self.optim, self.trained, self.made = optim, trained, made
        self.averaging = optim.name == "adamw_schedule_free"
        """Whether the optimiser itself keeps averaged weights."""
        # Fused optimisers leave everything as it was where found_inf is 1, without waiting for the device.
        self.waits = not all(getattr(each, "_step_supports_amp_scaling", False) for each in made)

    def step(self, lr: Mapping[str, float], scaler: torch.amp.GradScaler) -> torch.Tensor:
        """Move the weights by their gradients, which are gone afterwards.

        `lr` is the rate of each group that learns; the others rest. Returns the norm, before clipping, of the gradient
        of all that does not rest, float32 []. Where it is not finite, nothing has moved.
        """
        self._set(lr)
        parameters = [value for value in self.trained.values() if value.grad is not None]
        if not parameters:
            return torch.zeros((), device=next(iter(self.trained.values())).device)
        if scaler.is_enabled():
            for each in self.made:
                scaler.unscale_(each)
        norm = torch.nn.utils.get_total_norm(
            [value.grad for value in parameters if value.grad is not None], foreach=True
        )
        if self.optim.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip, norm, foreach=True)
        self._move(torch.isfinite(norm), lr)
        if scaler.is_enabled():
            scaler.update()
        for value in parameters:
            value.grad = None
        return norm

    def _set(self, lr: Mapping[str, float]) -> None:
        for group in self._groups():
            group["lr"] = lr.get(group["name"], 0.0)
            if group["name"] not in lr:
                for parameter in group["params"]:
                    parameter.grad = None
        if self.optim.name == "prodigy" and len(set(lr.values())) > 1:
            raise RecipeError(
                "prodigy estimates one step size for all parts, so their learning rates must be the same, but are "
                + ", ".join(f"{value:g} of {name}" for name, value in lr.items()),
                todo="leave out optim.text_encoder_lr, optim.text_encoder_2_lr and optim.token_lr",
            )

    def _move(self, finite: torch.Tensor, lr: Mapping[str, float]) -> None:
        if self.waits and not bool(finite):
            return
        for each in self.made:
            if any(group["name"] in lr for group in each.param_groups):
                if not self.waits:
                    each.found_inf = (~finite).float()  # type: ignore[attr-defined]
                each.step()

    def averages(self) -> dict[str, torch.Tensor]:
        """The averaged weights x of schedule-free training, which itself goes on from y: x = y + (1 − 1/beta1)(z − y).

        Copies, but for weights that never moved: the library's `eval()` and `train()` would round y twice.
        """
        states = {value: state for each in self.made for value, state in each.state.items()}
        found = {name: value.detach() for name, value in self.trained.items()}
        for name, value in self.trained.items():
            if "z" in states.get(value, {}):
                found[name] = torch.lerp(found[name], states[value]["z"], 1 - 1 / self.optim.betas[0])
        return found

    def _groups(self) -> Iterator[dict[str, Any]]:
        for each in self.made:
            yield from each.param_groups


# ---------------------------------------------------------------- by name

FUSED = ("cpu", "cuda", "mps")
"""Devices on which PyTorch's fused optimisers are known to run; Ascend's are others."""


def _fused(trained: Trained) -> bool | None:
    return True if next(iter(trained.values())).device.type in FUSED else None


def _adamw(optim: Optim, trained: Trained) -> Made:
    return (torch.optim.AdamW(groups(optim, trained), lr=0.0, betas=optim.betas, eps=optim.eps, fused=_fused(trained)),)


def _adam(optim: Optim, trained: Trained) -> Made:
    return (torch.optim.Adam(groups(optim, trained), lr=0.0, betas=optim.betas, eps=optim.eps, fused=_fused(trained)),)


def _sgd(optim: Optim, trained: Trained) -> Made:
    made = torch.optim.SGD(groups(optim, trained), lr=0.0, momentum=optim.betas[0], fused=_fused(trained))
    if optim.betas[0]:
        # Left to itself, a first step that is skipped leaves momentum in uninitialised memory.
        for parameter in trained.values():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return (made,)


def _adafactor(optim: Optim, trained: Trained) -> Made:
    """With the recipe's rate: PyTorch's own always scales it by the weights and by 1/sqrt(step)."""
    return (Adafactor(groups(optim, trained), lr=0.0, relative_step=False, scale_parameter=False, warmup_init=False),)


def _adamw_8bit(optim: Optim, trained: Trained) -> Made:
    """The states of tensors below 4096 values stay float32 (Dettmers et al. 2022, arXiv:2110.02861)."""
    kind = _library("bitsandbytes", optim).optim.AdamW8bit
    device = next(iter(trained.values())).device
    trial = nn.Parameter(torch.zeros(4096, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        kind([trial], lr=0.0).step()
    except (RuntimeError, NotImplementedError) as error:
        raise DeviceError(
            f'optim.name = "adamw_8bit": bitsandbytes has no 8-bit optimiser for {device.type} here ({error})',
            todo="train on an NVIDIA GPU or the CPU, install a bitsandbytes made for this device, or use adamw",
        ) from error
    for value in trained.values():
        value.data = value.data.contiguous()  # its first step would do so, and a resumed run begin otherwise
    return (kind(groups(optim, trained), lr=0.0, betas=optim.betas, eps=optim.eps),)


def _lion(optim: Optim, trained: Trained) -> Made:
    return (_library("lion_pytorch", optim).Lion(groups(optim, trained), betas=optim.betas),)


def _prodigy(optim: Optim, trained: Trained) -> Made:
    made = _library("prodigyopt", optim).Prodigy(
        groups(optim, trained),
        betas=optim.betas,
        beta3=optim.beta3,
        eps=optim.eps,
        decouple=optim.decouple,
        use_bias_correction=optim.bias_correction,
        safeguard_warmup=optim.safeguard_warmup,
    )
    return (made,)


def _adamw_schedule_free(optim: Optim, trained: Trained) -> Made:
    """An optimiser for each group: its count of steps and its averages stand still while the group rests."""
    if optim.ema:
        raise RecipeError("adamw_schedule_free averages the weights itself", todo="set optim.ema = 0")
    if not optim.betas[0]:
        raise ValueError("schedule-free averages need a first number of optim.betas above 0")
    kind = _library("schedulefree", optim).AdamWScheduleFree
    made = tuple(kind([group], betas=optim.betas, eps=optim.eps) for group in groups(optim, trained))
    for each in made:
        each.train()  # for good: `averages` computes x aside
    return made


def _muon(optim: Optim, trained: Trained) -> Made:
    """Muon for matrices of hidden layers, AdamW for the rest (convolutions, biases, embeddings), as its authors say.

    Its steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one rate serves both. Its
    momentum is the library's 0.95; `betas` and `eps` are those of AdamW.
    """
    matrices, others = {}, dict(trained)
    for name, value in trained.items():
        if value.ndim == 2 and not name.startswith("tokens.") and not name.endswith("embedding.weight"):
            matrices[name] = others.pop(name)
    if not matrices:
        raise RecipeError("muon moves matrices, and none is trained here", todo='set optim.name = "adamw"')
    muon = torch.optim.Muon(groups(optim, matrices), lr=0.0, adjust_lr_fn="match_rms_adamw")
    return (muon, *(_adamw(optim, others) if others else ()))


PACKAGES: Mapping[str, str] = {"lion_pytorch": "lion-pytorch"}
"""What pip calls a module, where the names differ."""


def _library(module: str, optim: Optim) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = PACKAGES.get(module, module)
        raise RecipeError(
            f'optim.name = "{optim.name}" needs the package {package}, which is not installed here',
            todo=f"pip install {package}",
        ) from error


MAKERS: Mapping[str, Callable[[Optim, Trained], Made]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
    "adamw_schedule_free": _adamw_schedule_free,
    "muon": _muon,
}

"""What a checkpoint takes from PyTorch and gives back: weights, averages, optimiser and loss-scale as named arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from gesso.arrays import Array
from gesso.errors import StorageError

RUNNING = ("d", "d_max", "d_numerator", "k", "weight_sum", "lr_max")
"""What prodigy and schedule-free count for a whole group; its other numbers are those of the recipe."""


def read_optimizer(
    optimizers: Sequence[torch.optim.Optimizer], trained: Mapping[str, nn.Parameter], scaler: torch.amp.GradScaler
) -> dict[str, Array]:
    """`<state>/<parameter>` for every state tensor, `group/<part>/<key>` for running numbers, and the loss scale.

    Python's own numbers become int64 and float64 [], which no state tensor is.
    """
    found: dict[str, Array] = {}
    states = {parameter: state for each in optimizers for parameter, state in each.state.items()}
    for name, parameter in trained.items():
        for key, value in states.get(parameter, {}).items():
            if value is not None:
                found[f"{key}/{name}"] = _array(value)
    for group in (group for each in optimizers for group in each.param_groups):
        found |= {f"group/{group['name']}/{key}": _array(group[key]) for key in RUNNING if key in group}
    if scaler.is_enabled():
        kept = scaler.state_dict()
        found["scaler"] = np.array([kept["scale"], kept["_growth_tracker"]], dtype=np.float64)
    return found


def write_optimizer(
    optimizers: Sequence[torch.optim.Optimizer],
    trained: Mapping[str, nn.Parameter],
    scaler: torch.amp.GradScaler,
    saved: Mapping[str, Array],
) -> None:
    """The reverse of `read_optimizer`; tensors land on their parameter's device."""
    for each in optimizers:
        each.state.clear()
    owners = {value: each for each in optimizers for group in each.param_groups for value in group["params"]}
    groups = {group["name"]: group for each in optimizers for group in each.param_groups}
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        if key == "scaler":
            scaler.load_state_dict({**scaler.state_dict(), "scale": float(value[0]), "_growth_tracker": int(value[1])})
        elif kind == "group":
            part, _, number = name.partition("/")
            if number not in groups.get(part, ()):
                raise StorageError(f'the optimiser state holds "{key}", which this optimiser does not have')
            groups[part][number] = value.item()
        elif name not in trained:
            raise StorageError(f'the optimiser state holds "{name}", which is not being trained')
        else:
            owners[trained[name]].state[trained[name]][kind] = _state(value, trained[name])


def _array(value: torch.Tensor | float) -> Array:
    return value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)


def _state(value: Array, parameter: nn.Parameter) -> torch.Tensor | int | float:
    if not value.shape and value.dtype in (np.int64, np.float64):
        return value.item()  # type: ignore[no-any-return]
    found = torch.from_numpy(np.array(value))
    # Fused optimisers walk memory, not indices: a moment must lie as its parameter does (channels_last).
    like = torch.empty_like(parameter, dtype=found.dtype) if found.shape == parameter.shape else found
    return like.detach().to(parameter.device).copy_(found)


def write_values(into: Mapping[str, torch.Tensor], saved: Mapping[str, Array], what: str) -> None:
    """Copy every saved array into the tensor of its name; names must agree exactly."""
    missing, unexpected = sorted(into.keys() - saved.keys()), sorted(saved.keys() - into.keys())
    if missing or unexpected:
        example = (missing or unexpected)[0]
        raise StorageError(
            f"the checkpoint's {what} do not fit this model: {len(missing)} tensors missing, "
            f'{len(unexpected)} unexpected, such as "{example}"',
            todo="start a new run with another --out",
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(torch.from_numpy(np.array(saved[name])))


@contextmanager
def evaluating(nets: Sequence[nn.Module]) -> Iterator[None]:
    """The networks in evaluation mode, and each as it was afterwards."""
    modes = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


@contextmanager
def swapped(live: Mapping[str, nn.Parameter], averages: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The averaged weights in place of the live ones."""
    kept = {name: parameter.data for name, parameter in live.items()}
    for name, parameter in live.items():
        parameter.data = averages[name].to(parameter.device)
    try:
        yield
    finally:
        for name, parameter in live.items():
            parameter.data = kept[name]

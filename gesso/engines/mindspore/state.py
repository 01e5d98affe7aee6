"""What a checkpoint takes from MindSpore and gives back, and weights that stand in for others for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from gesso.arrays import Array, Float32
from gesso.errors import StorageError


def numpy(value: ms.Tensor) -> Float32:
    """A copy: on a CPU `asnumpy` is a view, which would change with later steps."""
    return value.astype(ms.float32).asnumpy().copy()  # type: ignore[no-any-return]


def assign(parameter: ms.Parameter, value: ms.Tensor) -> None:
    """Put a value into a parameter, in place, as networks and optimisers hold it."""
    ops.assign(parameter, value.astype(parameter.dtype))


def fitting(known: Mapping[str, Any], saved: Mapping[str, Array], what: str) -> None:
    """StorageError unless the names agree exactly, and the shapes of each."""
    missing, unexpected = sorted(known.keys() - saved.keys()), sorted(saved.keys() - known.keys())
    other = [name for name in known.keys() & saved.keys() if tuple(known[name].shape) != saved[name].shape]
    if missing or unexpected or other:
        example = (missing or unexpected or other)[0]
        raise StorageError(
            f"the checkpoint's {what} do not fit this model: {len(missing)} tensors missing, "
            f'{len(unexpected) + len(other)} unexpected, such as "{example}"',
            todo="start a new run with another --out",
        )


def write_values(into: Mapping[str, ms.Parameter], saved: Mapping[str, Array], what: str) -> None:
    """Copy every saved array into the parameter of its name; names must agree exactly."""
    fitting(into, saved, what)
    for name, parameter in into.items():
        assign(parameter, ms.Tensor(np.array(saved[name], dtype=np.float32)))


@contextmanager
def evaluating(nets: Sequence[Any]) -> Iterator[None]:
    """The networks in evaluation mode, and each as it was afterwards."""
    modes = [net.training for net in nets]
    for net in nets:
        net.set_train(False)
    try:
        yield
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.set_train(mode)


@contextmanager
def swapped(live: Mapping[str, ms.Parameter], others: Mapping[str, ms.Tensor | Array]) -> Iterator[None]:
    """Other weights in place of the live ones."""
    kept = {name: parameter.value().copy() for name, parameter in live.items()}
    for name, parameter in live.items():
        assign(parameter, ms.Tensor(others[name]))
    try:
        yield
    finally:
        for name, parameter in live.items():
            assign(parameter, kept[name])

"""LoRA: cells that wrap a layer and add to its answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops

from gesso.arrays import Array, Float32
from gesso.engines.engine import Adapter
from gesso.engines.layers import Layer, choose
from gesso.engines.mindspore.models import CONVOLUTION, Models, layers, public
from gesso.errors import RecipeError
from gesso.keys import generator

A, B = "lora_A.weight", "lora_B.weight"


class Drawn:
    """What dropout draws from: the key of the step and the number of the forward pass in it."""

    key = 0
    turn = 0


class Lora(nn.Cell):  # type: ignore[misc]
    """W·x + Σ alpha/rank · B·A·x over the adapters of one layer (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, name: str, base_layer: Any) -> None:
        super().__init__(auto_prefix=False)
        self.layer_name, self.base_layer = name, base_layer
        self.sizes: list[Layer] = []
        self.off = False

    def add(self, down: Float32, up: Float32, size: Layer) -> tuple[ms.Parameter, ms.Parameter]:
        """One more adapter; its two parameters, float32."""
        at = len(self.sizes)
        made = tuple(
            ms.Parameter(ms.Tensor(np.array(value, np.float32)), name=f"{self.layer_name}.{side}.{at}")
            for side, value in ((A, down), (B, up))
        )
        self.insert_param_to_cell(f"down_{at}", made[0])
        self.insert_param_to_cell(f"up_{at}", made[1])
        self.sizes.append(size)
        return made[0], made[1]

    def construct(self, input: ms.Tensor, *rest: Any) -> ms.Tensor:
        answer = self.base_layer(input, *rest)
        if self.off:
            return answer
        for at, size in enumerate(self.sizes):
            down, up = (getattr(self, f"{side}_{at}").astype(input.dtype) for side in ("down", "up"))
            x = input * self._kept(input, size.dropout) if size.dropout and self.training else input
            answer = answer + (size.alpha / size.rank) * self._product(x, down, up)
        return answer

    def _product(self, x: ms.Tensor, down: ms.Tensor, up: ms.Tensor) -> ms.Tensor:
        if not isinstance(self.base_layer, CONVOLUTION):
            return ops.matmul(ops.matmul(x, down.T), up.T)
        base = self.base_layer
        stride, padding = (_two(value) for value in (base.stride, base.padding))
        narrow = mint.nn.functional.conv2d(x, down, None, stride, padding, (1, 1), 1)
        return mint.nn.functional.conv2d(narrow, up, None, (1, 1), (0, 0), (1, 1), 1)

    def _kept(self, like: ms.Tensor, share: float) -> ms.Tensor:
        # The same however often the pass is computed: recomputed activations must meet the same mask.
        rng = generator(Drawn.key, f"dropout {self.layer_name}", Drawn.turn)
        kept = rng.random(like.shape, dtype=np.float32) >= share
        return ms.Tensor(kept.astype(np.float32) / np.float32(1.0 - share)).astype(like.dtype)


def attach(models: Models, adapter: Adapter) -> dict[str, ms.Parameter]:
    """Put adapters into the networks that `adapter.targets` names; their parameters, by peft's names with the part.

    A network computes at first what it did before: A is normal with standard deviation 1/rank, drawn from
    `adapter.init` and the layer's name, B is 0. RecipeError for targets and rules that mean nothing, and for sizes that
    a layer cannot have.
    """
    known = {part: layers(models.get(part)) for part in adapter.targets}
    chosen = choose(adapter, known)
    found: dict[str, ms.Parameter] = {}
    for part, own in chosen.items():
        for name, size in own.items():
            shape = tuple(known[part][name].weight.shape)
            _fits(f"{part}.{name}", shape, size)
            rng = generator(adapter.init, f"lora {part}.{name}")
            down = rng.standard_normal((size.rank, *shape[1:]), dtype=np.float32) / np.float32(size.rank)
            up = np.zeros((shape[0], size.rank, *(1 for _ in shape[2:])), dtype=np.float32)
            made = _wrapped(models.get(part), part, name).add(down, up, size)
            found |= {f"{part}.{name}.{side}": value for side, value in zip((A, B), made, strict=True)}
    return found


def load(models: Models, part: str, arrays: Mapping[str, Array], sizes: Mapping[str, tuple[int, float]]) -> None:
    """Add a trained adapter beside those that are there, in float32.

    `arrays` has peft's names without the part (`<module>.lora_A.weight`), `sizes` (rank, alpha) of each module.
    RecipeError where a tensor has no layer of its shape.
    """
    net = models.get(part)
    known = {**layers(net), **{name: cell.base_layer for name, cell in _adapted(net).items()}}
    unknown = sorted(sizes.keys() - known.keys())
    if unknown:
        raise RecipeError(f"the adapter is for {len(unknown)} layers that this model does not have: {unknown[0]}, …")
    for name, (rank, alpha) in sizes.items():
        shape = tuple(known[name].weight.shape)
        down, up = arrays[f"{name}.{A}"], arrays[f"{name}.{B}"]
        if down.shape != (rank, *shape[1:]) or up.shape[:2] != (shape[0], rank):
            raise RecipeError(f"the adapter has tensors that fit no layer of this model: {name}")
        for parameter in _wrapped(net, part, name).add(
            np.asarray(down, np.float32), np.asarray(up, np.float32), Layer(rank, alpha)
        ):
            parameter.requires_grad = False


@contextmanager
def switched_off(nets: Iterable[Any]) -> Iterator[None]:
    """The networks without any of their adapters."""
    cells = [cell for net in nets for cell in _adapted(net).values()]
    before = [cell.off for cell in cells]
    for cell in cells:
        cell.off = True
    try:
        yield
    finally:
        for cell, off in zip(cells, before, strict=True):
            cell.off = off


def _adapted(net: Any) -> dict[str, Lora]:
    return {public(net, name): cell for name, cell in net.cells_and_names() if isinstance(cell, Lora)}


def _wrapped(net: Any, part: str, name: str) -> Lora:
    """The cell around the layer `name`; made when it is not there."""
    there = _adapted(net).get(name)
    if there is not None:
        return there
    own = next(key for key, _ in net.cells_and_names() if public(net, key) == name)
    *path, last = own.split(".")
    owner = net
    for step in path:
        owner = owner.name_cells()[step]
    cell = Lora(f"{part}.{name}", owner.name_cells()[last])
    if isinstance(owner, nn.CellList):
        # owner[int(last)] = cell reads positions off the names of parameters, and stumbles over those of adapters.
        owner.insert_child_to_cell(last, cell)
    else:
        setattr(owner, last, cell)
    return cell


def _fits(name: str, shape: tuple[int, ...], size: Layer) -> None:
    """RecipeError for a rank that the layer cannot have."""
    out, width = shape[0], math.prod(shape[1:])
    if size.rank > min(out, width):
        raise RecipeError(
            f"rank {size.rank} is more than the layer {name} has: its weight is {out} × {width}",
            todo=f"lower adapter.rank, or add a rule that gives this layer a rank of {min(out, width)} at the most",
        )


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])

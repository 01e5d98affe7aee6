"""What a recipe trains, by name and shape, from the headers of the base's files alone.

    lora   A [rank, n]  B [out, rank]            for a weight [out, …], n the product of its other sides
    dora   the same, and a magnitude [out]
    loha   2·(out·rank + rank·n)
    lokr   w1 [a, b], w2 [out/a, n/b] or two matrices of `rank` in its place
    oft    rank·s·(s − 1)/2 with rank·s = n

gesso/formats/peft.py says how these matrices are called; here only their sizes matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gesso import settings
from gesso.engines.engine import Adapter
from gesso.engines.layers import Layer, choose
from gesso.families.family import Family
from gesso.formats import pipeline
from gesso.models import ModelSource
from gesso.schema import Recipe
from gesso.words import full_name

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The shapes of what trains, and of the base's parts, by name; full names of what trains begin with its part."""

    trained: Shapes
    base: Mapping[str, Shapes] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Trainable parameters."""
        return numbers(self.trained)


def numbers(shapes: Shapes) -> int:
    """How many values tensors of these shapes have."""
    return sum(map(math.prod, shapes.values()))


def sizes(recipe: Recipe, source: ModelSource, family: Family) -> Sizes:
    """The shapes for a recipe. RecipeError and StorageError as from the model's own files."""
    encoders = [encoder for encoder, _ in family.encoders]
    names = (family.denoiser, family.autoencoder, *encoders)
    base = {part: pipeline.shapes(folder(source, part)) for part in names}
    adapter = settings.adapter(recipe, family)
    if adapter is not None:
        trained = adapted(adapter, base)
    else:
        trained = {
            f"{part}.{name}": shape
            for part in settings.whole_parts(recipe)
            for name, shape in base[part].items()
            if not name.endswith("position_ids")  # a buffer, not a parameter
        }
    for token in settings.tokens(recipe):
        for encoder in encoders:
            trained[full_name(encoder, token.name)] = (token.vectors, width(base[encoder]))
    return Sizes(trained=trained, base=base)


def folder(source: ModelSource, part: str) -> Path:
    """Where a component's files are."""
    return source.parts.get(part, source.folder / part)


def width(encoder: Shapes) -> int:
    """The width of a text encoder's vectors."""
    return next(shape[1] for name, shape in encoder.items() if name.endswith("token_embedding.weight"))


def adapted(adapter: Adapter, base: Mapping[str, Shapes]) -> dict[str, Shape]:
    """The matrices of an adapter on those layers of the base that it goes on."""
    layers = {
        part: {
            name.removesuffix(".weight"): shape
            for name, shape in base[part].items()
            if name.endswith(".weight") and len(shape) in (2, 4) and not name.endswith("embedding.weight")
        }
        for part in adapter.targets
    }
    found: dict[str, Shape] = {}
    for part, chosen in choose(adapter, layers).items():
        for name, layer in chosen.items():
            made = MATRICES[adapter.kind](layers[part][name], layer, adapter)
            found |= {f"{part}.{name}.{side}": shape for side, shape in made.items()}
    return found


Matrices = Callable[[Shape, Layer, Adapter], dict[str, Shape]]


def _lora(shape: Shape, layer: Layer, adapter: Adapter, *, dora: bool = False) -> dict[str, Shape]:
    ones = (1,) * (len(shape) - 2)
    found = {"lora_A.weight": (layer.rank, *shape[1:]), "lora_B.weight": (shape[0], layer.rank, *ones)}
    if dora:
        found["lora_magnitude_vector"] = (1, shape[0], *ones) if ones else (shape[0],)
    return found


def _loha(shape: Shape, layer: Layer, adapter: Adapter) -> dict[str, Shape]:
    out, rest = shape[0], math.prod(shape[1:])
    pairs = {"a": (out, layer.rank), "b": (layer.rank, rest)}
    return {f"hada_w{number}_{side}": pairs[side] for number in (1, 2) for side in pairs}


def _lokr(shape: Shape, layer: Layer, adapter: Adapter) -> dict[str, Shape]:
    (out_low, out_high), (in_low, in_high) = (factors(side, adapter.factor) for side in shape[:2])
    found: dict[str, Shape] = {"lokr_w1": (out_low, in_low)}
    if layer.rank < max(out_high, in_high) / 2:
        rest = in_high * math.prod(shape[2:])
        return found | {"lokr_w2_a": (out_high, layer.rank), "lokr_w2_b": (layer.rank, rest)}
    return found | {"lokr_w2": (out_high, in_high, *shape[2:])}


def _oft(shape: Shape, layer: Layer, adapter: Adapter) -> dict[str, Shape]:
    block = math.prod(shape[1:]) // layer.rank
    return {"oft_R.weight": (layer.rank, block * (block - 1) // 2)}


MATRICES: Mapping[str, Matrices] = {
    "lora": _lora,
    "dora": partial(_lora, dora=True),
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
}


def factors(side: int, wanted: int) -> tuple[int, int]:
    """The two factors of a side that LoKr takes: the smaller `wanted` where it divides, else the largest below it, or
    below the root for -1."""
    if wanted > 0 and side % wanted == 0:
        return wanted, side // wanted
    below = range(1, math.isqrt(side) + 1)
    low = max(each for each in below if side % each == 0 and (wanted == -1 or each <= wanted))
    return low, side // low

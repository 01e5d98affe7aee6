"""Adapters of any kind in a model's weights, computed in float64 and rounded once, to the type that the model has.

    lora, dora   lora_math.py
    loha         W + alpha/rank · (w1_a·w1_b) ∘ (w2_a·w2_b)         Hyeon-Woo et al. 2022, arXiv:2108.06098
    lokr         W + alpha/rank · w1 ⊗ w2                           Yeh et al. 2024, arXiv:2309.14859
    oft          W·Rᵀ, R block-diagonal of I + 2Q + 2Q² + 2Q³ + Q⁴   Qiu et al. 2023, arXiv:2306.07280

Q is skew; the sum is what peft takes for Cayley's (I + Q)(I − Q)⁻¹. Convolutions are matrices [out, in·h·w].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from gesso.arrays import Array, Float64
from gesso.errors import RecipeError
from gesso.formats import adapter, lora_math
from gesso.formats.lora_forms import Lora
from gesso.formats.metadata import Config
from gesso.formats.single_file import Parts
from gesso.formats.stored import FLOATS, Stored

TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""What a user calls the types of a model's weights."""


def merged(parts: Parts, arrays: Mapping[str, Array], config: Config) -> dict[str, dict[str, Stored]]:
    """The parts of a model with an adapter of any kind in their weights, computed when read.

    `arrays` is in an engine's names. RecipeError where the adapter does not fit the model; on reading, NumbersError
    where a type is too narrow.
    """
    shapes = {f"{part}.{name}": tensor.shape for part, own in parts.items() for name, tensor in own.items()}
    wrong = adapter.fit(arrays, config, shapes)
    if wrong:
        raise RecipeError(f"the {config.kind} is for another base: {wrong[0]}", todo="use the base it was trained on")
    if config.kind in adapter.LORAS:
        plain = {name.replace(".text_model.", ".", 1): array for name, array in arrays.items()}
        sizes = adapter.sizes(arrays, config)
        named = {name.replace(".text_model.", ".", 1): size for name, size in sizes.items()}
        return lora_math.merged(parts, Lora(arrays=plain, sizes=named, form="peft"), 1.0)
    made = {part: dict(own) for part, own in parts.items()}
    for module, (rank, alpha) in adapter.sizes(arrays, config).items():
        part, _, inner = module.partition(".")
        inner = inner.removeprefix("text_model.")
        name = f"{inner}.weight" if f"{inner}.weight" in made[part] else f"text_model.{inner}.weight"
        own = {key.removeprefix(f"{module}."): array for key, array in arrays.items() if key.startswith(f"{module}.")}
        made[part][name] = _changed(made[part][name], module, _change(own, alpha / rank))
    return made


def cast(parts: Parts, code: str) -> dict[str, dict[str, Stored]]:
    """The parts with all floating-point weights in the type `code` (F32, F16, BF16), rounded when read."""

    def one(tensor: Stored, name: str) -> Stored:
        if tensor.code == code or tensor.code not in FLOATS:
            return tensor
        return Stored(
            code=code,
            shape=tensor.shape,
            read=lambda: lora_math.narrowed(tensor.widened().astype(np.float64), code, name),
        )

    return {part: {name: one(tensor, name) for name, tensor in own.items()} for part, own in parts.items()}


def rotation(upper: Array) -> Float64:
    """R of each block, [blocks, s, s], from the upper triangles of the skew matrices, [blocks, s(s − 1)/2]."""
    blocks, triangle = upper.shape
    side = (1 + math.isqrt(1 + 8 * triangle)) // 2
    q = np.zeros((blocks, side, side))
    rows, columns = np.triu_indices(side, 1)
    q[:, rows, columns] = upper
    q = q - q.transpose(0, 2, 1)
    square = q @ q
    made: Float64 = np.eye(side) + 2 * q + 2 * square + 2 * (square @ q) + square @ square
    return made


def _change(own: Mapping[str, Array], scale: float) -> Callable[[Float64], Float64]:
    """What an adapter makes of a weight as a matrix [out, n]."""
    plain = {side: array.astype(np.float64) for side, array in own.items()}
    if "oft_R.weight" in plain:
        turns = rotation(plain["oft_R.weight"])

        def turned(rows: Float64) -> Float64:
            blocks = rows.reshape(len(rows), len(turns), -1)
            made: Float64 = np.einsum("okc,krc->okr", blocks, turns, dtype=np.float64).reshape(rows.shape)
            return made

        return turned
    return lambda rows: rows + scale * _delta(plain, rows.shape)


def _delta(own: Mapping[str, Float64], shape: tuple[int, ...]) -> Float64:
    if "hada_w1_a" in own:
        made: Float64 = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
        return made
    small = own["lokr_w1"]
    large = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
    if large.ndim == 4:
        small = small[:, :, None, None]
    return np.asarray(np.kron(small, large), dtype=np.float64).reshape(shape)


def _changed(tensor: Stored, module: str, change: Callable[[Float64], Float64]) -> Stored:
    if tensor.code not in FLOATS:
        raise RecipeError(f"the model's {module} is of the type {tensor.code}, into which nothing can be merged")

    def read() -> Array:
        values = tensor.widened().astype(np.float64)
        return lora_math.narrowed(change(values.reshape(len(values), -1)).reshape(tensor.shape), tensor.code, module)

    return Stored(code=tensor.code, shape=tensor.shape, read=read)

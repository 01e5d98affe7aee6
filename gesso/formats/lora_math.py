"""What can be computed with LoRAs alone: merged into a model, joined, cut to a lower rank, taken from two models.

A layer's weight W becomes W + s·(alpha/rank)·B·A at strength s; with DoRA (Liu et al. 2024, arXiv:2402.09353) each row
of that, an output channel, is then scaled to its magnitude m: m·(W + ΔW)/‖W + ΔW‖. Convolutions are matrices
[out, in·h·w]. The best matrix of rank r is the sum of the r largest singular triples (Eckart and Young 1936).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gesso.arrays import Array, Float32, Float64
from gesso.errors import NumbersError, RecipeError
from gesso.formats import lora
from gesso.formats.kohya import MAGNITUDE, A, B
from gesso.formats.lora_forms import Lora
from gesso.formats.single_file import Parts
from gesso.formats.stored import FLOATS, Stored

_TABLES = ("token_embedding.weight", "position_embedding.weight")
"""Looked up, not multiplied: no LoRA layer."""
_LEAST = 1e-7
"""Share of the largest singular value below which one is rounding."""


def merged(parts: Parts, found: Lora, strength: float) -> dict[str, dict[str, Stored]]:
    """The parts of a model with a LoRA in their weights, in the types that the model has; computed when read.

    Raises RecipeError where the LoRA does not fit the model, and on reading NumbersError where a type is too narrow.
    """
    shapes = {f"{part}.{name}": tensor.shape for part, own in parts.items() for name, tensor in own.items()}
    wrong = lora.fit(found.arrays, shapes)
    if wrong:
        raise RecipeError(f"the LoRA is for another base: {wrong[0]}", todo="use it with the base it was trained on")
    made = {part: dict(own) for part, own in parts.items()}
    for module, (rank, alpha) in found.sizes.items():
        part, _, inner = module.partition(".")
        name = f"{inner}.weight" if f"{inner}.weight" in made[part] else f"text_model.{inner}.weight"
        made[part][name] = _merged(made[part][name], found.arrays, module, strength * alpha / rank)
    return made


def joined(loras: Sequence[tuple[Lora, float]]) -> Lora:
    """One LoRA that does what several do at their strengths; ranks add up. RecipeError for a DoRA among them."""
    _plain([each for each, _ in loras])
    arrays: dict[str, Array] = {}
    sizes: dict[str, tuple[int, float]] = {}
    for module in sorted({module for each, _ in loras for module in each.sizes}):
        downs, ups = [], []
        for each, strength in loras:
            if module in each.sizes:
                rank, alpha = each.sizes[module]
                downs.append(each.arrays[f"{module}.{A}"])
                ups.append(each.arrays[f"{module}.{B}"].astype(np.float64) * (strength * alpha / rank))
        if len({array.shape[1:] for array in downs}) > 1 or len({array.shape[0] for array in ups}) > 1:
            raise RecipeError(f"the LoRAs are not for one base: their matrices of {module} differ in size")
        arrays[f"{module}.{A}"] = np.concatenate(downs).astype(np.float32)
        arrays[f"{module}.{B}"] = np.concatenate(ups, axis=1).astype(np.float32)
        total = len(arrays[f"{module}.{A}"])
        sizes[module] = (total, float(total))
    return Lora(arrays=arrays, sizes=sizes, form="peft")


def resized(found: Lora, rank: int) -> tuple[Lora, float]:
    """The best LoRA of at most `rank`, and which share of the squared change it keeps. RecipeError for a DoRA."""
    _plain([found])
    arrays: dict[str, Array] = {}
    sizes: dict[str, tuple[int, float]] = {}
    kept = whole = 0.0
    for module, (old, alpha) in found.sizes.items():
        down, up = found.arrays[f"{module}.{A}"], found.arrays[f"{module}.{B}"]
        # ‖B·A‖ and its singular vectors are those of the two triangles' product, which is small.
        left, upper = np.linalg.qr(_matrix(up, (len(up), -1)) * (alpha / old))
        right, lower = np.linalg.qr(_matrix(down, (old, -1)).T)
        u, s, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
        most = _most(s, rank)
        _put(arrays, sizes, module, (left @ u)[:, :most], s[:most], (v @ right.T)[:most], down.shape[1:])
        kept, whole = kept + float((s[:most] ** 2).sum()), whole + float((s**2).sum())
    return Lora(arrays=arrays, sizes=sizes, form="peft"), kept / whole if whole else 1.0


def extracted(tuned: Parts, base: Parts, rank: int) -> tuple[Lora, float, list[str]]:
    """The LoRA of `rank` that comes nearest to what was trained from `base` to `tuned`.

    Gives it, the share of the squared change of its layers that it keeps, and the names of tensors that changed but
    that a LoRA cannot hold: norms, biases, tables of words, the autoencoder. Raises RecipeError where the two are not
    of one kind and where no layer differs.
    """
    arrays: dict[str, Array] = {}
    sizes: dict[str, tuple[int, float]] = {}
    kept = whole = 0.0
    left_out = []
    for part, own in tuned.items():
        for name, tensor in own.items():
            other = base.get(part, {}).get(name)
            if other is None or other.shape != tensor.shape:
                raise RecipeError(f'the two models are not of one kind: the {part}\'s "{name}" differs in shape')
            change = tensor.widened().astype(np.float64) - other.widened()
            if not change.any():
                continue
            if part == "vae" or len(tensor.shape) < 2 or not name.endswith(".weight") or name.endswith(_TABLES):
                left_out.append(f"{part}.{name}")
                continue
            u, s, v = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
            most = _most(s, rank)
            module = f"{part}.{name.removesuffix('.weight').removeprefix('text_model.')}"
            _put(arrays, sizes, module, u[:, :most], s[:most], v[:most], tensor.shape[1:])
            kept, whole = kept + float((s[:most] ** 2).sum()), whole + float((s**2).sum())
    if not arrays:
        raise RecipeError("no layer that a LoRA can hold differs between the two models")
    return Lora(arrays=arrays, sizes=sizes, form="peft"), kept / whole, left_out


def narrowed(values: Float64, code: str, what: str) -> Array:
    """Numbers in one of safetensors' float types, rounded to nearest, ties to even; `what` is for messages."""
    made: Array
    with np.errstate(over="ignore"):  # it is looked for below
        if code == "BF16":
            bits = values.astype("<f4").view("<u4")
            made = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
            finite = bool(((made & 0x7F80) != 0x7F80).all())
        else:
            made = values.astype({"F16": "<f2", "F64": "<f8"}.get(code, "<f4"))
            finite = bool(np.isfinite(made).all())
    if not finite:
        raise NumbersError(f"{what} becomes too large for its type {code}", todo="merge at a lower strength")
    return made


def _merged(tensor: Stored, arrays: Mapping[str, Array], module: str, scale: float) -> Stored:
    if tensor.code not in FLOATS:
        raise RecipeError(f"the model's {module} is of the type {tensor.code}, into which nothing can be merged")
    down, up, magnitude = (arrays.get(f"{module}.{side}") for side in (A, B, MAGNITUDE))
    assert down is not None
    assert up is not None

    def read() -> Array:
        values = tensor.widened().astype(np.float64)
        rows = values.reshape(len(values), -1)
        rows = rows + scale * (_matrix(up, (len(up), -1)) @ _matrix(down, (len(down), -1)))
        if magnitude is not None:
            rows = rows * (magnitude.reshape(-1, 1) / np.linalg.norm(rows, axis=1, keepdims=True))
        return narrowed(rows.reshape(tensor.shape), tensor.code, module)

    return Stored(code=tensor.code, shape=tensor.shape, read=read)


def _put(
    arrays: dict[str, Array],
    sizes: dict[str, tuple[int, float]],
    module: str,
    left: Float64,
    s: Float64,
    right: Float64,
    inner: tuple[int, ...],
) -> None:
    """Both matrices with the root of each singular value, of one size, so that neither is small in float16."""
    rank = len(s)
    root = np.sqrt(s)
    arrays[f"{module}.{A}"] = _single((root[:, None] * right).reshape(rank, *inner))
    arrays[f"{module}.{B}"] = _single((left * root).reshape(len(left), rank, *[1] * (len(inner) - 1)))
    sizes[module] = (rank, float(rank))


def _most(s: Float64, rank: int) -> int:
    """How many singular values to keep: at most `rank`, none that is rounding, one at least."""
    return max(min(rank, int((s > _LEAST * s[0]).sum())), 1)


def _matrix(array: Array, shape: tuple[int, int]) -> Float64:
    return array.astype(np.float64).reshape(shape)


def _single(array: Float64) -> Float32:
    return array.astype(np.float32)


def _plain(loras: Sequence[Lora]) -> None:
    if any(each.kind == "dora" for each in loras):
        raise RecipeError(
            "a DoRA is no sum of matrices: it cannot be joined with others or cut to a lower rank",
            todo="merge it into its base model",
        )

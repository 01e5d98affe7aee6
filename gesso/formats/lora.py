"""The LoRA file that `pipe.load_lora_weights(folder)` reads: peft's names after the component's, alpha in the metadata.

    unet.<module>.lora_A.weight    float32 [rank, in] or [rank, in, h, w]
    unet.<module>.lora_B.weight    float32 [out, rank] or [out, rank, 1, 1]
    text_encoder.text_model.<module>.lora_A.weight …

A text encoder's names carry `text_model.`, which transformers 4 needs and diffusers removes for transformers 5. Readers
before diffusers 0.34 ignore the metadata and apply alpha = rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import RecipeError, StorageError
from gesso.formats import tensors
from gesso.formats.metadata import LoraShape, pack, unpack

FILE = "pytorch_lora_weights.safetensors"
_NAME = re.compile(r"(?P<component>[a-z0-9_]+)\.(?P<module>.+)\.(?P<side>lora_[AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An adapter's size: the product of its matrices is scaled by alpha/rank."""

    rank: int
    alpha: float


def write(path: Path, arrays: Mapping[str, Array], config: Config) -> None:
    """Write an adapter in the engine's names (`unet.<module>.lora_A.weight`, any float type) to `path`, in float32.

    `path` is the file, or a folder to put FILE in. Every module that has matrices becomes a target, by its whole name:
    no ending can then match a module that was not trained. Raises RecipeError for names that are no adapter's and for
    matrices of another rank, StorageError when the disk refuses.
    """
    rank = config.rank
    plain: dict[str, Array] = {}
    modules: dict[str, set[str]] = {}
    for name, array in arrays.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise RecipeError(f'"{name}" is not the name of a LoRA matrix', where=str(path))
        component, module = found["component"], found["module"].removeprefix("text_model.")
        axis = 0 if found["side"] == "lora_A" else 1
        if array.ndim < 2 or array.shape[axis] != rank:
            raise RecipeError(f'"{name}" has the shape {array.shape}, which is not of rank {rank}', where=str(path))
        modules.setdefault(component, set()).add(module)
        inner = f"text_model.{module}" if component.startswith("text_encoder") else module
        plain[f"{component}.{inner}.{found['side']}.weight"] = array.astype(np.float32)
    if not plain:
        raise RecipeError("there is no adapter to write", where=str(path))
    _paired(plain, path)
    shapes = {c: LoraShape(rank=rank, alpha=config.alpha, targets=tuple(names)) for c, names in modules.items()}
    tensors.save(path / FILE if path.is_dir() else path, plain, pack(shapes))


def writer(arrays: Mapping[str, Array], config: Config) -> tensors.Sized:
    """`write` for a checkpoint, which chooses the path."""
    size = np.dtype(np.float32).itemsize * sum(array.size for array in arrays.values())
    return tensors.Sized(partial(write, arrays=arrays, config=config), size)


def fit(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which matrices do not fit a base whose weights have `shapes`, by `<component>.<module>.weight`; a sentence each.

    For a weight [out, in, …], lora_A is [rank, in, …] and lora_B [out, rank, …].
    """
    known = {name.replace(".text_model.", ".", 1): shape for name, shape in shapes.items()}
    wrong = []
    for name, array in sorted(arrays.items()):
        found = _NAME.fullmatch(name)
        if found is None:
            raise RecipeError(f'"{name}" is not the name of a LoRA matrix')
        module = f"{found['component']}.{found['module'].removeprefix('text_model.')}"
        shape = known.get(f"{module}.weight")
        if shape is None:
            wrong.append(f"{name}: the base has no layer {module}")
        elif found["side"] == "lora_A" and array.shape[1:] != shape[1:]:
            wrong.append(f"{name} takes {list(array.shape[1:])}, the base's layer {list(shape[1:])}")
        elif found["side"] == "lora_B" and array.shape[0] != shape[0]:
            wrong.append(f"{name} gives {array.shape[0]}, the base's layer {shape[0]}")
    return wrong


def read(path: Path) -> tuple[dict[str, Float32], Config]:
    """The matrices of a LoRA file (or of FILE in a folder) in float32, by `<component>.<module>.lora_A.weight`.

    Without metadata alpha is the rank, as in diffusers. Raises StorageError for a damaged file, a file in another
    trainer's names, and components that differ in rank or alpha.
    """
    path = path / FILE if path.is_dir() else path
    arrays = tensors.load(path, widen=True, finite=True)
    names = {name: _NAME.fullmatch(name) for name in arrays}
    foreign = sorted(name for name, found in names.items() if found is None)
    if foreign or not arrays:
        raise StorageError(
            f"this is not a LoRA in diffusers' form: {foreign[0] if foreign else 'it'} is not \"<component>.<module>."
            'lora_A.weight"',
            where=str(path),
            todo="load it with diffusers' load_lora_weights and save it with save_lora_weights",
        )
    _paired(arrays, path)
    components = sorted({found["component"] for found in names.values() if found})
    ranks = {array.shape[0] for name, array in arrays.items() if ".lora_A." in name}
    known = unpack(tensors.header(path).metadata, components, path)
    ranks |= {shape.rank for shape in known.values()}
    alphas = {shape.alpha for shape in known.values()} or {float(max(ranks))}
    if len(ranks) > 1 or len(alphas) > 1 or (known and len(known) < len(components)):
        raise StorageError(
            f"this LoRA has more than one rank ({sorted(ranks)}) or alpha ({sorted(alphas)}), which gesso cannot carry",
            where=str(path),
            todo="use a LoRA with one rank and one alpha",
        )
    config = Config(rank=ranks.pop(), alpha=alphas.pop())
    return {name: array.astype(np.float32) for name, array in arrays.items()}, config


def _paired(arrays: Mapping[str, Array], path: Path) -> None:
    for name in arrays:
        other = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if other not in arrays:
            raise StorageError(f'"{name}" is there without "{other}"', where=str(path), todo="export the LoRA again")

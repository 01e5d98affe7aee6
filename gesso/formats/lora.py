"""The LoRA file that `pipe.load_lora_weights(folder)` reads: peft's names after the component's, sizes in the metadata.

    unet.<module>.lora_A.weight            float32 [rank, in] or [rank, in, h, w]
    unet.<module>.lora_B.weight            float32 [out, rank] or [out, rank, 1, 1]
    unet.<module>.lora_magnitude_vector    float32 [out] or [1, out, 1, 1], of DoRA alone;
                                           text encoders' has another ".weight" behind
    text_encoder.text_model.<module>.lora_A.weight …

A text encoder's names carry `text_model.`, which transformers 4 needs and diffusers removes for transformers 5. Readers
before diffusers 0.34 ignore the metadata and apply alpha = rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import RecipeError, StorageError
from gesso.formats import tensors
from gesso.formats.metadata import Config, LoraShape, pack, unpack

FILE = "pytorch_lora_weights.safetensors"
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_NAME = re.compile(
    r"(?P<component>[a-z0-9_]+)\.(?P<module>.+)\.(?P<side>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)


def write(path: Path, arrays: Mapping[str, Array], config: Config) -> None:
    """Write an adapter in the engine's names (`unet.<module>.lora_A.weight`, any float type) to `path`, in float32.

    `path` is the file, or a folder to put FILE in. Every module that has matrices becomes a target, by its whole name:
    no ending can then match a module that was not trained. Raises RecipeError for names that are no adapter's and for
    matrices of another rank, StorageError when the disk refuses.
    """
    plain: dict[str, Array] = {}
    sizes: dict[str, dict[str, tuple[int, float]]] = {}
    for name, array in arrays.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise RecipeError(f'"{name}" is not the name of a LoRA matrix', where=str(path))
        component, module, side = found["component"], found["module"].removeprefix("text_model."), found["side"]
        size = config.size(f"{component}.{found['module']}")
        axis = 0 if side == A else 1
        if side != MAGNITUDE and (array.ndim < 2 or array.shape[axis] != size[0]):
            raise RecipeError(f'"{name}" has the shape {array.shape}, which is not of rank {size[0]}', where=str(path))
        sizes.setdefault(component, {})[module] = size
        plain[f"{component}.{named(component, module)}.{side}"] = array.astype(np.float32)
    if not plain:
        raise RecipeError("there is no adapter to write", where=str(path))
    dora = _whole(plain, path)
    if dora != (config.kind == "dora"):
        raise RecipeError(f"these are not the matrices of a {config.kind}", where=str(path))
    shapes = {component: LoraShape(sizes=own, dora=dora) for component, own in sizes.items()}
    # transformers 5, which loads text encoders, knows a magnitude by its whole name alone; others know both.
    whole = {
        f"{name}.weight" if name.startswith("text_encoder") and name.endswith(MAGNITUDE) else name: array
        for name, array in plain.items()
    }
    tensors.save(path / FILE if path.is_dir() else path, whole, pack(shapes))


def named(component: str, module: str, *, wrapped: bool = True) -> str:
    """A module's name as files have it, or, not `wrapped`, as it is in transformers 5 below a text encoder itself."""
    plain = module.removeprefix("text_model.")
    inside = wrapped and component.startswith("text_encoder") and not plain.startswith("text_projection")
    return f"text_model.{plain}" if inside else plain


def writer(arrays: Mapping[str, Array], config: Config) -> tensors.Sized:
    """`write` for a checkpoint, which chooses the path."""
    size = np.dtype(np.float32).itemsize * sum(array.size for array in arrays.values())
    return tensors.Sized(partial(write, arrays=arrays, config=config), size)


def fit(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which matrices do not fit a base whose weights have `shapes`, by `<component>.<module>.weight`; a sentence each.

    For a weight [out, in, …], lora_A is [rank, in, …], lora_B [out, rank, …] and the magnitude has `out` values.
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
        elif found["side"] == A and array.shape[1:] != shape[1:]:
            wrong.append(f"{name} takes {list(array.shape[1:])}, the base's layer {list(shape[1:])}")
        elif found["side"] == B and array.shape[0] != shape[0]:
            wrong.append(f"{name} gives {array.shape[0]}, the base's layer {shape[0]}")
        elif found["side"] == MAGNITUDE and array.size != shape[0]:
            wrong.append(f"{name} gives {array.size}, the base's layer {shape[0]}")
    return wrong


class ForeignError(StorageError):
    """A LoRA file in another program's names."""


def read(path: Path) -> tuple[dict[str, Float32], Config]:
    """The matrices of a LoRA file (or of FILE in a folder) in float32, by `<component>.<module>.lora_A.weight`.

    Without metadata alpha is the rank of each module, as in diffusers. Raises StorageError for a damaged file,
    ForeignError for a file in another program's names.
    """
    path = path / FILE if path.is_dir() else path
    arrays = {
        name.replace(f"{MAGNITUDE}.weight", MAGNITUDE): array
        for name, array in tensors.load(path, widen=True, finite=True).items()
    }
    names = {name: _NAME.fullmatch(name) for name in arrays}
    foreign = sorted(name for name, found in names.items() if found is None)
    if foreign or not arrays:
        raise ForeignError(
            f"this is not a LoRA in diffusers' form: {foreign[0] if foreign else 'it'} is not \"<component>.<module>."
            'lora_A.weight"',
            where=str(path),
            todo=f"`gesso convert {path.name} --to lora.safetensors --form diffusers` rewrites other programs' LoRAs",
        )
    dora = _whole(arrays, path)
    ranks = {
        (found["component"], found["module"]): (*arrays[name].shape, 0)[0]
        for name, found in names.items()
        if found and found["side"] == A
    }
    modules: dict[str, list[str]] = {}
    for component, module in ranks:
        modules.setdefault(component, []).append(module)
    known = unpack(tensors.header(path).metadata, modules, path)
    sizes = {}
    for (component, module), rank in ranks.items():
        declared, alpha = known[component].sizes[module] if component in known else (rank, float(rank))
        matrices = [arrays[f"{component}.{module}.{side}"] for side in (A, B)]
        if declared != rank or min(each.ndim for each in matrices) < 2 or matrices[1].shape[1] != rank:
            raise StorageError(
                f'the matrices of "{component}.{module}" are not of rank {declared}, which the file says that they are',
                where=str(path),
                todo="export the LoRA again",
            )
        sizes[f"{component}.{module}"] = (rank, alpha)
    config = Config.of(sizes, kind="dora" if dora else "lora")
    return {name: array.astype(np.float32) for name, array in arrays.items()}, config


def _whole(arrays: Mapping[str, Array], path: Path) -> bool:
    """StorageError unless every module has all of its parts; whether they are DoRA's."""
    dora = any(name.endswith(MAGNITUDE) for name in arrays)
    sides = (A, B, MAGNITUDE) if dora else (A, B)
    for name in arrays:
        found = _NAME.fullmatch(name)
        assert found is not None
        for side in sides:
            other = f"{found['component']}.{found['module']}.{side}"
            if other not in arrays:
                raise StorageError(
                    f'"{name}" is there without "{other}"', where=str(path), todo="export the LoRA again"
                )
    return dora

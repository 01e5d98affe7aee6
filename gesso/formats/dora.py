"""DoRA for ComfyUI and Forge, which scale a changed weight's rows by the norms of the weight before the change.

    DoRA (Liu et al. 2024, arXiv:2402.09353), LyCORIS, peft    m · (W + ΔW) / ‖W + ΔW‖
    ComfyUI, Forge, of scales for each output channel          m · (W + ΔW) / ‖W‖

With m·‖W‖/‖W + ΔW‖ in place of m, the second gives what the first does, at strength 1 and in between.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gesso.arrays import Array, Float64
from gesso.formats import lora_math
from gesso.formats.kohya import MAGNITUDE, A, B, Sizes
from gesso.formats.single_file import Parts
from gesso.formats.stored import Stored


def for_comfyui(base: Parts, arrays: Mapping[str, Array], sizes: Sizes) -> dict[str, Array]:
    """A DoRA in an engine's names with the magnitudes that make ComfyUI compute it as it was trained on `base`."""
    made = dict(arrays)
    for module, size in sizes.items():
        before, after = _rows(base, arrays, module, size)
        ratio = np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        magnitude = arrays[f"{module}.{MAGNITUDE}"]
        made[f"{module}.{MAGNITUDE}"] = (magnitude.reshape(-1) * ratio).reshape(magnitude.shape).astype(np.float32)
    return made


def as_comfyui(base: Parts, arrays: Mapping[str, Array], sizes: Sizes) -> dict[str, dict[str, Stored]]:
    """The parts of a model with a DoRA in their weights as ComfyUI computes it, in the types that the model has."""
    made = {part: dict(own) for part, own in base.items()}
    for module, size in sizes.items():
        part = module.partition(".")[0]
        name = _name(base, module)
        tensor = base[part][name]

        def read(tensor: Stored = tensor, module: str = module, size: tuple[int, float] = size) -> Array:
            before, after = _rows(base, arrays, module, size)
            scale = arrays[f"{module}.{MAGNITUDE}"].reshape(-1, 1) / np.linalg.norm(before, axis=1, keepdims=True)
            return lora_math.narrowed((after * scale).reshape(tensor.shape), tensor.code, module)

        made[part][name] = Stored(code=tensor.code, shape=tensor.shape, read=read)
    return made


def _rows(base: Parts, arrays: Mapping[str, Array], module: str, size: tuple[int, float]) -> tuple[Float64, Float64]:
    """A layer's weight as a matrix [out, n], before and after the change."""
    tensor = base[module.partition(".")[0]][_name(base, module)]
    before = tensor.widened().astype(np.float64).reshape(tensor.shape[0], -1)
    down, up = (arrays[f"{module}.{side}"].astype(np.float64) for side in (A, B))
    rank, alpha = size
    return before, before + alpha / rank * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))


def _name(base: Parts, module: str) -> str:
    part, _, inner = module.partition(".")
    return f"{inner}.weight" if f"{inner}.weight" in base[part] else f"text_model.{inner}.weight"

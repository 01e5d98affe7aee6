"""LoHa and LoKr in kohya's names, as LyCORIS writes them and as A1111, Forge and ComfyUI read them.

    lora_unet_<module>.hada_w1_a [out, rank]  hada_w1_b [rank, n]  hada_w2_a  hada_w2_b
    lora_unet_<module>.lokr_w1   lokr_w2, or lokr_w2_a [out/a, rank] and lokr_w2_b [rank, n/b]
    lora_unet_<module>.alpha     a number; the product is scaled by alpha/rank

A LoKr whose two factors are whole has no rank, and every reader takes its scale for 1 whatever alpha says: the scale
that it was trained with is multiplied into lokr_w2. OFT is not here: peft turns a layer's inputs, and the oft_blocks
that kohya's readers know turn its outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import RecipeError, StorageError
from gesso.formats import adapter, kohya, layout
from gesso.formats.layout import Geometry
from gesso.formats.metadata import Config

KINDS = ("loha", "lokr")
_SIDE = re.compile(r"(?P<module>.+)\.(?P<side>hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)")


def kind_of(names: Mapping[str, object]) -> str | None:
    """ "loha" or "lokr" where the names are of one of these in kohya's form."""
    if not kohya.is_one(names):
        return None
    found = {"hada_": "loha", "lokr_": "lokr"}
    return next((kind for side, kind in found.items() if any(f".{side}w1" in name for name in names)), None)


def pack(
    arrays: Mapping[str, Array], config: Config, family: str, geometry: Geometry = layout.SDXL
) -> dict[str, Float32]:
    """kohya's tensors of a LoHa or LoKr in an engine's names, float32. RecipeError where the form has no name."""
    if config.kind not in KINDS:
        raise RecipeError(f"kohya's form has no {config.kind} of peft's")
    table = layout.unet(geometry)
    made: dict[str, Float32] = {}
    for name, array in arrays.items():
        found = _SIDE.fullmatch(name)
        if found is None:
            raise RecipeError(f'"{name}" is not the name of a matrix of {" or ".join(KINDS)}')
        component, _, module = found["module"].partition(".")
        flat = kohya.flat_name(component, module.removeprefix("text_model."), family, table)
        rank, alpha = config.size(found["module"])
        whole = found["side"] == "lokr_w2"
        values = array.astype(np.float64) * (alpha / rank) if whole and alpha != rank else array
        made[f"{flat}.{found['side']}"] = np.ascontiguousarray(values, dtype=np.float32)
        full = f"{found['module']}.lokr_w2" in arrays
        made[f"{flat}.alpha"] = np.array(rank if full else alpha, dtype=np.float32)
    return made


def unpack(arrays: Mapping[str, Array], geometry: Geometry = layout.SDXL) -> tuple[dict[str, Array], Config]:
    """A LoHa or LoKr in an engine's names, as a reader of kohya's form understands it.

    StorageError for other matrices than `pack` writes: tensors in CP form, and both of LoKr's factors decomposed.
    """
    table = layout.inverse(layout.unet(geometry))
    made: dict[str, Array] = {}
    alphas: dict[str, float] = {}
    for name, array in arrays.items():
        flat, _, side = name.partition(".")
        module = kohya.module_name(flat, table)
        if side == "alpha":
            if array.size != 1 or not np.isfinite(array).all():
                raise StorageError(f'"{name}" is not one number')
            alphas[module] = float(array.reshape(-1)[0])
        else:
            made[f"{module}.{side}"] = array
    other = next((name for name in made if not _SIDE.fullmatch(name) or name.endswith(("lokr_w1_a", "lokr_w1_b"))), "")
    if other:
        raise StorageError(f'"{other}" is not a matrix that gesso knows of a LoHa or LoKr')
    sizes = {}
    for module in adapter.modules(made):
        rank = next(
            (len(made[f"{module}.{side}"]) for side in ("hada_w1_b", "lokr_w2_b") if f"{module}.{side}" in made), 1
        )
        sizes[module] = (rank, float(rank) if f"{module}.lokr_w2" in made else alphas.get(module, float(rank)))
    if not sizes or alphas.keys() - sizes.keys():
        raise StorageError("there is an alpha without matrices" if sizes else "there is no adapter in it")
    return made, Config.of(sizes, kind="loha" if any(".hada_" in name for name in made) else "lokr")

"""LoRA files as kohya's scripts write them, and as A1111, ComfyUI and most others read them.

    lora_unet_<module>.lora_down.weight     [rank, in] or [rank, in, h, w]
    lora_unet_<module>.lora_up.weight       [out, rank] or [out, rank, 1, 1]
    lora_unet_<module>.alpha                a number; the output is scaled by alpha/rank
    lora_unet_<module>.dora_scale           [out, 1] or [out, 1, 1, 1], of DoRA alone
    lora_te_<module> … (SD 1 and 2), lora_te1_… and lora_te2_… (SDXL)

In a module's name the dots are underscores. The UNet of SD 1 and 2 has diffusers' names, that of SDXL has the original
code's (input_blocks_4_1_…). Underscores are undone word by word: no two modules of these networks flatten to one name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import RecipeError, StorageError
from gesso.formats import layout
from gesso.formats.layout import Geometry

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
Sizes = Mapping[str, tuple[int, float]]
"""(rank, alpha) of each module, named `<component>.<module>` without `text_model.`."""

_SIDES = {A: "lora_down.weight", B: "lora_up.weight", MAGNITUDE: "dora_scale"}
_ENCODERS = {
    "sd1": {"text_encoder": "lora_te_"},
    "sd2": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}
FAMILIES = tuple(_ENCODERS)
_UNET = "lora_unet_"
_PREFIXES = {
    _UNET: "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
}  # fmt: skip
"""The last is what LyCORIS calls the one network that it is put around outside of kohya's scripts."""
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_emb_proj", "conv_shortcut", "conv_norm_out",
    "time_embedding", "add_embedding", "linear_1", "linear_2", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out",
    "conv_in", "conv_out", "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "time_embed", "label_emb", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "token_embedding", "position_embedding", "text_projection",
)  # fmt: skip
"""Parts of a module's name that hold an underscore themselves."""
_PART = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)) + "|[a-z0-9]+")
_LDM = ("input_blocks", "middle_block", "output_blocks", "time_embed.", "label_emb", "out.")
_KEY = re.compile(r"(?P<prefix>lora_unet_|lora_te1?_|lora_te2_|lycoris_)(?P<flat>[a-z0-9_]+)\.(?P<side>.+)")
_OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "a CP decomposition",
    "diff": "a full difference",
}


def pack(
    arrays: Mapping[str, Array], sizes: Sizes, family: str, geometry: Geometry = layout.SDXL
) -> dict[str, Float32]:
    """kohya's tensors of a LoRA in an engine's names (`unet.<module>.lora_A.weight`), float32, with each alpha.

    geometry: of the UNet of SDXL, whose blocks are counted through. Raises RecipeError for a family that has no such
    form and for a component or module that the form has no name for.
    """
    if family not in _ENCODERS:
        raise RecipeError(f"kohya's LoRA form has no names for {family}")
    table = layout.unet(geometry)
    made: dict[str, Float32] = {}
    for name, array in arrays.items():
        component, module, side = _split(name)
        if side == MAGNITUDE:
            # kohya's is a column of the layer's weight; peft's is flat, or has the channels second.
            array = array.reshape(-1, *([1] * (arrays[f"{name[: -len(side)]}{A}"].ndim - 1)))
        flat = flat_name(component, module, family, table)
        made[f"{flat}.{_SIDES[side]}"] = np.ascontiguousarray(array, dtype=np.float32)
        made[f"{flat}.alpha"] = np.array(sizes[f"{component}.{module}"][1], dtype=np.float32)
    return made


def unpack(
    arrays: Mapping[str, Array], geometry: Geometry = layout.SDXL
) -> tuple[dict[str, Array], dict[str, tuple[int, float]]]:
    """A LoRA in an engine's names, and each module's (rank, alpha), from kohya's; without an alpha it is the rank.

    Raises StorageError for other adapters than LoRA and DoRA, for names that no such module has, for a module without
    all of its parts, and for parts of different ranks.
    """
    table = layout.inverse(layout.unet(geometry))
    made: dict[str, Array] = {}
    alphas: dict[str, float] = {}
    sides = {theirs: own for own, theirs in _SIDES.items()}
    for name, array in arrays.items():
        found = _KEY.fullmatch(name)
        side = found["side"] if found else ""
        if found is None or side not in (*sides, "alpha"):
            other = next((what for start, what in _OTHERS.items() if side.startswith(start)), "")
            raise StorageError(
                f'"{name}" is {other}, which cannot be carried over to a LoRA' if other else f'"{name}" is not kohya\'s'
            )
        component = _PREFIXES[found["prefix"]]
        module = f"{component}.{_module(found['flat'], component, table)}"
        if side == "alpha":
            alphas[module] = _alpha(array, name)
            continue
        if f"{module}.{sides[side]}" in made:
            raise StorageError(f'"{name}" and another name mean the same matrix')
        made[f"{module}.{sides[side]}"] = _magnitude(array, name) if side == "dora_scale" else array
    sizes = ranks(made)
    stray = sorted(alphas.keys() - sizes.keys())
    if stray:
        raise StorageError(f'"{stray[0]}" has an alpha, but no matrices')
    return made, {module: (rank, alphas.get(module, float(rank))) for module, rank in sizes.items()}


def evened(arrays: Mapping[str, Array], sizes: Sizes) -> tuple[dict[str, Array], dict[str, tuple[int, float]]]:
    """The same LoRA with one alpha for all modules, the commonest: the others' lora_B takes up the difference, in fp32.

    Some readers (diffusers to 0.42) apply one alpha to all attention layers, whatever the file says of each.
    """
    alpha = Counter(own for _, own in sizes.values()).most_common(1)[0][0]
    made = dict(arrays)
    for module, (_, own) in sizes.items():
        if own != alpha:
            made[f"{module}.{B}"] = (arrays[f"{module}.{B}"].astype(np.float64) * (own / alpha)).astype(np.float32)
    return made, {module: (rank, alpha) for module, (rank, _) in sizes.items()}


def ranks(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Each module's rank; StorageError unless each has both matrices, of one rank, and all or none a magnitude."""
    sizes: dict[str, int] = {}
    dora = any(name.endswith(MAGNITUDE) for name in arrays)
    for name in arrays:
        module = name.removesuffix(f".{A}").removesuffix(f".{B}").removesuffix(f".{MAGNITUDE}")
        absent = [side for side in (A, B, *([MAGNITUDE] if dora else [])) if f"{module}.{side}" not in arrays]
        if absent:
            raise StorageError(f'"{module}" has no {absent[0]}')
        down, up = arrays[f"{module}.{A}"], arrays[f"{module}.{B}"]
        if down.ndim < 2 or down.ndim != up.ndim or down.shape[0] != up.shape[1]:
            raise StorageError(f'"{module}" has matrices of {list(down.shape)} and {list(up.shape)}, of no one rank')
        sizes[module] = down.shape[0]
    return sizes


def family_of(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The base's family by the shapes of a LoRA in an engine's names; None where they do not tell.

    Cross-attention reads the text: 768 numbers a word in SD 1, 1024 in SD 2, 2048 in SDXL.
    """
    widths = {"768": "sd1", "1024": "sd2", "2048": "sdxl"}
    for name, shape in shapes.items():
        if name.startswith("text_encoder_2."):
            return "sdxl"
        if name.startswith("unet.") and re.search(r"\.attn2\.to_[kv]\.lora_A\.weight$", name):
            return widths.get(str(shape[1]))
    return None


def metadata(sizes: Sizes, family: str, title: str) -> dict[str, str]:
    """What kohya's readers and ModelSpec 1.0.1 show of a LoRA; no path, no caption, no time.

    kohya's own scripts write "Dynamic" where modules differ.
    """
    ours, theirs = ({f"{size[which]:g}" for size in sizes.values()} for which in (0, 1))
    models = {
        "sd1": ("sd_v1", "stable-diffusion-v1", "512x512"),
        "sd2": ("sd_v2", "stable-diffusion-v2", "768x768"),
        "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "1024x1024"),
    }
    version, architecture, resolution = models[family]
    return {
        "format": "pt",
        "ss_base_model_version": version,
        "ss_network_alpha": theirs.pop() if len(theirs) == 1 else "Dynamic",
        "ss_network_dim": ours.pop() if len(ours) == 1 else "Dynamic",
        "ss_network_module": "networks.lora",
        "ss_output_name": title,
        "ss_v2": str(family == "sd2"),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers"
        if family != "sdxl"
        else "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": resolution,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
    }


def is_one(names: Mapping[str, object]) -> bool:
    """Whether these are names of kohya's form."""
    return any(name.startswith(tuple(_PREFIXES)) for name in names)


def _split(name: str) -> tuple[str, str, str]:
    component, _, rest = name.partition(".")
    for side in _SIDES:
        if rest.endswith(f".{side}"):
            return component, rest.removesuffix(f".{side}").removeprefix("text_model."), side
    raise RecipeError(f'"{name}" is not the name of a LoRA matrix')


def flat_name(component: str, module: str, family: str, table: Mapping[str, str]) -> str:
    """What kohya's form calls a module; `table` is layout.unet's. RecipeError where it has no name for it."""
    if component == "unet":
        other = layout.translate(f"{module}.weight", table) if family == "sdxl" else f"{module}.weight"
        if other is None:
            raise RecipeError(f"the UNet's \"{module}\" has no name in kohya's form")
        return _UNET + other.removesuffix(".weight").replace(".", "_")
    if component not in _ENCODERS[family]:
        raise RecipeError(f'kohya\'s form has no "{component}" of {family}')
    own = module if module.startswith("text_projection") else f"text_model.{module}"
    return _ENCODERS[family][component] + own.replace(".", "_")


def module_name(flat: str, table: Mapping[str, str]) -> str:
    """The module, `<component>.<module>`, that a name of kohya's means; `table` is the inverse of layout.unet's."""
    found = _KEY.fullmatch(f"{flat}.alpha")
    if found is None:
        raise StorageError(f'"{flat}" is not kohya\'s')
    component = _PREFIXES[found["prefix"]]
    return f"{component}.{_module(found['flat'], component, table)}"


def _module(flat: str, component: str, table: Mapping[str, str]) -> str:
    parts = []
    at = 0
    while at < len(flat):
        found = _PART.match(flat, at)
        if found is None or flat[found.end() : found.end() + 1] not in ("", "_"):
            raise StorageError(f'"{flat}" is no module of Stable Diffusion')
        parts.append(found[0])
        at = found.end() + 1
    module = ".".join(parts)
    if component != "unet":
        return module.removeprefix("text_model.")
    if not f"{module}.".startswith(_LDM):
        return module
    ours = layout.translate(f"{module}.weight", table)
    if ours is None:
        raise StorageError(
            f'the UNet has no "{module}"',
            todo="name the folder of the LoRA's base model with --like, if it is not SDXL's",
        )
    return ours.removesuffix(".weight")


def _alpha(array: Array, name: str) -> float:
    if array.size != 1 or not np.isfinite(array).all():
        raise StorageError(f'"{name}" is not one number')
    return float(array.reshape(-1)[0])


def _magnitude(array: Array, name: str) -> Array:
    if array.ndim > 1 and array.shape[0] == 1 and array.size > 1:
        raise StorageError(
            f'"{name}" scales the columns of the weight, peft\'s DoRA its rows: it cannot be carried over',
            todo="train the DoRA with wd_on_output",
        )
    # peft's convolutions have the channels second.
    return array.reshape(-1) if array.ndim <= 2 else array.reshape(1, -1, *([1] * (array.ndim - 2)))

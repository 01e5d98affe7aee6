"""Stable Diffusion in one file, as CompVis and Stability lay it out ("LDM"), to and from a pipeline's parts.

    model.diffusion_model.*                 the UNet
    first_stage_model.*                     the autoencoder; its attention has 1 × 1 convolutions for matrices
    cond_stage_model.transformer.*          SD 1: CLIP in transformers' names
    cond_stage_model.model.*                SD 2: OpenCLIP
    conditioner.embedders.0.transformer.*   SDXL: CLIP in transformers' names
    conditioner.embedders.1.model.*         SDXL: OpenCLIP; its refiner has it as embedders.0

Bits are moved, never changed: there is no arithmetic here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gesso.errors import StorageError
from gesso.formats import layout, openclip
from gesso.formats.stored import Stored, Tensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl-refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}
"""Where each family keeps its text encoders; names that end with `.model.` are OpenCLIP's."""
NAMES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL", "sdxl-refiner": "SDXL refiner"}
Parts = Mapping[str, Tensors]
"""For each part of a pipeline ("unet", "vae", "text_encoder", …) its tensors in diffusers' names."""
FLAGS = ("v_pred", "ztsnr")
"""Empty tensors by which SDXL files say that they predict v, and that their last step is pure noise."""
_COMPUTED = re.compile(
    r"(model_ema|(first_stage_model\.)?loss)\..*|denoiser\.sigmas"
    r"|betas|alphas_cumprod|alphas_cumprod_prev|lvlb_weights|logvar|scale_factor"
    r"|(sqrt|sqrt_one_minus|log_one_minus|sqrt_recip|sqrt_recipm1)_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)"
    r"|.*\.embeddings\.position_ids|.*\.(logit_scale|attn_mask)"
)
"""What files of the original training code also hold: averages, tables of the schedule, and what is computed."""
_OLD_CLIP = ("embeddings.", "encoder.", "final_layer_norm.")
_LAST_UNUSED = 23
"""OpenCLIP ViT-H has 24 layers; SD 2 takes what the 23rd gives, and diffusers' folders leave the last out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What a single file holds: the family, its parts, which names were left out, and which flags stood there."""

    family: str
    parts: Mapping[str, Mapping[str, Stored]]
    dropped: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def pack(parts: Parts, family: str) -> dict[str, Stored]:
    """The tensors of a single file from the parts of a pipeline of `family`.

    Raises StorageError for a missing or needless part, and for a parameter that the family does not have.
    """
    needed = {"unet", "vae", *TEXT[family]}
    if parts.keys() != needed:
        odd = sorted(needed.symmetric_difference(parts))
        raise StorageError(
            f"a single file of {NAMES[family]} takes {', '.join(sorted(needed))}; {odd[0]} is "
            f"{'missing' if odd[0] in needed else 'one too many'}"
        )
    made = {UNET + name: tensor for name, tensor in _unet(parts["unet"]).items()}
    made |= {VAE + name: tensor for name, tensor in _vae(parts["vae"]).items()}
    for part, prefix in TEXT[family].items():
        own = openclip.legacy(parts[part])
        packed = openclip.pack(own) if prefix.endswith(".model.") else own
        made |= {prefix + name: tensor for name, tensor in packed.items()}
    return made


def family_of(names: Mapping[str, object]) -> str | None:
    """The family of a single file by its names; None where they are not a single file's."""
    for family, texts in TEXT.items():
        if all(any(name.startswith(prefix) for name in names) for prefix in (UNET, *texts.values())):
            return family
    return None


def unpack(arrays: Tensors) -> Unpacked:
    """The parts of a single file. Raises StorageError where a name belongs to none, so that nothing is lost unsaid."""
    family = family_of(arrays)
    if family is None:
        raise StorageError(
            "this is not a single file of Stable Diffusion 1, 2 or XL: the UNet or a text encoder is not in it",
            todo="`gesso inspect` tells what it is",
        )
    flags = tuple(name for name in FLAGS if name in arrays)
    dropped = [name for name in arrays if _COMPUTED.fullmatch(name)]
    rest = {name: tensor for name, tensor in arrays.items() if name not in (*dropped, *flags)}
    parts: dict[str, dict[str, Stored]] = {
        "unet": _from_unet(_taken(rest, UNET)),
        "vae": _from_vae(_taken(rest, VAE)),
    }
    for part, prefix in TEXT[family].items():
        own = _taken(rest, prefix)
        if not prefix.endswith(".model."):
            parts[part] = openclip.legacy(
                {("text_model." if name.startswith(_OLD_CLIP) else "") + name: each for name, each in own.items()}
            )
            continue
        if family == "sd2":
            unused = [name for name in own if name.startswith(f"transformer.resblocks.{_LAST_UNUSED}.")]
            unused += [name for name in own if name == "text_projection"]
            dropped += [prefix + name for name in unused]
            own = {name: each for name, each in own.items() if name not in unused}
        parts[part], unknown = openclip.unpack(own)
        rest |= {prefix + name: own[name] for name in unknown}
    if rest:
        raise StorageError(f'{len(rest)} names are in no part of {NAMES[family]}, "{min(rest)}" among them')
    return Unpacked(family=family, parts=parts, dropped=tuple(sorted(dropped)), flags=flags)


def _taken(rest: dict[str, Stored], prefix: str) -> dict[str, Stored]:
    """The tensors under a prefix, without it; they are removed from `rest`."""
    names = [name for name in rest if name.startswith(prefix)]
    return {name[len(prefix) :]: rest.pop(name) for name in names}


def _unet(ours: Tensors) -> dict[str, Stored]:
    table = layout.unet(layout.unet_geometry(ours))
    return {_known(layout.translate(name, table), name, "unet"): tensor for name, tensor in ours.items()}


def _from_unet(theirs: Tensors) -> dict[str, Stored]:
    table = layout.inverse(layout.unet(layout.ldm_unet_geometry(theirs)))
    return {_known(layout.translate(name, table), name, "unet"): tensor for name, tensor in theirs.items()}


def _vae(ours: Tensors) -> dict[str, Stored]:
    modern = {layout.modern(name): tensor for name, tensor in ours.items()}
    table = layout.vae_table(modern)
    return {
        _known(layout.translate(name, table), name, "vae"): openclip.reshaped(tensor, (*tensor.shape, 1, 1))
        if _is_matrix(name, tensor)
        else tensor
        for name, tensor in modern.items()
    }


def _from_vae(theirs: Tensors) -> dict[str, Stored]:
    table = layout.inverse(layout.vae_table(theirs))
    made = {}
    for name, tensor in theirs.items():
        ours = _known(layout.translate(name, table), name, "vae")
        if ".attentions." in ours and len(tensor.shape) == 4 and tensor.shape[2:] == (1, 1):
            tensor = openclip.reshaped(tensor, tensor.shape[:2])
        made[ours] = tensor
    return made


def _is_matrix(name: str, tensor: Stored) -> bool:
    return ".attentions." in name and len(tensor.shape) == 2


def _known(other: str | None, name: str, part: str) -> str:
    if other is None:
        raise StorageError(f'the {part}\'s "{name}" is no parameter of Stable Diffusion 1, 2 or XL')
    return other

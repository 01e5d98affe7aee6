"""What tensors are, by their names and shapes alone: a whole model, a part, a LoRA, a learned word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Array
from gesso.errors import GessoError, StorageError
from gesso.formats import adapter, kohya, layout, lora_forms, lycoris, mindspore_names, single_file
from gesso.formats.stored import FLOATS, Stored, Tensors

_CHUNK = 1 << 22
"""Numbers looked at at once."""
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""The bits of a float that are all set in a NaN or an infinity."""
_PARTS = {
    "unet": ("down_blocks.0.", "conv_in.weight", "mid_block."),
    "vae": ("encoder.", "decoder.", "quant_conv."),
}
_LDM_PARTS = {single_file.UNET: "unet", single_file.VAE: "vae", "control_model.": "controlnet"}
_MAGIC = {
    b"GGUF": "a GGUF file", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"RIFF": "a RIFF file",
    b"\x89HDF": "an HDF5 file", b"7z\xbc\xaf": "a 7z archive", b"\x1f\x8b": "a gzip file", b"Rar!": "a RAR archive",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not fetched", b"<!doctype": "a web page",
    b"<html": "a web page",
}  # fmt: skip
"""How files begin that are taken for models, mostly because a download went wrong."""
Facts = dict[str, Any]


def describe(arrays: Tensors, metadata: Mapping[str, str]) -> Facts:
    """What these tensors are: "kind", and what else is known of that kind. Only single numbers (alphas) are read."""
    for test in (_lora, _whole, _part, _words):
        found = test(arrays, metadata)
        if found:
            return found
    tops = Counter(name.partition(".")[0] for name in arrays).most_common(5)
    return {"kind": "unknown", "names": [f"{top}.… ({count})" for top, count in tops]}


def other(head: bytes) -> str | None:
    """What a file that begins so is, where that is known and no model."""
    begin = head.lstrip().lower()
    return next((what for start, what in _MAGIC.items() if head.startswith(start) or begin.startswith(start)), None)


def sizes(arrays: Tensors) -> Facts:
    """Numbers of all tensors: how many, their types, their bytes."""
    return {
        "tensors": len(arrays),
        "types": dict(sorted(Counter(tensor.code for tensor in arrays.values()).items())),
        "bytes": sum(tensor.nbytes for tensor in arrays.values()),
    }


def not_finite(arrays: Tensors) -> list[str]:
    """The names of tensors that hold a NaN or an infinity; read in pieces, so that no tensor is held whole."""
    return [name for name, tensor in arrays.items() if tensor.code in FLOATS and _has_not_finite(tensor)]


def require_finite(arrays: Tensors, what: str, source: Path) -> None:
    """StorageError that names the first tensor with a NaN or an infinity; `what` and `source` are for messages."""
    odd = not_finite(arrays)
    if odd:
        raise StorageError(
            f'the {what}\'s "{odd[0]}" holds numbers that are not finite',
            where=str(source),
            todo="use an earlier checkpoint, or fetch the file again",
        )


def _has_not_finite(tensor: Stored) -> bool:
    kind, mask = _EXPONENTS[tensor.code]
    bits = tensor.read().reshape(-1).view(kind)
    mask_ = np.array(mask, dtype=kind)
    return any(bool(((bits[at : at + _CHUNK] & mask_) == mask_).any()) for at in range(0, bits.size, _CHUNK))


def _lora(arrays: Tensors, metadata: Mapping[str, str]) -> Facts | None:
    form = lora_forms.form_of(arrays)
    kind = lycoris.kind_of(arrays)
    if kind is not None:
        return _lycoris(arrays, kind)
    if form is None:
        odd = {"hada_w1_a": "loha", "lokr_w1": "lokr", "oft_R.weight": "oft"}
        other = next((kind for end, kind in odd.items() if any(name.endswith(end) for name in arrays)), None)
        return {"kind": "adapter", "form": "peft", "adapter": other} if other else None
    try:
        found = lora_forms.standard(_outlines(arrays), metadata)
    except GessoError as error:
        return {"kind": "adapter", "form": form, "problem": error.what}
    shapes = {name: array.shape for name, array in found.arrays.items()}
    return {
        "kind": "adapter",
        "form": form,
        "adapter": found.kind,
        "family": kohya.family_of(shapes),
        "ranks": sorted({rank for rank, _ in found.sizes.values()}),
        "alphas": sorted({alpha for _, alpha in found.sizes.values()}),
        "modules": dict(sorted(Counter(name.partition(".")[0] for name in found.sizes).items())),
        "targets": sorted({_target(name) for name in found.sizes}),
    }


def _lycoris(arrays: Tensors, kind: str) -> Facts:
    """A LoHa or LoKr in kohya's names; those that no module of SDXL has are told as a problem."""
    try:
        found, config = lycoris.unpack(_outlines(arrays))
    except GessoError as error:
        return {"kind": "adapter", "form": "kohya", "adapter": kind, "problem": error.what}
    sizes = adapter.sizes(found, config)
    return {
        "kind": "adapter",
        "form": "kohya",
        "adapter": kind,
        "ranks": sorted({rank for rank, _ in sizes.values()}),
        "alphas": sorted({alpha for _, alpha in sizes.values()}),
        "modules": dict(sorted(Counter(name.partition(".")[0] for name in sizes).items())),
        "targets": sorted({_target(name) for name in sizes}),
    }


def _outlines(arrays: Tensors) -> dict[str, Array]:
    """Arrays of the right shapes that take no memory; single numbers, which alphas are, have their value."""
    return {
        name: tensor.widened()
        if tensor.shape in ((), (1,)) and tensor.code in FLOATS
        else np.broadcast_to(np.float32(0), tensor.shape)
        for name, tensor in arrays.items()
    }


def _target(name: str) -> str:
    """The end of a module's name that says which layer it is: to_q, to_out.0, ff.net.2."""
    words = [word for word in name.split(".")[1:] if not word.isdigit() or word in name.split(".")[-1:]]
    return ".".join(words[-2:]) if words[-1].isdigit() else words[-1]


def _whole(arrays: Tensors, metadata: Mapping[str, str]) -> Facts | None:
    family, form = single_file.family_of(arrays), "single file"
    unpack = single_file.unpack
    if mindspore_names.is_one(arrays):
        family, form, unpack = "", "mindspore", mindspore_names.unpack
    if family is None:
        return None
    try:
        found = unpack(arrays)
    except GessoError as error:
        return {"kind": "model", "form": form, "family": family or None, "problem": error.what}
    return {
        "kind": "model",
        "form": form,
        "family": found.family,
        "parts": {part: len(own) for part, own in found.parts.items()},
        "left_out": len(found.dropped),
        **({"flags": list(found.flags)} if found.flags else {}),
        **_unet_facts(found.parts["unet"]),
    }


def _part(arrays: Tensors, metadata: Mapping[str, str]) -> Facts | None:
    for prefix, part in _LDM_PARTS.items():
        if arrays and all(name.startswith(prefix) for name in arrays):
            return {"kind": "part", "form": "single file", "part": part}
    if any(name.startswith(("controlnet_cond_embedding.", "controlnet_down_blocks.")) for name in arrays):
        return {"kind": "part", "form": "diffusers", "part": "controlnet"}
    if all(any(name.startswith(start) for name in arrays) for start in _PARTS["unet"]):
        return {"kind": "part", "form": "diffusers", "part": "unet", **_unet_facts(arrays)}
    if all(any(name.startswith(start) for name in arrays) for start in _PARTS["vae"]):
        ours = any(".down_blocks." in name for name in arrays)
        return {"kind": "part", "form": "diffusers" if ours else "single file", "part": "vae"}
    if any(name.endswith("embeddings.token_embedding.weight") for name in arrays):
        return {"kind": "part", "form": "diffusers", "part": "text_encoder"}
    return None


def _words(arrays: Tensors, metadata: Mapping[str, str]) -> Facts | None:
    flat = all(len(tensor.shape) in (1, 2) and tensor.code in FLOATS for tensor in arrays.values())
    if not arrays or not flat or len(arrays) > 2 or any("." in name for name in arrays):
        return None
    if any(0 in tensor.shape for tensor in arrays.values()):
        return None
    form = "sdxl" if arrays.keys() <= {"clip_l", "clip_g"} else "a1111" if "emb_params" in arrays else "diffusers"
    return {
        "kind": "word",
        "form": form,
        "word": metadata.get("token") or (None if form != "diffusers" else next(iter(arrays))),
        "vectors": {name: tensor.shape[0] if len(tensor.shape) == 2 else 1 for name, tensor in arrays.items()},
        "width": {name: tensor.shape[-1] for name, tensor in arrays.items()},
        "family": _word_family([tensor.shape[-1] for tensor in arrays.values()], form),
    }


def _word_family(widths: Sequence[int], form: str) -> str | None:
    return "sdxl" if form == "sdxl" else {768: "sd1", 1024: "sd2"}.get(widths[0])


def _unet_facts(unet: Tensors) -> Facts:
    geometry = layout.unet_geometry(unet)
    words = {tensor.shape[-1] for name, tensor in unet.items() if name.endswith("attn2.to_k.weight")}
    first = unet.get("conv_in.weight")
    return {
        "levels": geometry.levels,
        "text_width": max(words, default=None),
        "channels_in": first.shape[1] if first and len(first.shape) == 4 else None,
    }

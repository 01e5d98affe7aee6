"""What MindSpore's Stable Diffusion 1 and 2 (mindone) call the parameters of the original code's single file.

The UNet's convolutions lie in a wrapper (`op.conv.weight`), the two halves of a resnet have names for numbers, norms
have gamma and beta, and the text encoder of both families is arranged as OpenCLIP's. Newer files write an
autoencoder's norms as weight and bias, which is read too. SD 2 has 1214 tensors, SD 1 has 1082.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gesso.errors import RecipeError, StorageError
from gesso.formats import single_file
from gesso.formats.single_file import NAMES, UNET, VAE, Parts, Unpacked
from gesso.formats.stored import Stored, Tensors

TEXT = "cond_stage_model.transformer."
FAMILIES = ("sd1", "sd2")
Rules = tuple[tuple[str, str, bool], ...]
"""(end of a module's name in LDM, in MindSpore, whether it is a norm)."""

_UNET: Rules = (
    ("in_layers.0", "in_layers_norm", True),
    ("in_layers.2", "in_layers_conv.conv", False),
    ("out_layers.0", "out_layers_norm", True),
    ("out_layers.3", "out_layers_conv.conv", False),
    ("skip_connection", "skip_connection.conv", False),
    ("input_blocks.0.0", "input_blocks.0.0.conv", False),
    ("op", "op.conv", False),
    ("conv", "conv.conv", False),
    ("out.0", "out.0", True),
    ("out.2", "out.2.conv", False),
    *((name, name, True) for name in ("norm", "norm1", "norm2", "norm3")),
)
_VAE: Rules = tuple((name, name, True) for name in ("norm", "norm1", "norm2", "norm_out"))
_TEXT: Rules = (
    ("attn.out_proj", "attn.attn.out_proj", False),
    ("mlp.c_fc", "c_fc", False),
    ("mlp.c_proj", "c_proj", False),
    *((name, name, True) for name in ("ln_1", "ln_2", "ln_final")),
)
_TABLES = {"token_embedding.weight": "embedding_table", "positional_embedding": "positional_embedding"}
_STACKED = re.compile(r"(resblocks\.\d+)\.attn\.in_proj_(weight|bias)")
_STACKED_THERE = re.compile(r"(resblocks\.\d+)\.attn\.attn\.in_proj\.(weight|bias)")
_NORM = {"weight": "gamma", "bias": "beta"}
_TRAINING = re.compile(
    r"(moments|moment1|moment2|adam_m|adam_v|accum|ema)\..*|(global_step|epoch_num|step_num|learning_rate|beta[12]_power)"
)
"""What a checkpoint of a training holds besides the model."""


def pack(parts: Parts, family: str) -> dict[str, Stored]:
    """MindSpore's tensors of a pipeline's parts ("unet", "vae", "text_encoder"), in the order of their names.

    Raises RecipeError for another family, and StorageError for what `single_file.pack` refuses.
    """
    if family not in FAMILIES:
        raise RecipeError(
            f"MindSpore checkpoints are written of Stable Diffusion 1 and 2 alone, not of {NAMES[family]}",
            todo="write a diffusers folder, which mindone.diffusers reads too",
        )
    # SD 2's single file has the text encoder as OpenCLIP's, which is MindSpore's form for both.
    single = single_file.pack(parts, "sd2")
    text = single_file.TEXT["sd2"]["text_encoder"]
    made = {}
    for name, tensor in single.items():
        prefix, rules = (UNET, _UNET) if name.startswith(UNET) else (VAE, _VAE)
        if name.startswith(text):
            made[TEXT + _text(name[len(text) :])] = tensor
        else:
            made[prefix + _renamed(name[len(prefix) :], rules)] = tensor
    return dict(sorted(made.items()))


def plain(name: str) -> str:
    """A name of one of diffusers' or transformers' layers, as mindone saves it, in their own way."""
    module, _, last = name.rpartition(".")
    own = {"embedding_table": "weight", "gamma": "weight", "beta": "bias"}.get(last, last)
    return f"{module}.{own}" if module else name


def is_one(names: Mapping[str, object]) -> bool:
    """Whether these are the names of a Stable Diffusion in MindSpore."""
    return TEXT + "embedding_table" in names


def unpack(arrays: Tensors) -> Unpacked:
    """The parts of a MindSpore checkpoint. Raises StorageError where a name belongs to none."""
    if not is_one(arrays):
        raise StorageError(
            "this checkpoint is not a Stable Diffusion 1 or 2 in MindSpore's names",
            todo="`gesso inspect` tells what it is",
        )
    dropped = [name for name in arrays if _TRAINING.fullmatch(name)]
    single = {}
    for name, tensor in arrays.items():
        if name in dropped:
            continue
        if name.startswith(TEXT):
            other = single_file.TEXT["sd2"]["text_encoder"] + _text_back(name[len(TEXT) :])
        elif name.startswith((UNET, VAE)):
            prefix, rules = (UNET, _UNET) if name.startswith(UNET) else (VAE, _VAE)
            other = prefix + _back(name[len(prefix) :], rules)
        else:
            other = name
        if other in single:
            raise StorageError(f'"{name}" and another name mean the same parameter, "{other}"')
        single[other] = tensor
    found = single_file.unpack(single)
    return Unpacked(
        family="sd2" if _linear(found.parts["unet"]) else "sd1",
        parts=found.parts,
        dropped=tuple(sorted((*dropped, *found.dropped))),
    )


def _linear(unet: Tensors) -> bool:
    """Whether attention begins with a matrix, as in SD 2, and not with a 1 × 1 convolution, as in SD 1."""
    return any(name.endswith(".proj_in.weight") and len(tensor.shape) == 2 for name, tensor in unet.items())


def _text(name: str) -> str:
    if name in _TABLES:
        return _TABLES[name]
    name = name.replace("transformer.resblocks.", "transformer_layer.resblocks.", 1)
    stacked = _STACKED.search(name)
    if stacked:
        return name[: stacked.start()] + f"{stacked[1]}.attn.attn.in_proj.{stacked[2]}"
    return _renamed(name, _TEXT)


def _text_back(name: str) -> str:
    turned = {other: own for own, other in _TABLES.items()}
    if name in turned:
        return turned[name]
    name = name.replace("transformer_layer.resblocks.", "transformer.resblocks.", 1)
    stacked = _STACKED_THERE.search(name)
    if stacked:
        return name[: stacked.start()] + f"{stacked[1]}.attn.in_proj_{stacked[2]}"
    return _back(name, _TEXT)


def _renamed(name: str, rules: Rules) -> str:
    module, _, leaf = name.rpartition(".")
    for own, other, norm in rules:
        if module == own or module.endswith(f".{own}"):
            return f"{module[: len(module) - len(own)]}{other}.{_NORM[leaf] if norm else leaf}"
    return name


def _back(name: str, rules: Rules) -> str:
    module, _, leaf = name.rpartition(".")
    plain = {other: own for own, other in _NORM.items()}
    for own, other, norm in rules:
        if module == other or module.endswith(f".{other}"):
            return f"{module[: len(module) - len(other)]}{own}.{plain.get(leaf, leaf) if norm else leaf}"
    return name

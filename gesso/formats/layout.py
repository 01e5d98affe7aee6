"""What diffusers and the first Stable Diffusion code call the same modules of a UNet and of an autoencoder.

diffusers numbers blocks by level and layer; the original code (CompVis' and Stability's, "LDM") counts them through.
How many levels and layers there are is read from the names themselves, so that models of any size are covered. Both
directions of a map are one table, so what one way does the other undoes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gesso.errors import StorageError

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""diffusers' names of an autoencoder's attention before 0.15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A UNet's arrangement: resolution levels, resnets of each on the way down, and which levels have attention."""

    levels: int
    layers: int
    attention: frozenset[int] = frozenset()
    """Levels on the way up, the coarsest 0, whose resnets are followed by attention."""


SDXL = Geometry(levels=3, layers=2, attention=frozenset({0, 1}))
SD = Geometry(levels=4, layers=2, attention=frozenset({1, 2, 3}))


def unet(geometry: Geometry) -> dict[str, str]:
    """Each module of a UNet in diffusers' name, with LDM's; what lies inside attention has the same name in both."""
    table = dict(_ENDS)
    stride = geometry.layers + 1

    def resnet(ours: str, theirs: str) -> None:
        table.update({f"{ours}.{name}": f"{theirs}.{other}" for name, other in _RESNET.items()})

    for level in range(geometry.levels):
        for layer in range(geometry.layers):
            place = f"input_blocks.{1 + level * stride + layer}"
            resnet(f"down_blocks.{level}.resnets.{layer}", f"{place}.0")
            table[f"down_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        if level < geometry.levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * stride}.0.op"
        for layer in range(stride):
            place = f"output_blocks.{level * stride + layer}"
            resnet(f"up_blocks.{level}.resnets.{layer}", f"{place}.0")
            if level in geometry.attention:
                table[f"up_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        if level < geometry.levels - 1:
            after = 2 if level in geometry.attention else 1
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{level * stride + stride - 1}.{after}.conv"
    resnet("mid_block.resnets.0", "middle_block.0")
    table["mid_block.attentions.0"] = "middle_block.1"
    resnet("mid_block.resnets.1", "middle_block.2")
    return table


def autoencoder(levels: int, layers: int) -> dict[str, str]:
    """Each module of an autoencoder in diffusers' name, with LDM's; LDM counts the decoder's levels from the finest."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}

    def resnet(ours: str, theirs: str) -> None:
        table.update({f"{ours}.{name}": f"{theirs}.{other}" for name, other in _VAE_RESNET.items()})

    for half in ("encoder", "decoder"):
        table |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for number in (0, 1):
            resnet(f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}")
        for name, other in _VAE_ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{name}"] = f"{half}.mid.attn_1.{other}"
    for level in range(levels):
        for layer in range(layers + 1):
            up = f"decoder.up.{levels - 1 - level}"
            if layer < layers:
                resnet(f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}")
            resnet(f"decoder.up_blocks.{level}.resnets.{layer}", f"{up}.block.{layer}")
        if level < levels - 1:
            table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
            table[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return table


def unet_geometry(names: Iterable[str]) -> Geometry:
    """The arrangement that a UNet's parameters in diffusers' names show."""
    found = list(names)
    return Geometry(
        levels=_count(found, r"down_blocks\.(\d+)\."),
        layers=_count(found, r"down_blocks\.0\.resnets\.(\d+)\."),
        attention=frozenset(_numbers(found, r"up_blocks\.(\d+)\.attentions\.")),
    )


def ldm_unet_geometry(names: Iterable[str]) -> Geometry:
    """The arrangement that a UNet's parameters in LDM's names show; StorageError where they show none."""
    found = list(names)
    blocks = _count(found, r"input_blocks\.(\d+)\.")
    downs = sorted(_numbers(found, r"input_blocks\.(\d+)\.0\.op\."))
    stride = downs[0] if downs else blocks
    levels = len(downs) + 1
    if stride < 2 or downs != [stride * (number + 1) for number in range(levels - 1)] or blocks != levels * stride:
        raise StorageError(f"these {blocks} input blocks are not those of a Stable Diffusion UNet")
    attending = {int(block) // stride for block in _numbers(found, r"output_blocks\.(\d+)\.1\.transformer_blocks\.")}
    return Geometry(levels=levels, layers=stride - 1, attention=frozenset(attending))


def vae_table(names: Collection[str]) -> dict[str, str]:
    """The table of an autoencoder whose parameters have these names, diffusers' or LDM's."""
    ours = _count(names, r"encoder\.down_blocks\.(\d+)\.")
    if ours:
        return autoencoder(ours, _count(names, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."))
    return autoencoder(_count(names, r"encoder\.down\.(\d+)\."), _count(names, r"encoder\.down\.0\.block\.(\d+)\."))


def modern(name: str) -> str:
    """An autoencoder's parameter in diffusers' name of today, from that name or the one before 0.15."""
    found = re.fullmatch(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{found[1]}.{_OLD_ATTENTION[found[2]]}.{found[3]}" if found else name


def translate(name: str, table: Mapping[str, str]) -> str | None:
    """A parameter's other name by its longest module in the table; None where there is none."""
    module = name
    while "." in module:
        module = module.rpartition(".")[0]
        if module in table:
            return table[module] + name[len(module) :]
    return None


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """The table of the other direction; two modules of one name would be an error of this file."""
    turned = {other: name for name, other in table.items()}
    assert len(turned) == len(table)
    return turned


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(pattern, name))}


def _count(names: Iterable[str], pattern: str) -> int:
    return max(_numbers(names, pattern), default=-1) + 1

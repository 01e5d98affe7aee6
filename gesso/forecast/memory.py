"""Memory of a training step, an estimate by formula.

    weights       of all parts that are loaded: the denoiser in the run's precision, if it does not train whole, the
                  rest in float32
    training      4 bytes each for the trained values (of adapters), their gradients, averages, and what prior
                  preservation by a teacher keeps; the optimiser's states as gesso/forecast/disk.py counts them
    activations   pictures at once · (values that the UNet keeps for its backward pass) · bytes of one

The UNet's kept values, with s positions and c channels in a block: a residual block 3·s·(c_in + c), an attention block
3·s·c and 30·s·c for each of its layers, where attention itself keeps nothing of the size s² (scaled dot-product
attention in blocks; Dao et al. 2022, arXiv:2205.14135). Frozen layers keep less, ADAPTED of it. With gradient
checkpointing a block keeps only CHECKPOINTED times its input, and the largest of them counts once as above. The factors
are measured, on networks of the shapes of SD, SDXL and the embedded base. A framework's own context and the working
memory of single operations come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gesso import settings
from gesso.families.family import Family
from gesso.forecast.disk import FLOAT, state
from gesso.forecast.sizes import Sizes, numbers
from gesso.schema import Recipe

MARGIN = 0.2
"""How far the activations may be off, as a share (tests/test_forecast.py measures it)."""
ADAPTED, CHECKPOINTED = 0.85, 2.5
HALF = 2.1
"""Mean bytes of a kept value under bf16 or fp16, where some stay float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the device; `activations` are those of one micro-batch."""

    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations

    @property
    def spread(self) -> int:
        """How far the total may be off, in bytes."""
        return int(MARGIN * self.activations)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the UNet: values that it keeps of one picture, and those of its input."""

    kept: int
    input: int


def memory(recipe: Recipe, family: Family, sizes: Sizes, config: Mapping[str, Any], latent: tuple[int, int]) -> Memory:
    """The forecast for latents of height × width; `config` is the denoiser's configuration."""
    half = recipe.train.precision in ("bf16", "fp16")
    frozen = half and not settings.whole_parts(recipe)
    weights = sum(
        numbers(shapes) * (2 if frozen and part == family.denoiser else FLOAT) for part, shapes in sizes.base.items()
    )
    if half and not frozen:  # autocast keeps a small copy of every weight until the backward pass is over
        weights += 2 * numbers(sizes.base[family.denoiser])
    own = FLOAT * sizes.total
    copies = 1  # gradients
    copies += recipe.adapter.kind != "none"  # whole parts are counted as weights already
    copies += bool(recipe.optim.ema and not recipe.optim.ema_offload)
    copies += bool(recipe.prior.prompt and recipe.prior.kind == "teacher" and recipe.adapter.kind == "none")
    states = sum(size for name, shape in sizes.trained.items() for _, size in state(recipe, name, shape))
    rows = recipe.train.micro_batch or recipe.train.batch * (2 if recipe.prior.prompt else 1)
    whole = recipe.adapter.kind == "none"
    kept = activations(config, *latent, whole=whole, checkpointing=recipe.train.gradient_checkpointing)
    return Memory(
        weights=weights,
        training=copies * own + states,
        activations=rows * int(kept * (HALF if half else FLOAT)),
    )


def activations(
    config: Mapping[str, Any], height: int, width: int, *, whole: bool = True, checkpointing: bool = False
) -> float:
    """Values that the UNet of this configuration keeps of one picture; `whole` where its own weights train."""
    found = list(blocks(config, height, width))
    share = 1.0 if whole else ADAPTED
    if checkpointing:
        return CHECKPOINTED * sum(block.input for block in found) + share * max(block.kept for block in found)
    return share * sum(block.kept for block in found)


def blocks(config: Mapping[str, Any], height: int, width: int) -> Iterator[Block]:
    """The residual and attention blocks of a UNet2DConditionModel, from its configuration, for one picture."""
    channels = list(config["block_out_channels"])
    layers = _each(config.get("layers_per_block", 2), len(channels))
    depth = _each(config.get("transformer_layers_per_block", 1), len(channels))
    down, up = config["down_block_types"], config["up_block_types"]
    skips, previous = [channels[0]], channels[0]
    for level, c in enumerate(channels):
        s = _positions(height, width, level)
        for _ in range(layers[level]):
            yield _residual(s, previous, c)
            if "Attn" in down[level]:
                yield _attention(s, c, depth[level])
            previous = c
            skips.append(c)
        if level < len(channels) - 1:
            skips.append(c)
    s = _positions(height, width, len(channels) - 1)
    yield _residual(s, previous, previous)
    yield _attention(s, previous, depth[-1])
    yield _residual(s, previous, previous)
    for at, c in enumerate(reversed(channels)):
        level = len(channels) - 1 - at
        s = _positions(height, width, level)
        for _ in range(layers[level] + 1):
            yield _residual(s, previous + skips.pop(), c)
            if "Attn" in up[at]:
                yield _attention(s, c, depth[level])
            previous = c


def _each(value: Any, count: int) -> list[int]:
    return [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)] * count


def _positions(height: int, width: int, level: int) -> int:
    by = 1 << level
    return -(-height // by) * -(-width // by)


def _residual(s: int, before: int, c: int) -> Block:
    return Block(kept=3 * s * (before + c), input=s * before)


def _attention(s: int, c: int, depth: int) -> Block:
    return Block(kept=s * c * (3 + 30 * depth), input=s * c)

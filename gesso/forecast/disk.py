"""Bytes that a run will write, from shapes alone.

checkpoint = 4·trained + optimiser + 4·trained if averaged + one header per file
at most    = (keep + 1)·checkpoint, for a new one is whole before an old one goes, + result + samples + page + cache
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gesso import settings
from gesso.checkpoint import SLACK
from gesso.data.cache import packs
from gesso.families.family import Family
from gesso.forecast.sizes import Shape, Sizes, folder, numbers
from gesso.formats import pipeline
from gesso.models import ModelSource
from gesso.report import shown
from gesso.schema import Recipe
from gesso.storage import amount, free_bytes

FLOAT = 4
LARGE, BLOCK, MAP = 4096, 256, 2 * 256 * FLOAT
"""bitsandbytes: values from which a tensor has 8-bit states, values that share a scale, bytes of two code tables."""

PAGE, THUMB = 50_000, 20_000
"""The run's page without pictures, and a training picture on it; drawn ones count threefold in samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes, by what they are for; `checkpoints` is how many there are at once at the most."""

    checkpoint: int
    checkpoints: int
    result: int
    samples: int
    page: int
    cache: int
    """Latents and captions of all pictures, whether or not some of them are there already."""

    @property
    def out(self) -> int:
        """What the run folder takes at the most."""
        return self.checkpoints * self.checkpoint + self.result + self.samples + self.page

    @property
    def total(self) -> int:
        return self.out + self.cache


def disk(
    recipe: Recipe,
    source: ModelSource,
    family: Family,
    sizes: Sizes,
    *,
    latents: Mapping[Shape, int],
    pictures: int,
    captions: int,
    side: int,
) -> Disk:
    """The forecast for a recipe in steps.

    `latents` counts the encoded pictures of each shape [C, h, w], `pictures` different ones, `captions` different
    renderings; `side` is the width and height of samples in pixels, where the recipe has none.
    """
    state = state_bytes(recipe, sizes.trained)
    own = tensors_bytes(sizes.trained)
    checkpoint = own + state + (own if settings.averages(recipe) else 0)
    steps, every = recipe.train.steps, recipe.save.every
    saved = math.ceil(steps / every) if every else 1
    return Disk(
        checkpoint=checkpoint + 2048,  # state.json and manifest.json
        checkpoints=min(saved, recipe.save.keep + 1),
        result=own + (_others(source, recipe) if recipe.adapter.kind == "none" else 0),
        samples=_samples(recipe, side),
        page=PAGE + THUMB * (min(pictures, shown.FEW) + min(pictures, shown.MANY)),
        cache=sum(count * latent_bytes(shape) for shape, count in latents.items())
        + (pictures * PICTURE if latents else 0)
        + (len(_files(source, sizes.base)) * HASH if latents or captions else 0)
        + (captions * caption_bytes(family, sizes, recipe) if recipe.cache.text else 0),
    )


def tensors_bytes(shapes: Mapping[str, Shape], width: int = FLOAT) -> int:
    """Bytes of a safetensors file with tensors of these shapes."""
    return width * numbers(shapes) + sum(len(name) + 70 + 4 * len(shape) for name, shape in shapes.items())


def state_bytes(recipe: Recipe, trained: Mapping[str, Shape]) -> int:
    """Bytes of the optimiser's file (optimizer.safetensors)."""
    states = [(name, kind, count) for name, shape in trained.items() for kind, count in state(recipe, name, shape)]
    return sum(count + len(name) + len(kind) + 78 for name, kind, count in states)


def state(recipe: Recipe, name: str, shape: Shape) -> list[tuple[str, int]]:
    """(name, bytes) of what an optimiser keeps of one parameter; Engine.read gives the names."""
    kind, values = recipe.optim.name, math.prod(shape)
    whole = FLOAT * values
    hidden = len(shape) == 2 and not name.startswith("tokens.") and not name.endswith("embedding.weight")
    if kind == "sgd":
        return [("momentum_buffer", whole)] if recipe.optim.betas[0] else []
    if kind == "muon" and hidden:
        return [("momentum_buffer", whole)]
    if kind == "lion":
        return [("exp_avg", whole)]
    if kind == "prodigy":
        return [(each, whole) for each in ("exp_avg", "exp_avg_sq", "s", "p0")] + [("step", 8)]
    if kind == "adamw_schedule_free":
        return [("z", whole), ("exp_avg_sq", whole)]
    if kind == "adafactor":
        moments = [("exp_avg_sq", whole)]
        if len(shape) > 1:
            row, col = FLOAT * values // shape[-1], FLOAT * values // shape[-2]
            moments = [("exp_avg_sq_row", row), ("exp_avg_sq_col", col)]
        return [*moments, ("step", 8), ("RMS", FLOAT)]
    if kind == "adamw_8bit" and values >= LARGE:
        scales = FLOAT * math.ceil(values / BLOCK)
        return [("state1", values), ("state2", values), ("absmax", 2 * scales), ("qmap", MAP), ("step", 8)]
    return [("exp_avg", whole), ("exp_avg_sq", whole), ("step", FLOAT)]


def _others(source: ModelSource, recipe: Recipe) -> int:
    """Bytes of the components of a pipeline that did not train, which the result has as well."""
    index = pipeline.index_of(source.folder)
    parts = [part for part, value in index.items() if pipeline.is_component(value) and part not in recipe.model.train]
    return sum(path.stat().st_size for path in _files(source, parts))


def _files(source: ModelSource, parts: Iterable[str]) -> list[Path]:
    """The files of components, one set of weights of each."""
    places = [folder(source, part) for part in parts]
    return [path for place in places for path in pipeline.files_of(place.parent, place.name).values()]


def _samples(recipe: Recipe, side: int) -> int:
    """Bytes of all samples if none could be compressed: 3 a pixel."""
    sample, steps = recipe.sample, recipe.train.steps
    if not sample.prompts:
        return 0
    times = 1 + (math.ceil(steps / sample.every) if sample.every else 1)
    pixels = (sample.width or side) * (sample.height or side)
    return times * len(sample.prompts) * len(sample.seeds) * 3 * pixels


def entry_bytes(payload: int) -> int:
    """Bytes that an entry of so many takes in a pack of the cache, and a row of its index (docs/cache.md)."""
    return packs.padded(payload) + int(packs.ROW.itemsize)


def latent_bytes(shape: Shape) -> int:
    """Bytes of a cached picture: mean and log-variance in float32 [C, h, w], and a safetensors header of 144 bytes."""
    return entry_bytes(2 * FLOAT * math.prod(shape) + 144)


HASH = entry_bytes(112)
PICTURE = entry_bytes(88) + HASH
"""Bytes that the cache keeps of a picture besides: its size, and its file's SHA-256."""


def caption_bytes(family: Family, sizes: Sizes, recipe: Recipe) -> int:
    """Bytes of a cached caption: the encoders' states side by side in float32, and what is pooled of the last."""
    encoders = [sizes.base[encoder] for encoder, _ in family.encoders]
    widths = [shape[1] for each in encoders for name, shape in each.items() if name.endswith("token_embedding.weight")]
    lengths = [s[0] for each in encoders for n, s in each.items() if n.endswith("position_embedding.weight")]
    length = (min(lengths) if lengths else 77) * recipe.train.caption_chunks
    pooled = sum(s[0] for each in encoders[1:] for n, s in each.items() if n.endswith("text_projection.weight"))
    return entry_bytes(FLOAT * (length * sum(widths) + pooled) + (150 if pooled else 90))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A disk that is too small. `certain` where not even the least will fit, which a run could end with."""

    where: str
    what: str
    todo: str
    certain: bool


def room(out: Path, cache: Path, found: Disk) -> Room | None:
    """What is wrong with the room for a run in the folder `out`, with its cache in `cache`; None where it is enough.

    What is in the two folders already counts as written: a run may go on, and its pictures may be encoded.
    """
    shared = _device(out) == _device(cache)
    there, missing = _held(out), max(found.cache - _held(cache), 0)
    least = max(found.checkpoint + found.result - there, 0) + SLACK
    most = max(found.out - there, 0) + SLACK + (missing if shared else 0)
    free = free_bytes(out)
    todo = "make room, lower save.keep, or choose another disk with --out"
    if free < least:
        what = f"a checkpoint and the result need {amount(least)}, and {amount(free)} are free"
        return Room(where=str(out), what=what, todo=todo, certain=True)
    if free < most:
        what = f"the run may write up to {amount(most)}, and {amount(free)} are free"
        return Room(where=str(out), what=what, todo=todo, certain=False)
    if not shared and free_bytes(cache) < missing + SLACK:
        what = f"encoded pictures and captions take up to {amount(missing)} more, {amount(free_bytes(cache))} are free"
        return Room(where=str(cache), what=what, todo="make room, or set cache.path to another disk", certain=False)
    return None


def _device(path: Path) -> int:
    """The disk on which a folder is or will be."""
    return next(place.stat().st_dev for place in (path, *path.absolute().parents) if place.is_dir())


def _held(folder: Path) -> int:
    """Bytes of the files in a folder; others may be removing some of them."""
    found = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found += os.lstat(os.path.join(here, name)).st_size
    return found

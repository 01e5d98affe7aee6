"""What goes on top of a model for drawing (LoRAs with strengths, learned words, a refiner), and whether it fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from gesso import models
from gesso.arrays import Float32, Picture
from gesso.data.cache import Store, default_folder
from gesso.data.remembered import sha256
from gesso.errors import RecipeError, StorageError
from gesso.families import find
from gesso.formats import adapter, embeddings, pipeline
from gesso.models import LORA, ModelSource

HASH = 12
"""Hexadecimal digits of the hash that a picture says it was drawn with."""


def lora_file(path: Path) -> Path:
    """The file of a LoRA that is named by itself, by its run or by its checkpoint; other adapters' folder."""
    if path.is_dir() and (found := adapter.place(path)):
        return found
    if path.is_file() and path.suffix == ".safetensors":
        return path
    what = "holds no " + LORA if path.is_dir() else "is not a .safetensors file" if path.exists() else "does not exist"
    raise RecipeError(
        f"the LoRA {path} {what}", todo="name a .safetensors file, or the folder of a run that trained a LoRA"
    )


def fits(path: Path, source: ModelSource, strength: float) -> None:
    """RecipeError unless every matrix of a LoRA has a layer of its shape in the model, and it can have the strength."""
    try:
        arrays, config = adapter.read(path)
    except StorageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise RecipeError(error.what, where=error.where, todo=error.todo) from error
    family = find(source.pipeline)
    shapes = {
        f"{part}.{name}": shape
        for part in (family.denoiser, *(encoder for encoder, _ in family.encoders))
        for name, shape in pipeline.shapes(source.folder / part).items()
    }
    wrong = adapter.fit(arrays, config, shapes)
    if wrong:
        name, parts, whole = (
            ("LoRA", "tensors", len(arrays))
            if config.kind in adapter.LORAS
            else (config.kind, "layers", len(adapter.modules(arrays)))
        )
        raise RecipeError(
            f"this {name} was made for another base: {whole - len(wrong)} of {whole} {parts} fit; {wrong[0]}",
            where=str(path),
            todo="use it with the base that it was trained on, or a relative of that base",
        )
    if config.kind == "oft" and strength != 1.0:
        raise RecipeError(adapter.UNSCALABLE, where=str(path), todo="leave its --strength at 1")


def words(paths: Sequence[Path], source: ModelSource) -> dict[str, Float32]:
    """The learned words in files; RecipeError unless each has vectors as wide as the model's text encoders take."""
    try:
        weights = embeddings.read(paths)
        family = find(source.pipeline)
        widths = {
            encoder: int(models.wanted(source.folder / encoder / "config.json", "hidden_size"))
            for encoder, _ in family.encoders
            if weights
        }
        embeddings.fit(weights, widths)
    except StorageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise RecipeError(error.what, where=error.where, todo=error.todo) from error
    return weights


def refiner(name: str, source: ModelSource, vae: str = "") -> ModelSource:
    """The second stage; RecipeError for what is none, or for one that does not go on with this model's latents."""
    family = find(source.pipeline)
    if not family.refiners:
        raise RecipeError(f"{source.name} is of the family {family.name}, which has no refiner")
    second = models.resolve(name)
    if second.pipeline not in family.refiners:
        raise RecipeError(
            f"{second.name} is no refiner: it is of the kind {second.pipeline}",
            todo=f"name a model of the kind {', '.join(family.refiners)}, or leave --refiner out",
        )
    second = models.with_vae(second, vae)
    scales = [family.scale(each.config(family.autoencoder)) for each in (source, second)]
    if not all(np.array_equal(mine, other) for mine, other in zip(*scales, strict=True)):
        raise RecipeError(
            f"{second.name} reads latents on another scale than {source.name} writes them",
            todo="name a refiner that was made for this model",
        )
    return second


def strengths(given: Sequence[float], loras: int) -> Sequence[float]:
    """One for each LoRA; RecipeError for a number of them that is neither one nor that of the LoRAs."""
    if given and not loras:
        raise RecipeError("--strength has no effect without a LoRA", todo="add --lora FILE, or leave it out")
    if len(given) not in (0, 1, loras):
        raise RecipeError(
            f"{len(given)} --strength are given for {loras} LoRA(s)", todo="give one for all of them, or one for each"
        )
    return given if len(given) == loras else tuple(given or (1.0,)) * loras


def digest(sources: Sequence[ModelSource], files: Sequence[Path], start: Picture | None = None) -> str:
    """SHA-256, its first digits, over the bytes of all that decides a picture beside what was asked for.

    sources: the model and its refiner. files: LoRAs, other adapters' folders and words on top. start: a picture that is
    begun with. Large files are read once and remembered. StorageError where one cannot be read.
    """
    total = hashlib.sha256()
    store = Store(default_folder())

    def read(path: Path) -> str:
        try:
            return sha256(path, store)
        except StorageError:  # remembering saves time and no more: a cache that cannot be written stops nothing
            return pipeline.digest(path)

    with closing(store):
        for source in sources:
            parts = source.parts
            for name in sorted(name for name, value in source.index.items() if pipeline.is_component(value)):
                place = parts.get(name, source.folder / name)
                if name not in ("safety_checker", "feature_extractor") and place.is_dir():
                    total.update(f"{name} {pipeline.identity(place.parent, place.name, read)}\n".encode())
            total.update(json.dumps(dict(source.scheduler), sort_keys=True).encode())
        for path in files:
            for file in sorted(path.glob("*/adapter_*")) if path.is_dir() else [path]:
                total.update(f"{read(file)}\n".encode())
    if start is not None:
        total.update(start.tobytes())
    return total.hexdigest()[:HASH]

"""What a trained model can be written as, why something cannot be, and the writing itself; numpy alone.

    folder      a diffusers pipeline                    single      one file in the original code's layout ("LDM")
    mindspore   MindSpore's .ckpt                       lora        diffusers' LoRA file
    kohya       a LoRA for kohya, A1111, Forge, ComfyUI words       diffusers' files of learned words
    a1111       learned words for A1111, Forge, ComfyUI

In the first three an adapter is merged into its base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gesso.arrays import Array
from gesso.errors import RecipeError
from gesso.formats import (
    dora,
    embeddings,
    kohya,
    lora,
    lycoris,
    merge,
    mindspore,
    mindspore_names,
    modelspec,
    parts,
    single_file,
    stored,
)
from gesso.formats.metadata import Config
from gesso.formats.modelspec import About
from gesso.formats.single_file import Unpacked
from gesso.formats.stored import Stored

WHOLE = ("folder", "single", "mindspore")
FORMS = (*WHOLE, "lora", "kohya", "words", "a1111")
KINDS = ("none", "lora", "dora", "loha", "lokr", "oft", "ti")
"""Kinds of what was trained, as the recipe calls them: the whole model, adapters, words alone."""
READERS = ("lycoris", "comfyui")
_EMPTY = stored.of(np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was trained. `folder` is a whole pipeline folder; adapters and words are on top of it."""

    kind: str
    folder: Path
    about: About
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """Of the adapter, by `<component>.<module>.<matrix>` without `text_model.`."""
    config: Config | None = None
    words: Mapping[str, Array] = field(default_factory=dict)
    """Vectors by `tokens.<encoder>.<word>`."""
    scheduler: Mapping[str, object] = field(default_factory=dict)
    """What the run changed in the folder's scheduler configuration."""
    reader: str = "lycoris"
    """Whose way of computing a DoRA its scales in kohya's form are for: one of READERS."""

    @property
    def sizes(self) -> dict[str, tuple[int, float]]:
        """(rank, alpha) of each module of the adapter."""
        assert self.config is not None
        modules = dict.fromkeys(re.sub(r"\.(lora_|hada_|lokr_|oft_R).*$", "", name) for name in self.arrays)
        return {module: self.config.size(module) for module in modules}


def why_not(kind: str, family: str, form: str, *, words: bool = False) -> str:
    """Why a model of this kind and family cannot be written in this form; "" where it can.

    words: whether words were learned besides an adapter.
    """
    if form in ("words", "a1111"):
        return "" if kind == "ti" or words else "no words were learned"
    if kind == "ti":
        return "learned words are vectors beside the model: they come as words"
    if form == "mindspore" and family == "sdxl":
        return "gesso knows the MindSpore checkpoints of SD 1 and 2 alone"
    if form in WHOLE:
        return ""
    if kind == "none":
        return "the whole model was trained: gesso convert … --minus BASE --rank N extracts a LoRA from it"
    if form == "lora" and kind in ("loha", "lokr", "oft"):
        return "diffusers' pipelines load no such file: the run's own folder loads with peft"
    if kind == "oft":
        return "peft's OFT turns a layer's inputs, the oft_blocks that kohya's readers know turn its outputs"
    return ""


def write(trained: Trained, form: str, target: Path, *, code: str = "", checksum: bool = False) -> list[Path]:
    """Write it in `form`, and give the files (of a folder, its own path).

    target: the file, or for `folder`, `words` and `a1111` the folder. code: of the weights of a whole model; "" for
    the base's own. checksum: end a MindSpore checkpoint with its CRC.
    """
    if form in WHOLE:
        return [_whole(trained, form, target, code, checksum=checksum)]
    if form in ("words", "a1111"):
        target.mkdir(parents=True, exist_ok=True)
        return _words(trained, form, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "lora":
        assert trained.config is not None
        lora.write(target, trained.arrays, Config.of(trained.sizes, kind=trained.config.kind))
    else:
        packed, sizes = packed_lora(trained)
        tensors = {name: stored.of(array) for name, array in packed.items()}
        stored.save_safetensors(target, tensors, modelspec.adapter(trained.about, trained.kind, sizes, tensors))
    return [target]


def model(trained: Trained, code: str = "") -> Unpacked:
    """The whole model, an adapter merged into it, in the base's own types or in that of `code`."""
    family, own = parts.read(trained.folder)
    if trained.config is not None:
        own = merge.merged(merge.cast(own, "F32") if code else own, trained.arrays, trained.config)
    flags = parts.flags(trained.folder, family, trained.scheduler)
    return Unpacked(family=family, parts=merge.cast(own, code) if code else own, flags=flags)


def packed_lora(trained: Trained) -> tuple[dict[str, Array], dict[str, tuple[int, float]]]:
    """An adapter in kohya's names, and (rank, alpha) of each module."""
    family = trained.about.family
    geometry = parts.geometry(trained.folder)
    assert trained.config is not None
    if trained.kind in lycoris.KINDS:
        return dict(lycoris.pack(trained.arrays, trained.config, family, geometry)), trained.sizes
    arrays, sizes = kohya.evened(trained.arrays, trained.sizes)
    if trained.kind == "dora" and trained.reader == "comfyui":
        arrays = dora.for_comfyui(parts.read(trained.folder)[1], arrays, sizes)
    return dict(kohya.pack(arrays, sizes, family, geometry)), sizes


def understood(trained: Trained, file: Path) -> dict[str, dict[str, Stored]]:
    """The base with the adapter of a file in kohya's form, in float32, as readers of that form compute it."""
    arrays = {name: tensor.widened() for name, tensor in stored.open_safetensors(file).items()}
    geometry = parts.geometry(trained.folder)
    own = parts.read(trained.folder)[1]
    base = merge.cast({part: own[part] for part in own if part != "vae"}, "F32")
    if lycoris.kind_of(arrays):
        return merge.merged(base, *lycoris.unpack(arrays, geometry))
    found, sizes = kohya.unpack(arrays, geometry)
    if trained.reader == "comfyui":
        return dora.as_comfyui(base, found, sizes)
    return merge.merged(base, found, Config.of(sizes, kind=trained.kind))


def read_mindspore(file: Path) -> Unpacked:
    """A MindSpore checkpoint as gesso's stand-alone reader sees it, its checksum verified."""
    return mindspore_names.unpack(mindspore.read(file).tensors)


def file_name(text: str) -> str:
    """A name that every system takes for a file."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _whole(trained: Trained, form: str, target: Path, code: str, *, checksum: bool) -> Path:
    found = model(trained, code)
    if form == "folder":
        parts.write(found, trained.folder, target, trained.scheduler)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "mindspore":
        mindspore.write(target, mindspore_names.pack(found.parts, found.family), checksum=checksum)
    else:
        made = single_file.pack(found.parts, found.family) | dict.fromkeys(found.flags, _EMPTY)
        stored.save_safetensors(target, made, modelspec.model(trained.about, made))
    return target


def _words(trained: Trained, form: str, target: Path) -> list[Path]:
    files = []
    if form == "words":
        for name, writer in embeddings.writers(trained.words).items():
            writer(target / name)
            files.append(target / name)
        return files
    for word, arrays in embeddings.a1111(trained.words).items():
        file = target / f"{file_name(word)}.safetensors"
        if file in files:
            raise RecipeError(f'"{word}" and another word would be one file, {file.name}', todo="rename one of them")
        tensors = {name: stored.of(array) for name, array in arrays.items()}
        stored.save_safetensors(file, tensors, modelspec.word(trained.about, word, tensors))
        files.append(file)
    return files

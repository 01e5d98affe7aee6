"""Trained adapters on the disk: one file for LoRA and DoRA, a folder for each part for the other kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gesso.arrays import Array, Float32
from gesso.errors import StorageError
from gesso.formats import convert_lora, lora, peft, tensors
from gesso.formats.metadata import Config

LORAS = ("lora", "dora")
"""Kinds that come as one file, which diffusers' pipelines load."""
UNSCALABLE = "an OFT turns its layers' inputs, which has no strength between nothing and all"
_MATRIX = re.compile(
    r"\.(?:lora_[AB]\.weight|lora_magnitude_vector|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_R\.weight)$"
)


def modules(names: Iterable[str]) -> list[str]:
    """The modules, `<component>.<module>`, that matrices of these names are for."""
    return list(dict.fromkeys(_MATRIX.sub("", name) for name in names))


def sizes(names: Iterable[str], config: Config) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of each module that matrices of these names are for."""
    return {module: config.size(module) for module in modules(names)}


def writers(arrays: Mapping[str, Array], config: Config) -> dict[str, tensors.Writer]:
    """What writes each file of the adapters, by relative name; `arrays` is in the engine's names."""
    return peft.files(arrays, config) if config.kind in peft.KINDS else {lora.FILE: lora.writer(arrays, config)}


def place(folder: Path) -> Path | None:
    """What `read` takes of a run or a checkpoint: its LoRA file, or the folder itself; None without any adapter."""
    if (folder / lora.FILE).is_file():
        return folder / lora.FILE
    return folder if peft.has(folder) else None


def read(path: Path) -> tuple[dict[str, Float32], Config]:
    """The adapters in a LoRA file of any form or a folder, float32, by `<component>.<module>.<matrix>`.

    StorageError for a damaged file, and for one that is no LoRA.
    """
    if path.is_dir() and not (path / lora.FILE).is_file():
        return peft.read(path)
    try:
        return lora.read(path)
    except lora.ForeignError:
        try:
            found = convert_lora.read(path, None)
        except StorageError as error:
            raise StorageError(error.what, where=error.where or str(path), todo=error.todo) from error
        return dict(found.arrays), Config.of(found.sizes, kind=found.kind)


def fit(arrays: Mapping[str, Array], config: Config, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What does not fit a base whose weights have `shapes`, by `<component>.<module>.weight`; a sentence each."""
    return peft.fit(arrays, shapes) if config.kind in peft.KINDS else lora.fit(arrays, shapes)


def renamed(arrays: Mapping[str, Array], known: Mapping[str, object]) -> dict[str, Array]:
    """Arrays from a file in the names that an engine has for them, which differ in a text encoder's "text_model."."""
    own = {name.replace(".text_model.", ".", 1): name for name in known}
    return {own.get(name.replace(".text_model.", ".", 1), name): array for name, array in arrays.items()}

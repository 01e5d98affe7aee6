"""A model in one file as what a training starts from: a pipeline folder is made of it once, and kept by its content.

A file of weights has no configuration, tokenizer or scheduler; they come from a folder of the same family. The folder
lies in the cache under the SHA-256 of both, so that a changed file is a model of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from gesso.data.cache import MODELS, Store, default_folder, key
from gesso.data.remembered import sha256
from gesso.errors import RecipeError
from gesso.formats import parts, pipeline, single_file
from gesso.formats.convert import Request, convert, model_in
from gesso.formats.single_file import NAMES
from gesso.storage import guard

SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
Progress = Callable[[str, int, int], None]


def quiet(what: str, done: int, total: int) -> None:
    """Progress that no one looks at."""


def family(path: Path) -> str:
    """The family of the whole model in a file; RecipeError for a LoRA, StorageError for what is no model or damaged."""
    found = model_in(path)
    if found is None:
        raise RecipeError(
            "this is a LoRA, not a whole model",
            where=str(path),
            todo="name its base, and this file as --lora where pictures are drawn; or merge it into its base with "
            "`gesso convert BASE --add LORA --to FOLDER`",
        )
    return found.family


def unpacked(path: Path, like: Path, progress: Progress = quiet) -> Path:
    """The pipeline folder of the model in `path`, all but weights from the folder `like`; made if missing.

    Raises RecipeError where `like` is of another family or size, StorageError for a damaged file and a full disk.
    """
    found = family(path)
    if parts.family_of(like) != found:
        raise RecipeError(
            f"the file holds a {NAMES[found]}, and model.like is a {NAMES[parts.family_of(like)]}",
            where=str(path),
            todo="name a folder of the same family as model.like",
        )
    progress(f"reading {path.name}", 0, 1)
    store = Store(default_folder())
    content = sha256(path, store)
    store.close()
    folder = default_folder() / MODELS
    target = folder / key(kind="model", file=content, like=_others(like))
    with guard(folder, what="the cache"):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / pipeline.INDEX).is_file():
            progress(f"making a folder of {path.name}", 0, 1)
            convert(Request(source=path, target=target, form="folder", like=like))
    progress(f"making a folder of {path.name}", 1, 1)
    return target


def _others(like: Path) -> str:
    """SHA-256 over all that is taken of the folder: every file but weights, with its name."""
    total = hashlib.sha256()
    weights = {*single_file.TEXT["sdxl"], "unet", "vae"}
    for name, value in sorted(pipeline.index_of(like).items()):
        total.update(f"{name}={value}\n".encode())
        if not pipeline.is_component(value):
            continue
        files = {"config.json": like / name / "config.json"} if name in weights else pipeline.files_of(like, name)
        for file, path in sorted(files.items()):
            total.update(f"{name}/{file}\n".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()

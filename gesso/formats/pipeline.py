"""A whole diffusers pipeline on disk: what was trained in float32, everything else byte for byte as in the base.

Older readers must find every weight: transformers 5 drops the `text_model.` in front of a CLIP text encoder's names
when it saves, and transformers 4 then keeps its random weights without a word. gesso writes it, and both read that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Array
from gesso.errors import RecipeError, StorageError
from gesso.formats import tensors
from gesso.storage import copy, fsync_path, guard, hidden, publish, write_json

INDEX = "model_index.json"
_STEMS = ("diffusion_pytorch_model", "model")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb")
_ADDED = "gesso.added_prefix"
"""Metadata: the names in memory lacked this prefix."""
_KEPT = "gesso.not_trained"
"""Metadata: JSON list of the names whose values are the base's."""


def assemble(
    base: Path,
    out: Path,
    weights: Mapping[str, Mapping[str, Array]],
    scheduler_changes: Mapping[str, Any] | None = None,
) -> None:
    """Make `out` a diffusers pipeline: the folder `base` with other weights for the parts in `weights`.

    weights: for each part ("unet", "text_encoder") its trained arrays by parameter name; a weight of the base that is
    not among them keeps the base's value. scheduler_changes: keys of scheduler_config.json with their new values;
    "_class_name" changes the scheduler itself. A component appears whole or not at all, model_index.json last. Raises
    RecipeError for a base without the parts or with pickled weights only, StorageError when the disk refuses.
    """
    check(base, out)
    index = index_of(base)
    changes = dict(scheduler_changes or {})
    parts = [name for name, value in index.items() if is_component(value)]
    absent = sorted(set(weights) - set(parts))
    if absent:
        raise RecipeError(f'the base model has no part "{absent[0]}"', where=str(base / INDEX))
    with guard(out, what="the trained model"):
        out.mkdir(parents=True, exist_ok=True)
        for part in parts:
            files: dict[str, tensors.Writer]
            if part in weights:
                files = part_files(base, part, weights[part])
            else:
                files = {name: partial(copy, path) for name, path in files_of(base, part).items()}
            if part == "scheduler" and changes:
                config = read_json(base / part / "scheduler_config.json")
                files["scheduler_config.json"] = partial(write_json, value={**config, **changes})
            _component(out / part, files)
        if "_class_name" in changes:
            index["scheduler"] = [index["scheduler"][0], changes["_class_name"]]
        if index == read_json(base / INDEX):
            copy(base / INDEX, out / INDEX)
        else:
            write_json(out / INDEX, index)


def part_files(base: Path, part: str, arrays: Mapping[str, Array]) -> dict[str, tensors.Writer]:
    """The files of a trained part by name, each as what writes it: the base's config.json, all weights in float32."""
    path = base / part / "config.json"
    if not path.is_file():
        raise RecipeError(f'the base model\'s "{part}" has no config.json', where=str(base))
    config = read_json(path)
    # transformers loads in the type that the configuration names, whatever the file holds.
    half = {key: "float32" for key in ("dtype", "torch_dtype") if config.get(key) not in (None, "float32")}
    prefix = "text_model." if part.startswith("text_encoder") else ""
    plain = {_legacy(name, prefix): array.astype(np.float32) for name, array in arrays.items()}
    metadata = {"format": "pt", **({} if plain.keys() == arrays.keys() else {_ADDED: prefix})}
    kept = _kept(plain, base / part, prefix)
    if kept:
        metadata[_KEPT] = json.dumps(sorted(kept))
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    return {
        "config.json": partial(write_json, value={**config, **half}) if half else partial(copy, path),
        f"{stem}.safetensors": tensors.writer({**plain, **kept}, metadata),
    }


def read_part(folder: Path) -> dict[str, Array]:
    """The trained weights in a part's folder (shards joined) in float32, by the names that `part_files` was given."""
    arrays: dict[str, Array] = {}
    for path in weights_of(folder).values():
        if path.suffix == ".safetensors":
            metadata = tensors.header(path).metadata
            added, kept = metadata.get(_ADDED, ""), json.loads(metadata.get(_KEPT, "[]"))
            found = tensors.load(path, widen=True, finite=True)
            arrays.update({name.removeprefix(added): array for name, array in found.items() if name not in kept})
    return arrays


def check(base: Path, out: Path) -> None:
    """Raise now what `assemble` would raise at the end: a component missing or pickled, `out` inside the base model."""
    for part, value in index_of(base).items():
        if is_component(value):
            files_of(base, part)
    if out.resolve().is_relative_to(base.resolve()):
        raise RecipeError(
            "the run folder lies in the base model's folder, which must stay as it is",
            where=str(out),
            todo="choose another folder with --out",
        )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of the component in `folder`, by its name; {} where there are none that can be read."""
    files = [path for path in weights_of(folder).values() if path.suffix == ".safetensors"]
    return {name: entry.shape for path in files for name, entry in tensors.header(path).tensors.items()}


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def identity(folder: Path, component: str, sha256: Callable[[Path], str] = digest) -> str:
    """SHA-256 over the names and bytes of a component's configuration and weights, as 64 hexadecimal digits.

    Only what a reader would load counts: a second set of weights in another format or precision changes nothing.
    `sha256` gives a file's; one that remembers saves reading gigabytes. Raises RecipeError where the component is
    missing.
    """
    total = hashlib.sha256()
    for name, path in sorted(files_of(folder, component).items()):
        total.update(f"{name} {sha256(path)}\n".encode())
    return total.hexdigest()


def _component(final: Path, files: Mapping[str, tensors.Writer]) -> None:
    temporary = hidden(final)
    try:
        temporary.mkdir()
        for name, write in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write(temporary / name)
        for place, _, _ in os.walk(temporary, topdown=False):
            fsync_path(Path(place))
        publish(temporary, final)
    except BaseException:
        with suppress(OSError):  # the reason for being here matters more; `sweep` comes back for the folder
            shutil.rmtree(temporary)
        raise


def index_of(base: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder, without a safety checker that cannot be loaded; RecipeError for none."""
    if not (base / INDEX).is_file():
        raise RecipeError(
            f"this folder is not a diffusers pipeline: it has no {INDEX}",
            where=str(base),
            todo="name a folder that diffusers' save_pretrained wrote",
        )
    index = read_json(base / INDEX)
    # Nothing here runs it: a download leaves it out, and old models have it as a pickle.
    if "safety_checker" in index and not any((base / "safety_checker").glob("*.safetensors")):
        index["safety_checker"] = [None, None]
    return index


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the model; StorageError where it cannot be read, RecipeError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:
        raise RecipeError(f"this is not JSON: {error}", where=str(path), todo="fetch the model again") from error
    if not isinstance(value, dict):
        raise RecipeError("holds no JSON object", where=str(path), todo="fetch the model again")
    return value


def is_component(value: Any) -> bool:
    """Whether a value of model_index.json names a component, [library, class], and not an option or an absent one."""
    return isinstance(value, list) and len(value) == 2 and None not in value


def files_of(base: Path, component: str) -> dict[str, Path]:
    """A component's files by the name that a plain `from_pretrained` looks for; RecipeError where there are none."""
    folder = base / component
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in _WEIGHTS)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in others
        if ".index." not in path.name and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    files |= weights_of(folder)
    if not files:
        raise RecipeError(f'the model has no "{component}"', where=str(base), todo=f"check the folder and its {INDEX}")
    return files


def weights_of(folder: Path) -> dict[str, Path]:
    """The one set of weights that is read: plain, else shards with their index, else a variant such as fp16.

    Files by the name that a plain `from_pretrained` looks for. RecipeError where no set is plain, and for pickles.
    """
    for stem in _STEMS:
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return {whole.name: whole}
        if index.is_file():
            shards = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
            missing = [name for name in shards if Path(name).name != name or not (folder / name).is_file()]
            if missing or not shards:
                raise RecipeError(
                    f"the part {', '.join(missing) or 'list'} of its weights is missing", where=str(index)
                )
            return {index.name: index, **{name: folder / name for name in shards}}
        variants = [path for path in sorted(folder.glob(f"{stem}.*.safetensors")) if "-of-" not in path.name]
        if len(variants) == 1:
            return {whole.name: variants[0]}
    suffixes = {path.suffix for path in folder.iterdir()} if folder.is_dir() else set()
    if ".safetensors" in suffixes:
        raise RecipeError(
            "this part of the model has neither plain weights nor a plain index, but several files",
            where=str(folder),
            todo="load it in diffusers, with variant=… if it is one, and save it again with save_pretrained",
        )
    if suffixes & set(_WEIGHTS):
        raise RecipeError(
            "this part of the model has no safetensors weights, and gesso opens no pickles",
            where=str(folder),
            todo="load it in diffusers where you trust it and save it again with save_pretrained",
        )
    return {}


def _legacy(name: str, prefix: str) -> str:
    return name if name.startswith((prefix, "text_projection.")) else prefix + name


def _kept(plain: Mapping[str, Array], folder: Path, prefix: str) -> dict[str, Array]:
    """The base's weights that were not trained, after a check of the others' names and shapes against the base."""
    known: dict[str, tuple[int, ...]] = {}
    kept: dict[str, Array] = {}
    for path in (path for path in weights_of(folder).values() if path.suffix == ".safetensors"):
        entries = tensors.header(path).tensors
        names = {_legacy(name, prefix): name for name in entries}
        known.update({name: entries[own].shape for name, own in names.items()})
        # A buffer of old files that transformers computes by itself since 4.31.
        missing = {n: own for n, own in names.items() if n not in plain and not n.endswith("position_ids")}
        if missing:
            loaded = tensors.load(path, widen=True)
            kept.update({name: loaded[own].astype(np.float32) for name, own in missing.items()})
    for name, array in sorted(plain.items()):
        if known.get(name) != array.shape:
            raise StorageError(
                f'the trained "{name}" has the shape {array.shape}, the base\'s {known.get(name, "does not exist")}',
                where=str(folder),
                todo="use the base model that the run was started from",
            )
    return kept

"""A checkpoint's averaged weights as a model to draw with: its samples show them, and its run ends with them.

A checkpoint folder holds the weights that training goes on with, and beside them the averages (of `optim.ema`, or of a
schedule-free optimiser). They are written once as files of their own, kept in the cache by their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from gesso.arrays import Array
from gesso.data.cache import MODELS, Store, default_folder, key
from gesso.data.remembered import sha256
from gesso.formats import adapter, embeddings, lora, pipeline, tensors
from gesso.models import ModelSource
from gesso.results import by_part
from gesso.storage import guard, hidden, publish
from gesso.words import parted

FILE = "ema.safetensors"


def of(source: ModelSource) -> ModelSource:
    """`source` with its checkpoint's averages in place of its weights; as it is where it is none or has none."""
    path = Path(source.name).expanduser()
    path = path.parent if path.name == lora.FILE else path
    if not path.name.startswith("checkpoint-") or not (path / FILE).is_file():
        return source
    folder = _written(source, path)
    return replace(
        source,
        lora=adapter.place(folder),
        words=tuple(embeddings.files(folder)),
        checkpoint=folder if source.checkpoint else None,
    )


def _written(source: ModelSource, path: Path) -> Path:
    """The folder with the averages of the checkpoint `path`, in the form of the checkpoint; made if missing."""
    store = Store(default_folder())
    content = sha256(path / FILE, store)
    store.close()
    folder = default_folder() / MODELS
    target = folder / key(kind="averages", file=content)
    with guard(folder, what="the cache"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                temporary = hidden(target)
                temporary.mkdir()
                for name, write in _files(source, tensors.load(path / FILE)).items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    write(temporary / name)
                publish(temporary, target)
    return target


def _files(source: ModelSource, averages: Mapping[str, Array]) -> dict[str, tensors.Writer]:
    words, weights = parted(averages)
    files: dict[str, tensors.Writer] = {**embeddings.writers(words)}
    if source.lora is not None:
        there, config = adapter.read(source.lora)
        return {**files, **adapter.writers(adapter.renamed(weights, there), config)}
    for part, arrays in by_part(weights).items():
        made = pipeline.part_files(source.folder, part, arrays)
        files |= {f"{part}/{name}": write for name, write in made.items()}
    return files

"""A tiny numpy encoder and made pictures, for the tests of the data side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gesso.arrays import Float32, Int64
from gesso.data.batches import Batches
from gesso.data.cache import Store
from gesso.data.dataset import Dataset, Prepared
from gesso.data.plan import Plan, by_group
from gesso.data.record import Record
from gesso.objective.objective import Objective

SIDE = 32


class Averages:
    """An encoder small enough to check by hand: 8 × 8 means for latents, letters for text. It counts its work."""

    def __init__(self) -> None:
        self.image_identity, self.text_identity = "mean 8", "letters 1"
        self.cache_latents, self.cache_text, self.train_text = True, True, False
        self.pictures = 0
        self.captions: list[str] = []
        self.largest = 0

    def encode_images(self, pixels: Float32) -> tuple[Float32, Float32]:
        count, channels, height, width = pixels.shape
        self.pictures += count
        self.largest = max(self.largest, count)
        mean = pixels.reshape(count, channels, height // 8, 8, width // 8, 8).mean((3, 5), dtype=np.float32)
        return mean, np.full_like(mean, -4.0)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        self.captions += captions
        return {"hidden": self.tokens(captions)["ids"].astype(np.float32)[..., None] / 7}

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        return {"ids": np.array([[ord(letter) for letter in caption[:8].ljust(8)] for caption in captions])}


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return path


def made(folder: Path, instances: int = 5, classes: int = 0) -> list[Record]:
    records = []
    for number in range(instances + classes):
        group = "instance" if number < instances else "class"
        path = picture(folder / f"{group}-{number}.png", number)
        records.append(Record(path=path, captions=(f"{number} a", f"{number} b"), group=group, weight=1 + number / 10))
    return records


def dataset(records: Sequence[Record], cache: Path, encoder: Averages | None = None, **keys: object) -> Dataset:
    options = {"width": SIDE, "height": SIDE, "seed": 7, "encoder": encoder or Averages(), "store": Store(cache)}
    return Dataset(records=records, **{**options, **keys})  # type: ignore[arg-type]


def batches(data: Dataset, batch: int = 3, **keys: object) -> Batches:
    plan = Plan(seed=7, rows=by_group(data.records), batch=batch)
    options: dict[str, object] = {"objective": Objective(), "scale": 0.18215}
    return Batches(plan=plan, dataset=data, **{**options, **keys})  # type: ignore[arg-type]


def quiet(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


def same(one: object, other: object) -> bool:
    """Equal to the last bit, through batches, coefficients and arrays."""
    if isinstance(one, np.ndarray):
        return one.dtype == np.asarray(other).dtype and np.array_equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)  # type: ignore[attr-defined,index]
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[call-overload]
    names = getattr(one, "__dataclass_fields__", None)
    return one == other if names is None else all(same(getattr(one, n), getattr(other, n)) for n in names)


def prepared(records: Sequence[Record], cache: Path, encoder: Averages | None = None, **keys: object) -> Prepared:
    return dataset(records, cache, encoder, **keys).prepare(quiet)

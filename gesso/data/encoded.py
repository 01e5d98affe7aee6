"""Pictures and captions as a model's encoders give them, from the cache where it has them.

`Pictures` and `Captions` work alike: `stored` looks in the cache, `encode` asks the model (and keeps the answer where
that is wanted), `get` does the one or the other for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data import images
from gesso.data.cache import Store, key
from gesso.data.images import Transform
from gesso.errors import DataError, NumbersError

AT_ONCE = 16
"""Pictures or captions encoded in one call, at most."""
PIXELS_AT_ONCE = AT_ONCE * 256 * 256
"""Pixels encoded in one call, at most: the widest layers of an autoencoder hold about 2 kB for each."""

T = TypeVar("T")
Entry = dict[str, Array]
Wanted = tuple[Path, Transform]


class Encoder(Protocol):
    """What the data side needs of a model. An identity differs whenever the encoded values could."""

    image_identity: str
    """The autoencoder: its weights' hash, and the precision it runs in."""
    text_identity: str
    """The text encoder and its tokenizer, likewise."""
    cache_latents: bool
    cache_text: bool
    train_text: bool
    """The text encoder trains: pictures are conditioned on token ids, and captions are not encoded beforehand."""

    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]: ...

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]: ...

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Latent posteriors of pictures under transforms. `keep` says whether they go into the cache."""

    encoder: Encoder
    store: Store
    keep: bool
    fingerprints: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of each file as it was when first read."""

    def sha256(self, path: Path) -> str:
        if path not in self.fingerprints:
            self.fingerprints[path] = images.fingerprint(path)
        return self.fingerprints[path]

    def decode(self, path: Path) -> tuple[Picture, tuple[str, ...]]:
        """The picture and notes on it. Raises DataError where it is broken or no longer what was fingerprinted."""
        data = images.contents(path)
        if sha256(data).hexdigest() != self.sha256(path):
            raise DataError(
                "the file changed while it was in use",
                where=str(path),
                todo="start again when nothing edits the pictures",
            )
        return images.decode(data, path)

    def stored(self, path: Path, transform: Transform) -> Entry | None:
        return self.store.get(self.key(path, transform)) if self.keep else None

    def encode(self, jobs: Sequence[tuple[Path, Transform, Pixels]]) -> list[Entry]:
        """{"mean", "logvar"}, float32 [C, H, W], of each picture given as pixels [3, height, width] of one size."""
        entries = []
        for part in _parts(jobs, at_once(jobs[0][2].shape)) if jobs else ():
            mean, logvar = self.encoder.encode_images(np.stack([pixels for _, _, pixels in part]))
            for (path, transform, _), one_mean, one_logvar in zip(part, mean, logvar, strict=True):
                if not (np.isfinite(one_mean).all() and np.isfinite(one_logvar).all()):
                    raise NumbersError(
                        "the autoencoder gives numbers that are not finite for this picture",
                        where=str(path),
                        todo="some autoencoders overflow in half precision; use an fp32 or repaired one",
                    )
                entries.append({"mean": one_mean, "logvar": one_logvar})
                if self.keep:
                    self.store.put(self.key(path, transform), entries[-1])
        return entries

    def get(self, wanted: Sequence[Wanted]) -> tuple[Float32, Float32]:
        """Mean and log-variance of each, float32 [B, C, H, W]."""
        entries = {one: self.stored(*one) for one in wanted}
        absent = [one for one, entry in entries.items() if entry is None]
        jobs = [(path, transform, images.apply(self.decode(path)[0], transform)) for path, transform in absent]
        entries |= zip(absent, self.encode(jobs), strict=True)
        stacked = _stack(entries[one] for one in wanted)
        return stacked["mean"], stacked["logvar"]

    def key(self, path: Path, transform: Transform) -> str:
        return key(
            kind="latents",
            picture=self.sha256(path),
            transform=transform.tag(),
            encoder=self.encoder.image_identity,
            dtype="fp32",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """Conditions by caption. `keep` says whether they go into the cache."""

    encoder: Encoder
    store: Store
    keep: bool

    def stored(self, caption: str) -> Entry | None:
        return self.store.get(self.key(caption)) if self.keep else None

    def encode(self, captions: Sequence[str]) -> list[Entry]:
        """What the denoiser needs of each caption, by name, without a batch axis."""
        entries = []
        for part in _parts(captions, AT_ONCE):
            encoded = self.encoder.encode_text(part)
            for row, caption in enumerate(part):
                entry = {name: value[row] for name, value in encoded.items()}
                if not all(np.isfinite(value).all() for value in entry.values()):
                    raise NumbersError(f'the text encoder gives numbers that are not finite for "{caption}"')
                entries.append(entry)
                if self.keep:
                    self.store.put(self.key(caption), entry)
        return entries

    def get(self, captions: Sequence[str]) -> Entry:
        """What the denoiser is conditioned on, by name, one row a caption; token ids when the text encoder trains."""
        if self.encoder.train_text:
            return dict(self.encoder.tokens(captions))
        entries = {caption: self.stored(caption) for caption in captions}
        absent = [caption for caption, entry in entries.items() if entry is None]
        entries |= zip(absent, self.encode(absent), strict=True)
        return _stack(entries[caption] for caption in captions)

    def key(self, caption: str) -> str:
        return key(kind="text", caption=caption, encoder=self.encoder.text_identity, dtype="fp32")


def at_once(shape: tuple[int, ...]) -> int:
    """How many pictures of `shape` (3, height, width) are encoded in one call."""
    return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (shape[1] * shape[2])))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _stack(entries: Iterable[Entry | None]) -> Entry:
    rows = [entry for entry in entries if entry is not None]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

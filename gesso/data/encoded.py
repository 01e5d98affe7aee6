"""Pictures and captions as a model's encoders give them, from the cache where it has them.

`Pictures` and `Captions` work alike: `stored` looks in the cache, `encode` asks the model (and keeps the answer where
that is wanted), `get` does the one or the other for each.

Each picture and each caption is encoded alone. Frameworks choose other kernels for other batch sizes, and the last bits
of an answer follow: encoded in groups, an entry would depend on what else was missing from the cache, and a run that
was killed while it encoded would end in other bytes than one that was not.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import numpy as np

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data import images
from gesso.data.cache import Store, key
from gesso.data.images import Transform
from gesso.data.places import Place
from gesso.errors import DataError, NumbersError

Entry = dict[str, Array]
Wanted = tuple[Place, Transform]


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
    fingerprints: dict[Place, str] = field(default_factory=dict)
    """SHA-256 of each file as it was when first read."""
    sizes: dict[Place, tuple[int, int]] = field(default_factory=dict)
    """Width and height of each upright picture in pixels, as far as it has been opened."""

    def size(self, path: Place) -> tuple[int, int]:
        """Width and height of the upright picture in pixels."""
        if path not in self.sizes:
            self.decode(path)
        return self.sizes[path]

    def sha256(self, path: Place) -> str:
        if path not in self.fingerprints:
            self.fingerprints[path] = images.fingerprint(path)
        return self.fingerprints[path]

    def decode(self, path: Place) -> tuple[Picture, tuple[str, ...]]:
        """The picture and notes on it. Raises DataError where it is broken or no longer what was fingerprinted."""
        data = images.contents(path)
        if sha256(data).hexdigest() != self.sha256(path):
            raise DataError(
                "the file changed while it was in use",
                where=str(path),
                todo="start again when nothing edits the pictures",
            )
        picture, notes = images.decode(data, path)
        self.sizes[path] = picture.shape[1], picture.shape[0]
        return picture, notes

    def stored(self, path: Place, transform: Transform) -> Entry | None:
        entry = self.store.get(self.key(path, transform)) if self.keep else None
        if entry:
            self.sizes[path] = int(entry["size"][0]), int(entry["size"][1])
        return entry

    def encode(self, path: Place, transform: Transform, picture: Picture) -> Entry:
        """{"mean", "logvar"}, float32 [C, H, W], of `picture` under `transform`, and the "size" of the whole picture.

        "size" is int64 [2], width and height in pixels.
        """
        mean, logvar = self.encoder.encode_images(images.apply(picture, transform)[None])
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise NumbersError(
                "the autoencoder gives numbers that are not finite for this picture",
                where=str(path),
                todo="some autoencoders overflow in half precision; use an fp32 or repaired one",
            )
        height, width = picture.shape[:2]
        entry = {"mean": mean[0], "logvar": logvar[0], "size": np.array([width, height], dtype=np.int64)}
        if self.keep:
            self.store.put(self.key(path, transform), entry)
        return entry

    def get(self, wanted: Sequence[Wanted]) -> tuple[Float32, Float32]:
        """Mean and log-variance of each, float32 [B, C, H, W]."""
        entries: dict[Wanted, Entry] = {}
        for path, transform in dict.fromkeys(wanted):
            entry = self.stored(path, transform)
            entries[path, transform] = entry or self.encode(path, transform, self.decode(path)[0])
        stacked = _stack(entries[one] for one in wanted)
        return stacked["mean"], stacked["logvar"]

    def key(self, path: Place, transform: Transform) -> str:
        return key(
            kind="latents, one a call",  # earlier versions encoded in groups, under the kind "latents"
            picture=self.sha256(path),
            transform=transform.tag(),
            encoder=self.encoder.image_identity,
            dtype="fp32",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """Conditions by caption. `keep` says whether they go into the cache, or which of them do."""

    encoder: Encoder
    store: Store
    keep: bool | Container[str]

    def kept(self, caption: str) -> bool:
        return self.keep if isinstance(self.keep, bool) else caption in self.keep

    def stored(self, caption: str) -> Entry | None:
        return self.store.get(self.key(caption)) if self.kept(caption) else None

    def encode(self, caption: str) -> Entry:
        """What the denoiser needs of the caption, by name, without a batch axis."""
        entry: Entry = {name: value[0] for name, value in self.encoder.encode_text([caption]).items()}
        if not all(np.isfinite(value).all() for value in entry.values()):
            raise NumbersError(f'the text encoder gives numbers that are not finite for "{caption}"')
        if self.kept(caption):
            self.store.put(self.key(caption), entry)
        return entry

    def get(self, captions: Sequence[str]) -> Entry:
        """What the denoiser is conditioned on, by name, one row a caption; token ids when the text encoder trains."""
        if self.encoder.train_text:
            return dict(self.encoder.tokens(captions))
        entries = {caption: self.stored(caption) or self.encode(caption) for caption in dict.fromkeys(captions)}
        return _stack(entries[caption] for caption in captions)

    def key(self, caption: str) -> str:
        return key(kind="text, one a call", caption=caption, encoder=self.encoder.text_identity, dtype="fp32")


def _stack(entries: Iterable[Entry]) -> Entry:
    rows = list(entries)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

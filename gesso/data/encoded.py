"""Pictures and captions as a model's encoders give them, from the cache where it has them.

`Pictures` and `Captions` work alike: `known` asks whether the cache has something, `stored` reads it there, `encode`
asks the model (and keeps the answer where that is wanted), `get` does the one or the other for each.

Each picture and each caption is encoded alone. Frameworks choose other kernels for other batch sizes, and the last bits
of an answer follow: encoded in groups, an entry would depend on what else was missing from the cache, and a run that
was killed while it encoded would end in other bytes than one that was not.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import numpy as np

from gesso.arrays import Array, Float32, Int64, Pixels
from gesso.chunks import level
from gesso.data import images, remembered, sizes
from gesso.data.cache import Store, key
from gesso.data.images import Decoded, Transform
from gesso.data.places import Inside, Place
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
    ahead: dict[Wanted, Future[Entry | Float32]] = field(default_factory=dict)
    """What `read` gives for pictures that readers (gesso/data/readers.py) are at already."""

    def size(self, path: Place) -> tuple[int, int]:
        """Width and height of the upright picture in pixels."""
        if isinstance(path, Inside) and path.pixels:
            return path.pixels  # of millions, none is held
        if path not in self.sizes:
            known = self.store.get(self._size_key(path)) if self.keep and path in self.fingerprints else None
            self.sizes[path] = (int(known["size"][0]), int(known["size"][1])) if known else sizes.size(path)
        return self.sizes[path]

    def sha256(self, path: Place) -> str:
        """SHA-256 of the picture's bytes, in hexadecimal; with a cache, they are read for it only once."""
        if isinstance(path, Inside) and path.sha256:
            return path.sha256
        if path not in self.fingerprints:
            self.fingerprints[path] = remembered.sha256(path, self.store) if self.keep else images.fingerprint(path)
        return self.fingerprints[path]

    def decode(self, path: Place, wanted: Sequence[Transform] = ()) -> Decoded:
        """The picture, perhaps in small where `wanted` says what for.

        Raises DataError where it is broken or no longer what was fingerprinted.
        """
        data = images.contents(path)
        if sha256(data).hexdigest() != self.sha256(path):
            raise DataError(
                "the file changed while it was in use",
                where=str(path),
                todo="start again when nothing edits the pictures",
            )
        picture = images.decode(data, path, wanted)
        if not (isinstance(path, Inside) and path.pixels):
            self.sizes[path] = picture.width, picture.height
        elif path.pixels != (picture.width, picture.height):
            raise DataError(
                f"the picture is {picture.width} × {picture.height} pixels, its index says {path.pixels[0]} × "
                f"{path.pixels[1]}",
                where=str(path),
                todo="write the index again with `gesso pack`, or take it away",
            )
        return picture

    def known(self, path: Place, transform: Transform) -> bool:
        """Whether the cache has the picture under `transform`; the latents are not read for it."""
        return self.keep and self.store.known(self.key(path, transform))

    def at_hand(self, path: Place, transform: Transform) -> bool:
        """Whether the latents are in memory."""
        return self.keep and self.store.held(self.key(path, transform))

    def stored(self, path: Place, transform: Transform) -> Entry | None:
        return self.store.get(self.key(path, transform)) if self.keep else None

    def read(self, path: Place, transform: Transform) -> Entry | Float32:
        """The entry where the cache has it, or else what to give the encoder, float32 [3, H, W]. Any thread may ask."""
        return self.stored(path, transform) or images.apply(self.decode(path, [transform]), transform)

    def encode(self, path: Place, transform: Transform, picture: Decoded) -> Entry:
        """{"mean", "logvar"}, float32 [C, H, W], of `picture` under `transform`."""
        return self.encode_pixels(path, transform, images.apply(picture, transform))

    def encode_pixels(self, path: Place, transform: Transform, pixels: Float32) -> Entry:
        """As `encode`, of the picture under `transform` as float32 [3, H, W]."""
        mean, logvar = self.encoder.encode_images(pixels[None])
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise NumbersError(
                "the autoencoder gives numbers that are not finite for this picture",
                where=str(path),
                todo="some autoencoders overflow in half precision; use an fp32 or repaired one",
            )
        entry = {"mean": mean[0], "logvar": logvar[0]}
        if self.keep:
            self.store.put(self.key(path, transform), entry)
            self.store.put(self._size_key(path), {"size": np.array(self.size(path), dtype=np.int64)})
        return entry

    def get(self, wanted: Sequence[Wanted]) -> tuple[Float32, Float32]:
        """Mean and log-variance of each, float32 [B, C, H, W]."""
        entries: dict[Wanted, Entry] = {}
        for one in dict.fromkeys(wanted):
            reading = self.ahead.pop(one, None)
            found = self.read(*one) if reading is None else reading.result()
            entries[one] = found if isinstance(found, dict) else self.encode_pixels(*one, found)
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

    def _size_key(self, path: Place) -> str:
        return key(kind="size of the upright picture", picture=self.sha256(path))


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """Conditions by caption. `keep` says whether they go into the cache, or which of them do."""

    encoder: Encoder
    store: Store
    keep: bool | Container[str]

    def kept(self, caption: str) -> bool:
        return self.keep if isinstance(self.keep, bool) else caption in self.keep

    def known(self, caption: str) -> bool:
        """Whether the cache has the caption; its states are not read for it."""
        return self.kept(caption) and self.store.known(self.key(caption))

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
    return {name: level([row[name] for row in rows]) for name in rows[0]}

"""Records joined with what is drawn for them (crop, mirror, caption) and what encoders make of them.

Every draw is a function of (seed, purpose, epoch, row). A row is a record's index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Array, Float32
from gesso.data import captions, many
from gesso.data.buckets import Buckets, Size
from gesso.data.cache import Store
from gesso.data.encoded import Captions, Encoder, Pictures, Wanted
from gesso.data.images import Decoded, Transform
from gesso.data.lock import lock
from gesso.data.masks import Masks
from gesso.data.places import Place
from gesso.data.plan import Slot
from gesso.data.readers import in_order
from gesso.data.record import Record
from gesso.errors import DataError
from gesso.keys import uniforms

NAMED = 10
"""How many pictures a message names before it only counts."""

Geometry = Callable[[Size, Size, Size], dict[str, Float32]]
"""Called with a picture's width and height, the corner's left and top, and the width and height trained on."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("fingerprints", "pictures", "captions"), how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """How many entries were encoded and how many were in the cache already.

    An entry is a picture under one transform (two of them with mirroring) or a caption; equal ones count once.
    """

    encoded: int = 0
    reused: int = 0
    captions_encoded: int = 0
    captions_reused: int = 0
    notes: tuple[str, ...] = ()
    """What there is to say of the pictures, one sentence each; all that are enlarged share one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Records of which latents, captions and conditions can be asked. Call `prepare` first.

    Every picture is trained at `width` × `height`, or with `buckets` at the size that these have for its shape.
    """

    records: Sequence[Record]
    width: int
    height: int
    buckets: Buckets | None = None
    interpolation: str = "lanczos"
    crop: str = "center"
    flip: bool = False
    caption_dropout: float = 0.0
    seed: int
    encoder: Encoder
    store: Store
    geometry: Geometry | None = None
    readers: int = 0
    """Threads that read and decode pictures; 0 for one on each processor."""

    @cached_property
    def pictures(self) -> Pictures:
        # A random crop is as good as never drawn twice: keeping it would only fill the disk.
        keep = self.encoder.cache_latents and self.crop == "center"
        return Pictures(encoder=self.encoder, store=self.store, keep=keep)

    @cached_property
    def texts(self) -> Captions:
        # An order of tags is as good as never drawn twice, like a random crop: those captions are encoded when seen.
        keep = self.encoder.cache_text and not self.encoder.train_text
        if self.trusting:
            return Captions(encoder=self.encoder, store=self.store, keep=keep and not self._endless)
        lasting = frozenset(self._renderings) if keep and self._endless else keep
        return Captions(encoder=self.encoder, store=self.store, keep=lasting)

    @cached_property
    def doubted(self) -> Sequence[int]:
        """The rows whose pictures are read before the first step even where none is encoded (gesso/data/many.py)."""
        return many.doubted(self.records)

    @property
    def trusting(self) -> bool:
        """Whether the data is so much that its indexes are trusted."""
        return len(self.doubted) < len(self.records)

    @property
    def _streaming(self) -> bool:
        """Whether all rows are encoded, one after the other, without a list of them."""
        return self.trusting and self.pictures.keep

    @cached_property
    def masks(self) -> Masks:
        return Masks(pictures=self.pictures)

    def transform(self, slot: Slot) -> Transform:
        """How the picture of `slot` is cropped and mirrored in its epoch."""
        centered = self._centered(slot.row, self.flip and self._draw("flip", slot) < 0.5)
        if self.crop == "center":
            return centered
        return replace(centered, left=self._draw("crop-left", slot), top=self._draw("crop-top", slot))

    def size(self, row: int) -> Size:
        """Width and height in pixels at which the picture of a row is trained."""
        if self.buckets is None:
            return self.width, self.height
        return self._trained_at(*self.pictures.size(self.records[row].place))

    def all_sizes(self) -> Sequence[Size]:
        """`size` of every row; () where all are alike."""
        if self.buckets is not None and self.trusting:
            return many.coded(self.records, self.buckets, {row: self.size(row) for row in self.doubted})
        return () if self.buckets is None else tuple(self.size(row) for row in range(len(self.records)))

    def caption(self, slot: Slot) -> str:
        """The caption of `slot` in its epoch; "" where it is dropped."""
        if self.caption_dropout and self._draw("dropout", slot) < self.caption_dropout:
            return ""
        record = self.records[slot.row]
        chosen = captions.choose(record.shares, len(record.captions), self._draw("caption", slot))
        return captions.render(record.captions[chosen], record.style, self.seed, slot.epoch, slot.row)

    def plain_caption(self, row: int) -> str:
        """The first caption of a row with nothing drawn, for measuring."""
        return captions.plain(self.records[row].captions[0], self.records[row].style)

    def latents(self, slots: Sequence[Slot]) -> tuple[Float32, Float32]:
        """Mean and log-variance of the latent posterior of each slot, float32 [B, C, H, W] each."""
        return self.pictures.get(self.wanted(slots))

    def wanted(self, slots: Sequence[Slot]) -> list[Wanted]:
        """The picture and the crop of each slot."""
        return [(self.records[slot.row].place, self.transform(slot)) for slot in slots]

    def mask(self, slots: Sequence[Slot], height: int, width: int) -> Float32 | None:
        """Where in the latents the loss counts, float32 [B, 1, height, width]; None where no record has a mask."""
        records = [self.records[slot.row] for slot in slots]
        if all(record.mask is None for record in records):
            return None
        return self.masks.get(records, [self.transform(slot) for slot in slots], height, width)

    def sizes(self, slots: Sequence[Slot]) -> dict[str, Array]:
        """What the denoiser is told of the picture, the crop and the target size of each slot, by name, one row each.

        From the crop that `latents` makes: both ask for the slot's transform.
        """
        if self.geometry is None:
            return {}
        rows = []
        for slot in slots:
            whole = self.pictures.size(self.records[slot.row].place)
            rows.append(self.geometry(whole, self.transform(slot).corner(*whole), self.size(slot.row)))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def condition(self, captions: Sequence[str]) -> dict[str, Array]:
        """What the denoiser is conditioned on, by name, one row a caption; token ids when the text encoder trains."""
        return self.texts.get(captions)

    def prepare(self, progress: Progress) -> Prepared:
        """Read every picture once and encode what the cache does not have.

        Latents that are not kept are not encoded here, yet their pictures are decoded to the last row: better to hear
        of a broken one now than at step 1265. Raises one DataError that names all of them. What the indexes of very
        many pictures vouch for is not looked at, unless it is encoded.
        """
        paths = list(dict.fromkeys(self.records[row].place for row in self.doubted))
        problems: list[DataError] = []
        with closing(in_order(self.pictures.sha256, paths, self.readers)) as found:
            for done, (_, fingerprint) in enumerate(found, 1):
                try:
                    fingerprint.result()
                except DataError as error:
                    problems.append(error)
                progress("fingerprints", done, len(paths))
        # What cannot be read cannot be decoded either: this names both kinds together.
        pictures = self._prepare_pictures(progress)
        _raise_all(problems, len(paths))
        self._prepare_masks(progress)
        captions_encoded, captions_reused = self._prepare_captions(progress)
        return Prepared(
            encoded=pictures.encoded,
            reused=pictures.reused,
            captions_encoded=captions_encoded,
            captions_reused=captions_reused,
            notes=(*pictures.notes, *self._on_demand()),
        )

    def lock(self, folders: Iterable[Path] = ()) -> dict[str, Any]:
        """What the data was (gesso/data/lock.py)."""
        return lock(self.records, self.pictures, folders)

    def _draw(self, stream: str, slot: Slot) -> float:
        return float(uniforms(self.seed, stream, [(slot.epoch, slot.row)])[0])

    def _centered(self, row: int, flip: bool) -> Transform:
        width, height = self.size(row)
        return Transform(
            side_width=width,
            side_height=height,
            flip=flip,
            interpolation=self.interpolation,
            background=self.records[row].background,
        )

    def _all_centered(self, row: int) -> list[Transform]:
        """Every transform under which the picture of a row is kept."""
        return [self._centered(row, flip) for flip in ((False, True) if self.flip else (False,))]

    @cached_property
    def _renderings(self) -> dict[str, str]:
        """Every caption that can be seen, with where it comes from, but for those of which there is no end."""
        return {
            text: record.origin
            for record in self.records
            for caption in record.captions
            for text in captions.renderings(caption, record.style) or ()
        } | ({"": ""} if self.caption_dropout else {})

    @cached_property
    def _endless(self) -> int:
        """How many records have a caption with more renderings than are encoded beforehand."""
        if self.trusting:
            return many.drawn(self.records)
        return sum(
            any(captions.renderings(caption, record.style) is None for caption in record.captions)
            for record in self.records
        )

    def _on_demand(self) -> list[str]:
        if not (self.encoder.cache_text and not self.encoder.train_text and self._endless):
            return []
        return [
            f"the captions of {self._endless} of {len(self.records)} pictures are shuffled or have many wildcards: "
            "each is encoded when it is seen, and none of them is kept"
        ]

    def _prepare_masks(self, progress: Progress) -> None:
        masked: Sequence[int] = range(len(self.records))
        if not (self._streaming and many.masked(self.records)):
            some = ((row, self.records[row]) for row in self.doubted)
            masked = list({(record.mask, record.place): row for row, record in some if record.mask}.values())
        problems: list[DataError] = []
        for done, row in enumerate(masked, 1):
            try:
                if self.records[row].mask:
                    self.masks.check(self.records[row], self._all_centered(row))
            except DataError as error:
                problems.append(error)
            progress("masks", done, len(masked))
        _raise_all(problems, len(masked))

    def _prepare_pictures(self, progress: Progress) -> Prepared:
        once = {(self.records[row].place, self.records[row].background): row for row in self.doubted}
        rows: Collection[int] = range(len(self.records)) if self._streaming else once.values()
        seen: set[str] = set()
        notes: list[str] = []
        problems: list[DataError] = []
        encoded = asked = 0
        with closing(in_order(self._looked_at, rows, self.readers)) as found:
            for done, (row, looked_at) in enumerate(found, 1):
                path = self.records[row].place
                try:
                    wanted, picture = looked_at.result()
                    transforms = wanted if self.pictures.keep else []
                    # Asked once more: by now, the same picture may have come under another name.
                    missing = [t for t in transforms if not self.pictures.known(path, t)]
                    if missing or not transforms:
                        picture = self.pictures.decode(path, wanted) if picture is None else picture
                        if not self._streaming or len(notes) < NAMED:
                            notes += [f"{path}: {note}" for note in picture.notes]
                        # With a broken one the run cannot start: what is left to do is to find the others soon.
                        for transform in () if problems else missing:
                            self.pictures.encode(path, transform, picture)
                            encoded += 1
                    asked += len(transforms)
                    seen |= set() if self._streaming else {self.pictures.key(path, t) for t in transforms}
                except DataError as error:
                    problems.append(error)
                progress("pictures", done, len(rows))
        _raise_all(problems, len(rows))
        return Prepared(
            encoded=encoded,
            reused=(asked if self._streaming else len(seen)) - encoded,
            notes=(*notes, *self._enlarged({path: row for (path, _), row in once.items()}), *self._enlarged_of_many()),
        )

    def _looked_at(self, row: int) -> tuple[list[Transform], Decoded | None]:
        """Under which transforms the picture of a row is wanted, and the picture where the cache lacks one of them."""
        path, wanted = self.records[row].place, self._all_centered(row)
        if self.pictures.keep and all(self.pictures.known(path, transform) for transform in wanted):
            return wanted, None
        return wanted, self.pictures.decode(path, wanted)

    def _enlarged(self, rows: Mapping[Place, int]) -> list[str]:
        """One sentence on all the pictures that are narrower or lower than what is trained on."""
        small, sizes = [], set()
        for path, row in rows.items():
            (width, height), size = self.pictures.size(path), self.size(row)
            if width < size[0] or height < size[1]:
                small.append(f"{path} ({width} × {height})")
                sizes.add(size)
        return _said(small[:NAMED], len(small), len(rows), sizes)

    def _enlarged_of_many(self) -> list[str]:
        """The same of the pictures that are not looked at, after what their indexes say."""
        if not self.trusting:
            return []
        count, total, first, sizes = many.smaller(self.records, self._trained_at, NAMED)
        small = [(self.records[row].place, *self.pictures.size(self.records[row].place)) for row in first]
        named = [f"{place} ({width} × {height})" for place, width, height in small]
        return _said(named, count, total, sizes)

    def _trained_at(self, width: int, height: int) -> Size:
        """What a picture of `width` × `height` pixels is trained at."""
        return (self.width, self.height) if self.buckets is None else self.buckets.size(width, height)

    def _prepare_captions(self, progress: Progress) -> tuple[int, int]:
        """How many captions were encoded, and how many were in the cache."""
        if not self.texts.keep:
            return 0, 0
        if self.trusting:
            return self._stream_captions(progress)
        missing = [caption for caption in self._renderings if not self.texts.known(caption)]
        for done, caption in enumerate(missing, 1):
            self.texts.encode(caption)
            progress("captions", done, len(missing))
        return len(missing), len(self._renderings) - len(missing)

    def _stream_captions(self, progress: Progress) -> tuple[int, int]:
        """The same, row by row: none of the captions is held, and those in the cache count each time they are met."""
        encoded = reused = 0
        for done, record in enumerate(self.records, 1):
            for caption in record.captions:
                for text in captions.renderings(caption, record.style) or ():
                    if self.texts.known(text):
                        reused += 1
                        continue
                    self.texts.encode(text)
                    encoded += 1
            progress("captions", done, len(self.records))
        if self.caption_dropout and not self.texts.known(""):
            self.texts.encode("")
            encoded += 1
        return encoded, reused


def _said(named: Sequence[str], small: int, pictures: int, sizes: Collection[Size]) -> list[str]:
    """That `small` of the pictures are enlarged; `named` are the first of them."""
    if not small:
        return []
    listed = ", ".join(named) + (f" and {small - NAMED} more" if small > NAMED else "")
    verbs = "is smaller than {} and is" if small == 1 else "are smaller than {} and are"
    verb = verbs.format(" × ".join(map(str, *sizes)) if len(sizes) == 1 else "what they are trained at")
    return [f"{small} of {pictures} pictures {verb} enlarged: {listed}"]


def _raise_all(problems: Sequence[DataError], pictures: int) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"\n  {error.where}: {error.what}" for error in problems[:NAMED]]
        more = f"\n  and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise DataError(
            f"{len(problems)} of {pictures} pictures cannot be used" + "".join(lines) + more,
            todo="replace these files or take them out of the folder",
        )

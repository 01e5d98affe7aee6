"""The whole forecast of a run: disk, memory, time; each with how it is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gesso import gathering, models, settings
from gesso.data import captions
from gesso.data.buckets import Buckets, Size
from gesso.data.examine.pictures import Seen
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.engines.engine import Engine
from gesso.families.family import Family
from gesso.forecast import disk, memory, pace
from gesso.forecast.sizes import Shape, Sizes, sizes
from gesso.job import Job, make_objective
from gesso.models import ModelSource
from gesso.report.check import Forecast
from gesso.schema import Recipe
from gesso.storage import amount, free_bytes
from gesso.trackers.status import duration


@dataclass(slots=True, kw_only=True)
class Base:
    """The base that a recipe names, and what follows from it."""

    source: ModelSource
    family: Family
    side: int
    buckets: Buckets | None

    def shape(self, whole: Size) -> Size:
        """What a picture of `whole`, width and height in pixels, is trained at."""
        return self.buckets.size(*whole) if self.buckets else (self.side, self.side)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.source.config(self.family.autoencoder).get("latent_channels", 4))

    @property
    def factor(self) -> int:
        """How many pixels of a picture's side one of a latent's stands for."""
        return 1 << (len(self.source.config(self.family.autoencoder)["block_out_channels"]) - 1)


@dataclass(slots=True, kw_only=True)
class Told:
    """The forecast for people, and its numbers for programs (bytes, seconds, counts)."""

    items: list[Forecast] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    room: disk.Room | None = None
    """What is wrong with the room on the disks, if anything."""


def foretell(
    recipe: Recipe,
    base: Base,
    records: Sequence[Record],
    seen: Mapping[Place, Seen],
    *,
    engine: Engine | None = None,
) -> Told:
    """The forecast for a recipe in steps. With an `engine`, which has the model, a few steps are really taken."""
    told, shapes = Told(), sizes(recipe, base.source, base.family)
    _disk(told, recipe, base, shapes, records, seen)
    _memory(told, recipe, base, shapes, seen)
    _time(told, recipe, base, records, engine)
    return told


def _disk(
    told: Told, recipe: Recipe, base: Base, shapes: Sizes, records: Sequence[Record], seen: Mapping[Place, Seen]
) -> None:
    found = disk.disk(
        recipe,
        base.source,
        base.family,
        shapes,
        latents=latents(recipe, base, records, seen),
        pictures=len({seen[record.place].sha256 for record in records if record.place in seen}),
        captions=renderings(recipe, records),
        side=base.side,
    )
    out, cache = Path(recipe.out), gathering.cache_folder(recipe)
    told.numbers |= {
        "trainable": shapes.total,
        "checkpoint_bytes": found.checkpoint,
        "out_bytes": found.out,
        "cache_bytes": found.cache,
    }
    told.items += [
        Forecast(name="Trainable", value=f"{shapes.total:,} parameters", how="counted in the base's own files"),
        Forecast(name="A checkpoint", value=amount(found.checkpoint), how="weights, optimiser and averages"),
        Forecast(
            name="Run folder",
            value=f"up to {amount(found.out)}",
            how=f"{found.checkpoints} checkpoint{'s at once' * (found.checkpoints > 1)}, the result, and samples "
            "uncompressed; "
            f"{amount(free_bytes(out))} are free",
        ),
        Forecast(
            name="Cache",
            value=amount(found.cache),
            how="encoded pictures and captions, equal ones once; less where some are there already; "
            f"{amount(free_bytes(cache))} are free in {cache}",
        ),
    ]
    told.room = disk.room(out, cache, found)


def latents(recipe: Recipe, base: Base, records: Sequence[Record], seen: Mapping[Place, Seen]) -> dict[Shape, int]:
    """How many encoded pictures of each shape [C, h, w] the cache will hold; equal files count once."""
    if not recipe.cache.latents or recipe.train.crop != "center":
        return {}
    once: dict[tuple[str, Shape], None] = {}
    for record in records:
        if record.place in seen:
            picture = seen[record.place]
            size = base.shape((picture.width, picture.height))
            once[picture.sha256, (base.channels, size[1] // base.factor, size[0] // base.factor)] = None
    return {shape: count * (1 + recipe.train.flip) for shape, count in Counter(shape for _, shape in once).items()}


def renderings(recipe: Recipe, records: Sequence[Record]) -> int:
    """How many encoded captions the cache will hold."""
    if not recipe.cache.text or settings.trains_text(recipe):
        return 0
    said = {
        text
        for caption, style in {(each, record.style) for record in records for each in record.captions}
        for text in captions.renderings(caption, style) or ()
    }
    return len(said | ({""} if recipe.train.caption_dropout else set()))


def _memory(told: Told, recipe: Recipe, base: Base, shapes: Sizes, seen: Mapping[Place, Seen]) -> None:
    config = base.source.config(base.family.denoiser)
    if "down_block_types" not in config:  # a network of another kind, for which there is no formula here
        return
    chosen = (base.shape((each.width, each.height)) for each in seen.values())
    width, height = max(chosen, key=lambda size: size[0] * size[1], default=(base.side, base.side))
    found = memory.memory(recipe, base.family, shapes, config, (height // base.factor, width // base.factor))
    told.numbers |= {"memory_bytes": found.total}
    told.items.append(
        Forecast(
            name="Memory",
            value=f"about {amount(found.total)}",
            how=f"an estimate: weights {amount(found.weights)}, training {amount(found.training)}, activations "
            f"{amount(found.activations)} ± {memory.MARGIN:.0%}; a framework's own 0.5 to 1 GB come on top",
        )
    )


def _time(told: Told, recipe: Recipe, base: Base, records: Sequence[Record], engine: Engine | None) -> None:
    if engine is None:
        found = pace.earlier(recipe)
    else:
        with models.composed(base.source) as source:
            objective = make_objective(recipe, source)
            out = Path(recipe.out)
            job = Job(recipe=recipe, out=out, source=source, family=base.family, objective=objective, engine=engine)
            found = pace.taken(job, records)
    if found is None:
        how = "not measured: there is no run of this kind beside it; --time takes a few steps to measure"
        told.items.append(Forecast(name="Time", value="not known", how=how))
        return
    whole = recipe.train.steps * found.seconds
    told.numbers |= {"seconds_a_step": found.seconds, "seconds": whole}
    told.items.append(
        Forecast(
            name="Time",
            value=f"about {duration(whole)}",
            how=f"{recipe.train.steps} steps of {duration(found.seconds)}, the median of {found.source}; encoding, "
            "samples, validation and checkpoints come on top",
        )
    )

"""Encoding a recipe's pictures and captions ahead, so that training begins at once: `gesso cache RECIPE`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from gesso import models, settings
from gesso.data.dataset import Prepared
from gesso.data.record import Record
from gesso.errors import RecipeError
from gesso.families import find
from gesso.gathering import pictures
from gesso.job import Job, create_engine, make_objective
from gesso.prior import Progress
from gesso.recipe import Loaded
from gesso.schema import Recipe
from gesso.storage import RunLock


class Share(NamedTuple):
    """The part `part` (1, 2, …) of the pictures, of `of` parts."""

    part: int = 1
    of: int = 1

    def take(self, records: Sequence[Record]) -> list[Record]:
        """The records of every `of`-th picture: each picture belongs to one share, under all of its captions."""
        places = list(dict.fromkeys(record.place for record in records))
        mine = set(places[self.part - 1 :: self.of])
        return [record for record in records if record.place in mine]


def fill(loaded: Loaded, share: Share, progress: Progress) -> Prepared:
    """Encode what the cache does not have of a recipe's pictures and captions, those that are held out included.

    Class pictures that the base model is to draw are drawn by the first share, into the run folder, as training would.
    `progress` may raise to end the work between two pictures; what is encoded by then is kept.
    """
    recipe = loaded.recipe
    learning, holding = pictures(recipe)
    recipe = settings.settled(recipe, len(learning))
    _useful(recipe)
    source = models.whole(models.chosen(recipe.model, progress))
    family = find(source.pipeline)
    settings.fits(recipe, family)
    source = models.with_vae(source, recipe.model.vae)
    objective = make_objective(recipe, source)
    with models.composed(source) as base:
        job = Job(
            recipe=recipe,
            out=Path(recipe.out),
            source=base,
            family=family,
            objective=objective,
            engine=create_engine(recipe),
        )
        job.load()
        of_class = _of_class(job, learning, progress) if share.part == 1 else []
        parts = [
            job.dataset(records, exact=exact).prepare(progress)
            for records, exact in (([*share.take(learning), *of_class], False), (share.take(holding), True))
            if records
        ]
        job.store.close()
    return Prepared(
        encoded=sum(part.encoded for part in parts),
        reused=sum(part.reused for part in parts),
        captions_encoded=sum(part.captions_encoded for part in parts),
        captions_reused=sum(part.captions_reused for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _of_class(job: Job, learning: Sequence[Record], progress: Progress) -> Sequence[Record]:
    with RunLock(job.out) if job.recipe.prior.prompt else nullcontext():
        return job.class_records(learning, progress)


def _useful(recipe: Recipe) -> None:
    """RecipeError where nothing of what the recipe encodes is kept."""
    latents = recipe.cache.latents and recipe.train.crop == "center"
    text = recipe.cache.text and not settings.trains_text(recipe)
    if not (latents or text):
        raise RecipeError(
            "nothing of this recipe is kept in the cache: its crops are random or cache.latents is off, and its text "
            "encoder or a word learns or cache.text is off",
            todo="train at once; there is nothing to encode ahead",
        )

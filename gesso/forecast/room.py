"""Whether a run that is about to start has room on the disk for what it will write."""

from __future__ import annotations

from collections.abc import Sequence

from gesso import gathering, settings
from gesso.data.record import Record
from gesso.errors import GessoError
from gesso.forecast import disk, whole
from gesso.forecast.sizes import sizes
from gesso.job import Job
from gesso.storage import FullError, free_bytes

MANY = 20_000
"""Rows from which every caption is taken for a different one, rather than read for this alone."""


def warned(job: Job, records: Sequence[Record]) -> list[str]:
    """What to say of the disk, none where there is room. FullError where not even one checkpoint and the result fit.

    With save.on_full = "wait" the run waits for room when it comes to that, and nothing is raised.
    """
    recipe = job.recipe
    base = whole.Base(source=job.source, family=job.family, side=job.side, buckets=settings.buckets(recipe, job.side))
    kept = recipe.cache.latents and recipe.train.crop == "center"
    latent = (base.channels, job.side // base.factor, job.side // base.factor)
    try:
        found = disk.disk(
            recipe,
            job.source,
            job.family,
            sizes(recipe, job.source, job.family),
            latents={latent: len(records) * (1 + recipe.train.flip)} if kept else {},
            pictures=len(records),
            captions=whole.renderings(recipe, records) if len(records) < MANY else len(records),
            side=job.side,
        )
    except GessoError:
        return []  # what does not fit this model is said by the engine when it comes to it
    room = disk.room(job.out, gathering.cache_folder(recipe), found)
    if room is None:
        return []
    if room.certain and recipe.save.on_full == "stop":
        needed = found.checkpoint + found.result
        raise FullError(room.what, needed=needed, free=free_bytes(job.out), where=room.where, todo=room.todo)
    return [f"{room.where}: {room.what}; {room.todo}"]

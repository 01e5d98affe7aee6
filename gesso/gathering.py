"""The records of a recipe: those to learn from, those that keep the class as it is, those that are held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gesso.data import many
from gesso.data.alike import near_duplicates
from gesso.data.cache import Store, default_folder
from gesso.data.places import Place
from gesso.data.record import Record
from gesso.data.records import chosen, joined, of_group
from gesso.data.sources import folders, read
from gesso.errors import DataError, RecipeError
from gesso.keys import permutation
from gesso.schema import DataTable, Recipe

Progress = Callable[[str, int, int], None]
PATIENCE_SECONDS = 2.0
"""How long work goes on before it is told of."""


def quiet(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def pictures(recipe: Recipe, progress: Progress = quiet) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records to learn from, and those held out to measure with; not those of the class."""
    _check_out(recipe)
    records = of_group(joined(_read(table, recipe) for table in recipe.data if table.group == "instance"), "instance")
    if not records:
        raise DataError("there is no picture to learn from, only of the class", todo="add a [[data]] of your pictures")
    table = recipe.validate_
    if table.path:
        return records, read(held_table(recipe), key="validate", cache=index_folder(recipe))
    if not table.holdout:
        return records, []
    if len(many.doubted(records)) < len(records):
        kept, held = many.held_out(records, table.holdout, recipe.seed)
        if not (len(kept) and len(held)):
            raise _holds_out(table.holdout, len(records), len(held))
        return chosen(records, kept), chosen(records, held)
    places = held_places(recipe, list(dict.fromkeys(record.place for record in records)), progress)
    once = {record.place: row for row, record in enumerate(records) if record.place in places}
    kept = np.array([row for row, record in enumerate(records) if record.place not in places], dtype=np.int64)
    return chosen(records, kept), chosen(records, np.array(list(once.values()), dtype=np.int64))


def held_table(recipe: Recipe) -> DataTable:
    """What validate.path means: read as the pictures to learn from are, but for what is theirs alone."""
    table = recipe.validate_
    held = {"path": table.path, "prompt": table.prompt, "repeats": 1, "max_samples": 0, "format": "auto"}
    held |= {"revision": "", "config": ""}
    first = next((each for each in recipe.data if each.group == "instance"), recipe.data[0])
    return first.model_copy(update=held)


def class_pictures(recipe: Recipe) -> Sequence[Record]:
    """The user's own pictures of the class, from tables with group = "class" and subsets with is_reg."""
    tables = [table for table in recipe.data if table.group == "class" or table.path.lower().endswith(".toml")]
    found = of_group(joined(_read(table, recipe) for table in tables), "class")
    if found and (recipe.prior.path or recipe.prior.kind == "teacher"):
        what = "prior.path names" if recipe.prior.path else 'prior.kind = "teacher" needs no'
        raise RecipeError(
            f"{what} pictures of the class, and the data has {len(found)} of them too",
            todo='leave one of the two out: [prior], or the tables with group = "class" (is_reg in kohya\'s file)',
        )
    return found


def held_places(recipe: Recipe, places: Sequence[Place], progress: Progress = quiet) -> set[Place]:
    """The pictures of the share that is held out: those that show the same are all on one side."""
    share = recipe.validate_.holdout
    count, why = round(share * len(places)), ""
    held: set[Place] = set()
    if 0 < count < len(places):
        kept = store(recipe) if recipe.cache.latents or recipe.cache.text else None
        alike = near_duplicates(places, kept, late(progress))
        groups: dict[int, list[Place]] = {}
        for place, group in zip(places, alike, strict=True):
            groups.setdefault(group, []).append(place)
        for at in permutation(recipe.seed, "holdout", 0, len(places)):
            same = groups.pop(alike[at], [])
            held |= set(same) if len(held) + len(same) <= count else set()
        count, why = len(held), ", since those that show the same stay together"
    if not held:
        raise _holds_out(share, len(places), count, why)
    return held


def _holds_out(share: float, pictures: int, count: int, why: str = "") -> RecipeError:
    return RecipeError(
        f"validate.holdout = {share:g} of {pictures} pictures holds out {count}{why}",
        todo="hold out at least one and keep at least one, or name a folder with validate.path",
    )


def store(recipe: Recipe) -> Store:
    """Where encoded pictures and captions are kept."""
    return Store(cache_folder(recipe))


def cache_folder(recipe: Recipe) -> Path:
    return Path(recipe.cache.path) if recipe.cache.path else default_folder()


def index_folder(recipe: Recipe) -> Path | None:
    """Where indexes of shards are kept, unless nothing is to be."""
    return cache_folder(recipe) if recipe.cache.latents or recipe.cache.text else None


def late(progress: Progress) -> Progress:
    """`progress`, told of nothing that is over in a moment."""
    begun = time.monotonic()

    def told(what: str, done: int, total: int) -> None:
        if time.monotonic() - begun > PATIENCE_SECONDS:
            progress(what, done, total)

    return told


def _read(table: DataTable, recipe: Recipe) -> Sequence[Record]:
    if table.group == "class" and table.prompt is None and recipe.prior.prompt:
        table = table.model_copy(update={"prompt": recipe.prior.prompt})
    return read(table, seed=recipe.seed, cache=index_folder(recipe))


def _check_out(recipe: Recipe) -> None:
    out = Path(recipe.out).expanduser().resolve()
    for folder in [folder for table in recipe.data for folder in folders(table)]:
        if Path(folder).expanduser().resolve() in (out, *out.parents):
            raise RecipeError(
                f"out = {recipe.out} lies in the pictures' folder {folder}, which gesso never writes to",
                todo="choose another folder with --out",
            )

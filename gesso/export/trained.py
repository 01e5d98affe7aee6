"""What an export says of the run that it is from: its recipe, how far it was, its pictures, and what it is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gesso import checkpoint, recipe
from gesso.errors import StorageError
from gesso.formats import lora
from gesso.schema import Recipe

LOCK = "data.lock.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, or one of its checkpoints. `recipe` has its steps counted out, up to where the weights are from."""

    folder: Path
    recipe: Recipe
    step: int
    """Optimiser steps behind the weights; 0 where the run has left no checkpoint that says so."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Its pictures, as data.lock.json lists them."""
    averaged: bool = False
    """Whether these are a checkpoint's own weights, where the run's result will be, or is, an average of many."""


def read(source: str) -> Run | None:
    """The run that a path means; None where it means something else.

    StorageError for a checkpoint that is not as it was written, and for a list of pictures that is none.
    """
    place = Path(source).expanduser()
    place = place.parent if place.name == lora.FILE and place.is_file() else place
    at = place.name.startswith("checkpoint-")
    folder = place.resolve().parent if at else place
    if not all((folder / name).is_file() for name in ("recipe.toml", "effective.json")):
        return None
    if at:
        problems = checkpoint.verify(place)
        if problems:
            raise StorageError(
                f"this checkpoint is damaged: {problems[0]}", where=str(place), todo="export another one of the run"
            )
    own = recipe.load(folder / "recipe.toml", []).recipe
    step = _step(place) if at else max(map(_step, folder.glob("checkpoint-*")), default=0)
    if step:
        own = own.model_copy(update={"train": own.train.model_copy(update={"steps": step, "epochs": None})})
    averaged = at and (place / "ema.safetensors").is_file()
    return Run(folder=folder, recipe=own, step=step, rows=_rows(folder / LOCK), averaged=averaged)


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else 0


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["pictures"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"the list of the run's pictures cannot be read: {error}", where=str(path)) from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise StorageError("this is no list of a run's pictures", where=str(path))
    return found

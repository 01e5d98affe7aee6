"""Seconds a step: from earlier runs like this one on this machine, or from a few steps that are really taken."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from gesso.errors import StorageError
from gesso.job import Job
from gesso.loop import split
from gesso.rates import rates
from gesso.schema import Recipe
from gesso.settings import courses
from gesso.trackers import jsonl

ALIKE = (
    "engine", "model.base", "model.train", "adapter.kind", "train.batch", "train.micro_batch", "train.resolution",
    "train.buckets", "train.precision", "train.gradient_checkpointing", "train.device", "train.caption_chunks",
    "optim.name", "objective.dream", "prior.prompt", "prior.kind", "torch.threads", "torch.compile",
    "torch.channels_last", "mindspore.compile",
)  # fmt: skip
"""What two recipes must have in common for a step of one to take as long as one of the other, nearly."""
LEAST = 5
"""Steps that a run must have taken to tell; its first one, which is slower, is left out."""
STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds a step, the median of `steps` of them, and where that is known from."""

    seconds: float
    steps: int
    source: str


def earlier(recipe: Recipe) -> Pace | None:
    """The pace of the newest run beside `recipe.out`, or in it, that did the same on this machine; None without one."""
    out = Path(recipe.out).expanduser()
    folders = [folder for folder in (out, *_children(out.parent)) if (folder / "events.jsonl").is_file()]
    newest = sorted(dict.fromkeys(folders), key=lambda folder: (folder / "events.jsonl").stat().st_mtime, reverse=True)
    return next((pace for folder in newest if (pace := _of(folder, recipe)) is not None), None)


def _children(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []


def _of(folder: Path, recipe: Recipe) -> Pace | None:
    wanted = recipe.model_dump(mode="json", by_alias=True)
    known, machine = _json(folder / "effective.json"), _json(folder / "environment.json")
    same = all(_value(known, key) == _at(wanted, key) for key in ALIKE)
    if not same or machine.get("platform") != platform.platform():
        return None
    try:
        events = jsonl.current(jsonl.read(folder / "events.jsonl"))
    except StorageError:
        return None  # another run's record is no reason to stop this check
    took = [float(e["seconds"]) for e in events if e["event"] == "stepped" and e.get("seconds")][1:]
    if len(took) < LEAST:
        return None
    return Pace(seconds=median(took), steps=len(took), source=f"the run {folder} on {machine.get('device', 'it')}")


def _value(effective: Mapping[str, Any], key: str) -> Any:
    found = effective.get(key)
    return found.get("value") if isinstance(found, dict) else None


def _at(recipe: Mapping[str, Any], key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = found[part]
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def taken(job: Job, records: Any) -> Pace:
    """The pace of STEPS steps that are taken now, after a first one; nothing is written, and nothing kept.

    `records` are the pictures to learn from; as many of them as these steps need are encoded.
    """
    recipe = job.recipe
    uncached = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"latents": False, "text": False})})
    job = replace(job, recipe=uncached)
    job.load()
    learning = list(records[: recipe.train.batch * (STEPS + 1)])
    if recipe.prior.prompt:  # any pictures take as long as those of the class, which may have to be drawn first
        learning += [replace(record, group="class") for record in learning]
    dataset = job.dataset(learning)
    dataset.prepare(lambda what, done, total: None)
    job.attach()
    batches, seconds = job.batches(dataset), []
    for step in range(STEPS + 1):
        pieces = batches.step(step)
        parts = [part for piece in pieces for part in split(*piece, recipe.train.micro_batch)]
        began = time.perf_counter()
        job.engine.step(parts, lr=rates(courses(recipe), step), ema_decay=0.0, key=step).read()
        seconds.append(time.perf_counter() - began)
    return Pace(seconds=median(seconds[1:]), steps=STEPS, source=f"{STEPS} steps taken just now on {job.engine.device}")

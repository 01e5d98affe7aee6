"""From a recipe to a finished run: the one place that joins everything, in the order in which it happens."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from gesso import __version__, hub, loop, models, prior, settings, words
from gesso.checkpoint import Checkpoint, Checkpoints, compatible
from gesso.data import many
from gesso.data.buckets import Buckets, lines
from gesso.data.captions import written
from gesso.data.record import Record
from gesso.data.records import joined, readers
from gesso.data.sizes import size
from gesso.engines.engine import Engine
from gesso.errors import Exit, RecipeError
from gesso.events import Event, Finished, Paused, Warned
from gesso.families import find
from gesso.forecast import room
from gesso.formats import pipeline
from gesso.gathering import class_pictures, pictures
from gesso.job import Job, create_engine, make_objective, side
from gesso.listeners import Listeners, check_track
from gesso.models import ModelSource
from gesso.recipe import Loaded, save
from gesso.report import page, shown
from gesso.results import Results
from gesso.schema import Recipe
from gesso.stop import Stop
from gesso.storage import RunLock, probe, sweep, write_json
from gesso.trackers.console import Console

Extra = Callable[[Path, Listeners], Sequence[page.Section]]
"""Sections of the caller's own for the report of a finished run (the demo's verdict)."""


def train(loaded: Loaded, *, dry_run: bool = False, extra: Extra | None = None, checkpoint: Path | None = None) -> int:
    """Carry out a recipe, or go on with it where it stopped, or from a `checkpoint`. Returns the process exit code."""
    recipe = loaded.recipe
    out = Path(recipe.out)
    check_track(recipe.track)
    if recipe.hub.push:
        hub.check(recipe.hub.push)

    # The data is read first: whatever is wrong with it is said before anything heavy is loaded.
    with closing(Console(recipe.track.console)) as console:
        learning, holding = pictures(recipe, console.progress)
        recipe = settings.settled(recipe, len(learning))
        source = models.whole(models.chosen(recipe.model, console.progress))
    family = find(source.pipeline)
    settings.fits(recipe, family)
    settings.can_draw(recipe, str(source.config("scheduler").get("_class_name", "")))
    words.check_used(settings.tokens(recipe), chain([recipe.prior.prompt], _texts(learning)))
    prior.check(recipe.prior, _texts(learning))
    source = models.with_vae(source, recipe.model.vae)
    objective = make_objective(recipe, source)
    begin = Checkpoints(out).chosen(checkpoint) if checkpoint else None
    buckets = settings.buckets(recipe, side(recipe, source, family))
    pipeline.check(source.folder, out)
    if dry_run:
        print(outline(recipe, source, learning, holding, buckets))
        return Exit.DONE

    probe(out)
    if recipe.hub.push:
        hub.make(recipe.hub.push, public=not recipe.hub.private)  # better refused now than after the run
    with (
        RunLock(out),
        models.composed(source) as base,
        Stop() as stop,
        Listeners(out, recipe.track, stop, recipe.as_toml()) as listeners,
    ):
        engine = create_engine(recipe)
        job = Job(recipe=recipe, out=out, source=base, family=family, objective=objective, engine=engine)
        last = carry_out(loaded, job, learning, holding, listeners, stop, begin)
        told = extra(out, listeners) if extra and isinstance(last, Finished) else ()
        report = page.write(out, extra=told, pictures=shown.packed(learning))
        listeners.say(f"report: {report}")
        if recipe.hub.push and isinstance(last, Finished):
            listeners.say(f"on the Hub: {hub.push_run(out, recipe.hub, last.files)}")
    if isinstance(last, Paused):
        listeners.say(f"stopped at step {last.step} of {recipe.train.steps} ({last.reason}); start it again to go on")
        return Exit.STOPPED
    return Exit.DONE


def carry_out(
    loaded: Loaded,
    job: Job,
    learning: Sequence[Record],
    holding: Sequence[Record],
    listeners: Listeners,
    stop: Stop,
    begin: Checkpoint | None = None,
) -> Event:
    """The run itself, in a folder that is locked, from `begin` or the newest checkpoint; returns its last event."""
    recipe, out, engine = job.recipe, job.out, job.engine

    # Whether this folder holds a run already, and whether it can go on under this recipe.
    swept = sweep(out)
    checkpoints = Checkpoints(out, recipe.save.keep)
    newest, skipped = (begin, []) if begin else checkpoints.newest()
    if newest is None:
        save(loaded, out)
    else:
        check(newest, job.fingerprint(), recipe.train.steps)
    going = newest is None or newest.step < recipe.train.steps
    short = room.warned(job, learning) if going else []  # better now than at the first checkpoint

    # The model, and what the pictures and captions look like to it.
    job.load()
    of_class = job.class_records(learning, listeners.progress)
    if changes := models.scheduler_changes(recipe.objective):
        # Only what has been trained can be drawn so: the class pictures above are the base's as it is.
        job.load(changes)
    dataset, prepared = job.encode(joined([learning, of_class]), listeners.progress)
    lock = dataset.lock([Path(table.path) for table in recipe.data])
    fingerprint = {**job.fingerprint(), "data": lock["fingerprint"]}

    # What will be trained, and from where: the beginning, or the checkpoint.
    trainable = job.attach()
    validation, held = job.held_out(holding, listeners.progress)  # its captions are read with the new words
    results = Results(
        out=out, source=job.source, recipe=recipe, engine=engine, fingerprint=fingerprint, pictures=len(learning)
    )
    start, warnings = 0, [*swept, *skipped, *short, *prepared.notes, *held.notes, *job.notes(dataset, learning)]
    if newest is not None:
        warnings += check(newest, fingerprint, recipe.train.steps)
        results.load(newest)
        start = newest.step
        warnings += checkpoints.leave(start)
        save(loaded, out)  # not before it is sure that the recipe is this run's
    write_json(out / "data.lock.json", lock)
    write_json(out / "environment.json", environment(engine))

    # The run, told to whoever listens.
    started = job.started(dataset, prepared, trainable, start)
    plan = job.plan(dataset, validation, started, results, partial(results.save, checkpoints), stop)
    for message in warnings:
        listeners.handle(Warned(step=start, message=message))
    if start == recipe.train.steps:
        listeners.say(f"complete at step {start} already; a larger train.steps extends it, another --out begins anew")
    last: Event = started
    for last in loop.train(plan):
        listeners.handle(last)
    return last


def check(checkpoint: Checkpoint, fingerprint: Mapping[str, object], steps: int) -> list[str]:
    """What the user should know of going on from `checkpoint`; RecipeError where it is another run's, or past the end.

    A `fingerprint` without "data" leaves the data out of it.
    """
    if checkpoint.step > steps:
        raise RecipeError(
            f"this run is at step {checkpoint.step} already, and train.steps is {steps}",
            where=str(checkpoint.folder.parent),
            todo=f"set train.steps to {checkpoint.step} or more, or start a new run with another --out",
        )
    before = {key: value for key, value in checkpoint.state["recipe"].items() if key != "data" or "data" in fingerprint}
    warnings, refusals = compatible(before, fingerprint)
    if refusals:
        raise RecipeError(
            "this folder holds a run that differs:\n  " + "\n  ".join(refusals),
            where=str(checkpoint.folder.parent),
            todo="start a new run with another --out",
        )
    return warnings


def outline(
    recipe: Recipe,
    source: ModelSource,
    learning: Sequence[Record],
    holding: Sequence[Record],
    buckets: Buckets | None = None,
) -> str:
    """What would be done, for --dry-run."""
    held = f", {len(holding)} held out" if holding else ""
    steps, batch = recipe.train.steps, recipe.train.batch
    return "\n".join(
        [
            f"model     {source.name} ({source.pipeline})",
            f"learns    {settings.what(recipe)}",
            f"pictures  {_counted(learning)}{held}",
            *(f"class     {line}" for line in _of_class(recipe)),
            *(f"captions  {count} from {reader}" for reader, count in readers(joined([learning, holding])).items()),
            *(f"buckets   {line}" for line in _bucketed(buckets, learning, batch)),
            f"steps     {steps} of {batch} pictures: {_passes(learning, steps * batch)}",
            f"result    {recipe.out}",
            *([f"upload    {recipe.hub.push}"] if recipe.hub.push else []),
        ]
    )


def _counted(learning: Sequence[Record]) -> str:
    """How many pictures there are, and what their repeats make of them; of very many, the rows of an epoch alone."""
    rows = len(learning)
    different = len({record.place for record in learning}) if rows < many.MANY else rows
    return str(rows) if different == rows else f"{different}, with repeats {rows} an epoch"


def _passes(learning: Sequence[Record], shown: int) -> str:
    epochs = f"{shown / len(learning):.1f}"
    return f"{epochs} epochs" if "repeats" in _counted(learning) else f"each picture is seen {epochs} times"


def _bucketed(buckets: Buckets | None, learning: Sequence[Record], batch: int) -> list[str]:
    """How many pictures are trained at what size, from their headers."""
    if buckets is None:
        return []
    return lines(many.table(learning, buckets, cache(size), batch))


def _texts(records: Sequence[Record]) -> Iterator[str]:
    """All that captions are made of, to look for words in."""
    return (text for record in records for text in written(record.captions, record.style))


def _of_class(recipe: Recipe) -> list[str]:
    """Where the class comes from."""
    prior = recipe.prior
    if own := class_pictures(recipe):
        return [f"{len(own)} pictures of your own"]
    if not prior.prompt:
        return []
    if prior.kind == "teacher":
        return [f'"{prior.prompt}", held to the base model\'s own answers']
    own_first = f", those of {prior.path} first" if prior.path else ""
    return [f'{prior.pictures} pictures of "{prior.prompt}"{own_first}; what is not there is drawn with the base model']


def environment(engine: Engine) -> dict[str, Any]:
    """What the run's numbers may depend on besides the recipe."""
    libraries = ("torch", "diffusers", "transformers", "peft", "mindspore", "mindone", "safetensors", "numpy", "pillow")
    found: dict[str, str] = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "gesso": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        "libraries": found,
    }

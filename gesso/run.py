"""From a recipe to a finished run: the one place that joins everything, in the order in which it happens."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gesso import __version__, loop, models
from gesso.checkpoint import Checkpoints, compatible
from gesso.data.record import Record
from gesso.engines.engine import Engine
from gesso.errors import Exit, RecipeError
from gesso.events import Event, Finished, Paused, Warned
from gesso.families import find
from gesso.formats import pipeline
from gesso.job import Job, create_engine, make_objective, pictures
from gesso.listeners import Listeners
from gesso.models import ModelSource
from gesso.recipe import Loaded, save
from gesso.report import page
from gesso.results import Results
from gesso.schema import Recipe
from gesso.stop import Stop
from gesso.storage import RunLock, probe, sweep

Extra = Callable[[Path], Sequence[page.Section]]
"""Sections of the caller's own for the report of a finished run (the demo's verdict)."""


def train(loaded: Loaded, *, dry_run: bool = False, extra: Extra | None = None) -> int:
    """Carry out a recipe, or go on with it where it stopped. Returns the process exit code."""
    recipe = loaded.recipe
    out = Path(recipe.out)

    # The data is read first: whatever is wrong with it is said before anything heavy is loaded.
    learning, holding = pictures(recipe)
    source = models.whole(models.resolve(recipe.model.base, recipe.model.revision))
    family = find(source.pipeline)
    objective = make_objective(recipe, source)
    if dry_run:
        print(outline(recipe, source, learning, holding))
        return Exit.DONE

    pipeline.check(source.folder, out)
    probe(out)
    with RunLock(out), Stop() as stop, Listeners(out, recipe.track) as listeners:
        # The model, and what the pictures and captions look like to it.
        swept = sweep(out)
        save(loaded, out)
        engine = create_engine(recipe)
        job = Job(recipe=recipe, out=out, source=source, family=family, objective=objective, engine=engine)
        parts = () if recipe.adapter.kind != "none" else recipe.model.train
        engine.load(source.folder, family, parts=parts)
        of_class = job.class_pictures(listeners.progress)
        if changes := models.scheduler_changes(recipe.objective):
            # Only what has been trained can be drawn so: the class pictures above are the base's as it is.
            engine.load(source.folder, family, parts=parts, scheduler=changes)
        dataset, prepared = job.encode([*learning, *of_class], listeners.progress)
        validation = job.held_out(holding, listeners.progress)

        # What will be trained, and from where: the beginning, or the newest checkpoint.
        trainable = engine.attach(job.adapter, job.optim)
        results = Results(
            out=out,
            source=source,
            recipe=recipe,
            engine=engine,
            identity=job.identity(dataset),
            pictures=len(learning),
        )
        checkpoints = Checkpoints(out, recipe.save.keep)
        start, warnings = resume(checkpoints, results)
        write_json(out / "data.lock.json", dataset.lock([Path(table.path) for table in recipe.data]))
        write_json(out / "environment.json", environment(engine))

        # The run.
        started = job.started(dataset, prepared, trainable, start)
        plan = job.plan(dataset, validation, started, results, partial(results.save, checkpoints), stop)
        for message in [*swept, *warnings, *prepared.notes, *job.notes(dataset, learning)]:
            listeners.handle(Warned(step=start, message=message))
        last: Event | None = None
        for last in loop.train(plan):
            listeners.handle(last)
        report = page.write(out, extra=extra(out) if extra and isinstance(last, Finished) else ())
        listeners.say(f"report: {report}")
    if isinstance(last, Paused):
        listeners.say(f"stopped at step {last.step} of {recipe.train.steps} ({last.reason}); start it again to go on")
        return Exit.STOPPED
    return Exit.DONE


def resume(checkpoints: Checkpoints, results: Results) -> tuple[int, list[str]]:
    """Load the newest checkpoint that verifies; the step it was made at (0: none) and what the user should know."""
    found, skipped = checkpoints.newest()
    if found is None:
        return 0, skipped
    warnings, refusals = compatible(found.state["recipe"], results.fingerprint)
    if refusals:
        raise RecipeError(
            "this folder holds a run that differs:\n  " + "\n  ".join(refusals),
            where=str(checkpoints.out),
            todo="start a new run with another --out, or put the values back",
        )
    results.load(found)
    return found.step, [*skipped, *warnings]


def outline(recipe: Recipe, source: ModelSource, learning: list[Record], holding: list[Record]) -> str:
    """What would be done, for --dry-run."""
    held = f", {len(holding)} held out" if holding else ""
    steps, batch = recipe.train.steps, recipe.train.batch
    return "\n".join(
        [
            f"model     {source.name} ({source.pipeline})",
            f"learns    {recipe.adapter.kind if recipe.adapter.kind != 'none' else ' + '.join(recipe.model.train)}",
            f"pictures  {len(learning)}{held}",
            f"steps     {steps} of {batch} pictures: each picture is seen {steps * batch / len(learning):.1f} times",
            f"result    {recipe.out}",
        ]
    )


def environment(engine: Engine) -> dict[str, Any]:
    """What the run's numbers may depend on besides the recipe."""
    libraries = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")
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


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

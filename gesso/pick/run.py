"""`gesso pick`: each checkpoint of a run is measured, one is chosen, and the run's page says which and why.

RUN/pick.json    what was measured and chosen, which the run's page shows
RUN/pick/        what was drawn for it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gesso import models, settings
from gesso.checkpoint import Checkpoint, Checkpoints, compatible
from gesso.data.images import fingerprint
from gesso.data.record import Record
from gesso.errors import DataError, NumbersError, RecipeError, StorageError
from gesso.families import find
from gesso.gathering import pictures
from gesso.job import Job, create_engine, make_objective
from gesso.pick import choice, file
from gesso.pick.choice import Measured, choose
from gesso.pick.evidence import PICTURES, SHOWN, Questions, questions
from gesso.pick.reasons import Reasons, reasons
from gesso.recipe import load
from gesso.report import page, shown
from gesso.report.cells import spread
from gesso.results import Results
from gesso.schema import Recipe
from gesso.storage import RunLock, sweep

LOCK = "data.lock.json"
Progress = Callable[[str, int, int], None]


def pick(run: Path, *, drawn: int, progress: Progress, device: str = "") -> Reasons:
    """Measure the base and every checkpoint of a run, choose one, and show it on the run's page.

    `drawn` pictures are drawn with each. RecipeError where the folder holds no run, no checkpoint, or the base is not
    the run's any more; DataError where its pictures are not there any more; NumbersError where the base itself gives
    no finite numbers; LockedError while the run is going on.
    """
    if not (run / "recipe.toml").is_file():
        raise _no_run(run)
    recipe = load(run).recipe
    with RunLock(run):
        notes = sweep(run)
        checkpoints, damaged = Checkpoints(run).whole()
        if not checkpoints:
            what = "no checkpoint of this run is whole" if damaged else "this run has no checkpoint yet"
            raise RecipeError("; ".join([what, *damaged]), where=str(run), todo="train it first")
        learning, holding = pictures(recipe, progress)
        recipe = settings.settled(recipe, len(learning))
        if device:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": device})})
        source = models.with_vae(models.whole(models.chosen(recipe.model, progress)), recipe.model.vae)
        with models.composed(source) as base:
            job = _job(recipe, run, base)
            asked, measured, told = _measured(job, checkpoints, learning, holding, drawn, progress)
        notes += [*damaged, *told]
        found = reasons(choose(measured[0], measured[1:]), asked.real, notes)
        file.write(run, found, measured)
        page.write(run, pictures=shown.packed(learning))
    return found


def _no_run(folder: Path) -> RecipeError:
    todo = "name the folder of a run, its `out`"
    if (folder.absolute().parent / "recipe.toml").is_file():
        todo = f"name the run that it is of: gesso pick {folder.parent}"
    return RecipeError("this is no run of gesso", where=str(folder), todo=todo)


def _job(recipe: Recipe, run: Path, source: models.ModelSource) -> Job:
    return Job(
        recipe=recipe,
        out=run,
        source=source,
        family=find(source.pipeline),
        objective=make_objective(recipe, source),
        engine=create_engine(recipe),
    )


def _measured(
    job: Job,
    checkpoints: Sequence[Checkpoint],
    learning: Sequence[Record],
    holding: Sequence[Record],
    drawn: int,
    progress: Progress,
) -> tuple[Questions, list[Measured], list[str]]:
    """What was asked, the answers of the base and of each checkpoint, and what there is to doubt of them."""
    _same_base(job, checkpoints[-1])
    job.load(models.scheduler_changes(job.recipe.objective))
    job.attach(keep_base=True)
    notes = _same_pictures(job, learning, holding)
    asked = questions(job, learning, holding, drawn, progress)
    results = Results(out=job.out, source=job.source, recipe=job.recipe, engine=job.engine, fingerprint={})
    found = [asked.measure(0, asked.base, progress)]
    if not choice.finite(found[0]):
        raise NumbersError(
            "the base itself gives numbers that are not finite, so that nothing can be held against it",
            where=str(job.source.folder),
            todo="set train.precision to fp32 in the run's recipe.toml; if it is already, fetch the base again",
        )
    for checkpoint in checkpoints:
        try:
            results.load(checkpoint)
        except StorageError as error:  # its bytes are those that were written: it was no better then
            notes.append(f"checkpoint-{checkpoint.step} is left out: {error.what}")
            continue
        found.append(asked.measure(checkpoint.step, file.identity(checkpoint.folder), progress))
    return asked, found, [*notes, *asked.notes]


def _same_base(job: Job, checkpoint: Checkpoint) -> None:
    """RecipeError where the base model is not the one that the run has trained."""
    now = {name: value for name, value in job.fingerprint().items() if name.startswith("base.")}
    then = {name: value for name, value in checkpoint.state["recipe"].items() if name.startswith("base.")}
    _, refusals = compatible(then, now)
    if refusals:
        raise RecipeError(
            "the base is not the model that this run has trained:\n  " + "\n  ".join(refusals),
            where=str(job.out),
            todo="put the base back that it was trained on",
        )


def _same_pictures(job: Job, learning: Sequence[Record], holding: Sequence[Record]) -> list[str]:
    """DataError where what the recipe now reads is not what the run has learned from: it would be held against that.

    A share that is held out must not have been learned from, as it would be where the pictures are others than then. Of
    pictures in a folder of their own, a sentence tells it.
    """
    path = job.out / LOCK
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        known = {str(row["sha256"]) for row in [*said["pictures"], *said.get("indexes", ())]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it cannot be read what this run has learned from: {error}"
        raise DataError(what, where=str(path), todo="start the run again, which writes it anew") from error
    held, again = spread(holding, PICTURES), 0
    if "indexes" in said:  # of packed pictures the list names their indexes alone
        now = job.dataset(learning).lock([])
        same = {str(row["sha256"]) for row in [*now["pictures"], *now.get("indexes", ())]} <= known
    else:
        same = all(fingerprint(record.place) in known for record in spread(learning, SHOWN))
        again = sum(fingerprint(record.place) in known for record in held)
    if not same or (again and job.recipe.validate_.holdout):
        raise DataError(
            "these are not the pictures that the run has learned from; data.lock.json lists those",
            where=str(job.out),
            todo="put them back where the run's recipe names them",
        )
    what = "held-out pictures were learned from as well, which makes learning by heart look like learning"
    return [f"{again} of {len(held)} {what}"] if again else []

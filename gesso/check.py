"""Everything that can be said of a run before it starts: what is wrong with its data, and what it will take.

Nothing is changed, nothing is written, and what is wrong is all named at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gesso import gathering, hub, models, settings, words
from gesso.data import captions
from gesso.data.buckets import Bucket, table
from gesso.data.examine.everything import Examined, Progress, examine
from gesso.data.examine.finding import Finding, Level, ordered
from gesso.data.record import Record
from gesso.engines.engine import Engine
from gesso.errors import Exit, GessoError
from gesso.families import find
from gesso.forecast.whole import Base, Told, foretell
from gesso.job import create_engine, make_objective, side
from gesso.listeners import check_track
from gesso.report.check import Content
from gesso.schema import DataTable, Recipe


@dataclass(slots=True, kw_only=True)
class Check:
    """What was found, and what was not looked into because something else stood in the way."""

    recipe: Recipe
    examined: Examined = field(default_factory=Examined)
    findings: list[Finding] = field(default_factory=list)
    learning: Sequence[Record] = ()
    held: int = 0
    buckets: tuple[Bucket, ...] = ()
    told: Told = field(default_factory=Told)
    """The forecast."""

    @property
    def exit(self) -> Exit:
        return Exit.DATA if any(each.level == "error" for each in self.findings) else Exit.DONE

    def wrong(self, error: GessoError) -> None:
        """Something that would stop the run, as a finding."""
        what = str(error.what)
        if not any(each.what == what for each in self.findings):
            self.findings.append(Finding(level="error", kind="plan", where=error.where, what=what, todo=error.todo))


def check(recipe: Recipe, *, timed: bool = False, progress: Progress = lambda what, done, total: None) -> Check:
    """Look at everything. `timed` takes a few real steps to measure how long one is."""
    found = Check(recipe=recipe)
    model = _model(found)
    engine = _engine(found, model) if model else None
    found.examined = examine(
        list(_sources(recipe)),
        seed=recipe.seed,
        side=(model.side, model.side) if model else None,
        shape=model.shape if model else None,
        new_words=[token.name for token in recipe.tokens],
        count=engine.token_counts if engine else None,
        progress=progress,
    )
    found.findings += found.examined.findings
    _told(found)
    _records(found)
    if model and found.learning:
        _recipe(found, model)
        _forecast(found, model, engine if timed else None)
    found.findings = ordered(found.findings)
    return found


def _sources(recipe: Recipe) -> list[tuple[str, DataTable]]:
    found = [("data", each) for each in recipe.data]
    if recipe.validate_.path and recipe.data:
        found.append(("validate", gathering.held_table(recipe)))
    if recipe.prior.path:
        found.append(("prior", DataTable(path=recipe.prior.path, prompt=recipe.prior.prompt)))
    return found


def _model(found: Check) -> Base | None:
    recipe = found.recipe
    try:
        source = models.here(recipe.model.base, recipe.model.revision)
        if source is None:
            found.findings.append(
                Finding(
                    level="note",
                    kind="plan",
                    where=recipe.model.base,
                    what="the model is not on this machine yet: neither tokens nor disk, memory and time are told",
                    todo="`gesso train` fetches it; `gesso check` fetches nothing",
                )
            )
            return None
        source = models.with_vae(models.whole(source), recipe.model.vae)
        family = find(source.pipeline)
        settings.fits(recipe, family)
        pixels = side(recipe, source, family)
        return Base(source=source, family=family, side=pixels, buckets=settings.buckets(recipe, pixels))
    except GessoError as error:
        found.wrong(error)
        return None


def _engine(found: Check, model: Base) -> Engine | None:
    """The engine with the model's files named; of these only the tokenizer is read, unless steps are taken."""
    try:
        engine = create_engine(found.recipe)
        with models.composed(model.source) as source:
            engine.load(source.folder, model.family, chunks=found.recipe.train.caption_chunks)
            engine.token_counts(["a"])  # while the folder is there
    except GessoError as error:
        found.wrong(error)
        return None
    return engine


def _told(found: Check) -> None:
    """Logins that the run will need; no host is asked."""
    try:
        check_track(found.recipe.track)
        if found.recipe.hub.push:
            hub.check(found.recipe.hub.push)
    except GessoError as error:
        found.wrong(error)


def _records(found: Check) -> None:
    """The pictures to learn from: as the run takes them, or, where it would stop, those that it could take."""
    if found.exit == Exit.DONE:
        try:
            found.learning, held = gathering.pictures(found.recipe)
            found.held = len(held)
            return
        except GessoError as error:
            found.wrong(error)
    usable = found.examined.records.get("data", [])
    found.learning = [each for each in usable if each.place in found.examined.seen and each.group == "instance"]
    found.held = len(found.examined.records.get("validate", []))


def _recipe(found: Check, model: Base) -> None:
    """The run's own questions at its start, which need the data."""
    recipe = found.recipe
    try:
        recipe = found.recipe = settings.settled(recipe, len(found.learning))
        make_objective(recipe, model.source)
        said = {text for record in found.learning for text in captions.written(record.captions, record.style)}
        words.check_used(settings.tokens(recipe), [*sorted(said), recipe.prior.prompt])
    except GessoError as error:
        found.wrong(error)
    if 0 < len(found.learning) < recipe.train.batch:
        found.findings.append(
            Finding(
                level="warning",
                kind="plan",
                where="train.batch",
                what=f"a step sees {recipe.train.batch} pictures of {len(found.learning)}: some are in it twice",
                todo=f"set train.batch to {len(found.learning)} or less, or add pictures",
            )
        )


def _forecast(found: Check, model: Base, engine: Engine | None) -> None:
    """Sizes of pictures, disk, memory and time. Steps are taken only where nothing stands in their way."""
    seen = found.examined.seen
    if model.buckets:
        rows = [record.place for record in found.learning if record.place in seen]
        wholes = {place: (each.width, each.height) for place, each in seen.items()}
        found.buckets = table(model.buckets, rows, wholes, found.recipe.train.batch)
    try:
        found.told = foretell(
            found.recipe, model, found.learning, seen, engine=engine if found.exit == Exit.DONE else None
        )
    except GessoError as error:
        found.wrong(error)
        return
    if room := found.told.room:
        level: Level = "error" if room.certain else "warning"
        found.findings.append(Finding(level=level, kind="plan", where=room.where, what=room.what, todo=room.todo))


# ---------------------------------------------------------------- told


def facts(found: Check) -> list[tuple[str, str]]:
    """What will be trained, for people."""
    recipe, rows = found.recipe, len(found.learning)
    pictures = len({record.place for record in found.learning})
    readers = Counter(record.reader for record in {record.place: record for record in found.learning}.values())
    told = [
        ("Pictures", f"{pictures}" + (f", {rows} rows an epoch" if rows != pictures else "")),
        *([("Held out", f"{found.held}")] if found.held else []),
        *(("Captions", f"{count} from {reader}") for reader, count in readers.items() if reader),
        ("Learns", settings.what(recipe)),
        ("Batch", f"{recipe.train.batch}"),
    ]
    if rows and recipe.train.epochs is None:
        steps, batch = recipe.train.steps, recipe.train.batch
        told += [
            ("An epoch", f"{rows / batch:.6g} steps"),
            ("The run", f"{steps} steps, {steps * batch / rows:.4g} epochs"),
        ]
    return told


def content(found: Check, name: str) -> Content:
    """The page's content."""
    counts = Counter(each.level for each in found.findings)
    usable = len({record.place for record in found.learning})
    pictures = f"{usable} picture{'s' * (usable != 1)}"
    if counts["error"]:
        problems = f"{counts['error']} problem{'s' * (counts['error'] > 1)}"
        verdict = f"Training would not start: {problems} to mend first."
    elif counts["warning"]:
        things = f"{counts['warning']} thing{'s' * (counts['warning'] > 1)}"
        verdict = f"{pictures} can be trained on. {things[0].upper() + things[1:]} to look at first."
    else:
        verdict = f"{pictures} can be trained on, and nothing is wrong with them."
    sheet = {record.place: record.captions[0] if record.captions else "" for record in found.learning}
    return Content(
        name=name,
        verdict=verdict,
        good=not counts["error"],
        findings=found.findings,
        facts=facts(found),
        buckets=found.buckets,
        forecast=found.told.items,
        sheet=list(sheet.items()),
        pictures=len(sheet),
    )

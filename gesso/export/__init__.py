"""`gesso export`: what was trained, in a form that others load; reloaded by its reader and compared before it is there.

All is made in a hidden folder beside the target, checked there, and only then put in place.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gesso import hub, models
from gesso.errors import DataError, RecipeError
from gesso.export.check import verified
from gesso.export.trained import Run, read
from gesso.families import find
from gesso.formats import (
    adapter,
    card,
    contents,
    embeddings,
    export_card,
    exporting,
    kohya_facts,
    merge,
    parts,
    png,
    stored,
    usage,
)
from gesso.formats.exporting import FORMS, WHOLE, Trained
from gesso.formats.modelspec import About
from gesso.models import ModelSource
from gesso.storage import amount, fsync_tree, guard, hidden

SUFFIXES = {"single": ".safetensors", "mindspore": ".ckpt", "lora": ".safetensors", "kohya": ".safetensors"}
LORA_FILE = models.LORA


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export. `out` with a form's suffix is one file, anything else a folder; neither may be there yet."""

    source: str
    form: str
    out: Path
    base: str = ""
    """The model under an adapter that is named by itself."""
    dtype: str = ""
    """fp32, fp16 or bf16 for the weights of a whole model; "" for the base's own."""
    title: str = ""
    author: str = ""
    description: str = ""
    date: str = ""
    tags: bool = False
    """Whether kohya's form says how often each part of a caption occurs."""
    checksum: bool = False
    reader: str = "lycoris"
    """Of a DoRA in kohya's form: one of exporting.READERS."""
    push: str = ""
    public: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A request that can be carried out."""

    request: Request
    trained: Trained
    adapter: Path | None
    run: Run | None
    base: str
    """The base model's name for other people: a Hub id, or ""."""
    licence: Mapping[str, str]

    @property
    def single(self) -> bool:
        """Whether `out` is one file."""
        return SUFFIXES.get(self.request.form, "-") == self.request.out.suffix

    @property
    def main(self) -> str:
        """The file's or folder's name inside what is made."""
        form, out = self.request.form, self.request.out
        if self.single:
            return out.name
        if form == "lora":
            return LORA_FILE
        return f"{exporting.file_name(self.trained.about.title)}{SUFFIXES[form]}" if form in SUFFIXES else "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an export left: its files, how far the reader's answers are from gesso's own, and what is to be said."""

    files: Sequence[Path]
    apart: float
    notes: Sequence[str] = field(default_factory=list)
    page: str = ""


def export(request: Request) -> Done:
    """Carry it out. RecipeError for what cannot be; StorageError or NumbersError where the file does not give the same.

    Nothing is left in any of these cases.
    """
    if request.push:
        hub.check(request.push)
    with prepared(request) as ready:
        stage = hidden(request.out)
        try:
            with guard(request.out, what="the export"):
                files = _made(ready, stage)
            code = merge.TYPES.get(request.dtype, "")
            apart, notes = verified(ready.trained, request.form, files, ready.adapter, code)
            with guard(request.out, what="the export"):
                notes = [*notes, *_carded(ready, stage, files, apart)]
                fsync_tree(stage)
                placed = _placed(ready, stage)
        finally:
            with suppress(OSError):
                shutil.rmtree(stage)
        page = _pushed(ready, placed) if request.push else ""
    if ready.run and ready.run.averaged:
        notes = [*notes, "these are the checkpoint's own weights: the run's result averages them, export that for it"]
    return Done(files=placed, apart=apart, notes=notes, page=page)


@contextmanager
def prepared(request: Request) -> Iterator[Ready]:
    """All that can be found out without loading the model; RecipeError for what is wrong."""
    _check(request)
    source, path = _source(request)
    run = read(request.source)
    if request.tags and not (run and run.rows):
        raise RecipeError("--tags counts the captions of a run, and this is none", where=request.source)
    with ExitStack() as opened:
        source = opened.enter_context(models.composed(source))
        licence = card.licence_of(source.folder / "README.md")
        trained = _trained(request, source, path, run, licence)
        form, family = request.form, trained.about.family
        if request.reader != "lycoris" and trained.kind != "dora":
            raise RecipeError(f"--reader {request.reader} is for a DoRA; all readers compute a {trained.kind} alike")
        reason = exporting.why_not(trained.kind, family, form, words=bool(trained.words))
        if reason:
            raise RecipeError(f"{request.source} cannot be written as {form}: {reason}")
        name = _base(request, run)
        yield Ready(
            request=request,
            trained=trained,
            adapter=path,
            run=run,
            base=name if usage.is_hub_id(name) else "",
            licence=licence,
        )


def outline(request: Request) -> list[str]:
    """What would be done, for --dry-run."""
    with prepared(request) as ready:
        trained = ready.trained
        what = {"none": "a whole model", "ti": "learned words"}.get(trained.kind, f"a {trained.kind}")
        found = [f"source    {request.source}: {what} of {trained.about.family}"]
        found += [f"base      {ready.base}"] if ready.base else []
        found.append(f"form      {request.form}{f' in {request.dtype}' if request.dtype else ''}")
        found.append(f"target    {request.out if ready.single else request.out / ready.main}")
        return [*found, *([f"push      {request.push}"] if request.push else [])]


def _check(request: Request) -> None:
    form, out = request.form, request.out
    if form not in FORMS:
        raise RecipeError(f"there is no form {form}", todo=f"use one of {', '.join(FORMS)}")
    wanted = SUFFIXES.get(form)
    beside = [out.with_suffix(".md")] if wanted and out.suffix == wanted else []
    there = next((path for path in (out, *beside) if os.path.lexists(path)), None)
    if there is not None:
        raise RecipeError("this is there already", where=str(there), todo="choose another name with --out")
    if out.suffix in set(SUFFIXES.values()) and out.suffix != wanted:
        todo = f"end it with {wanted}, or name a folder" if wanted else "name a folder"
        raise RecipeError(f"the form {form} is no {out.suffix} file", where=str(out), todo=todo)
    if request.dtype and (form not in WHOLE or request.dtype not in merge.TYPES):
        raise RecipeError(f"--dtype {request.dtype} is for whole models, and one of {', '.join(merge.TYPES)}")
    if request.reader not in exporting.READERS or (request.reader != "lycoris" and form != "kohya"):
        raise RecipeError(f"--reader {request.reader} is for kohya, and one of {', '.join(exporting.READERS)}")
    for flag, given, fits, where in (
        ("--checksum", request.checksum, form == "mindspore", "a MindSpore checkpoint"),
        ("--tags", request.tags, form == "kohya", "kohya's form"),
        ("--public", request.public, bool(request.push), "an upload with --push"),
    ):
        if given and not fits:
            raise RecipeError(f"{flag} is for {where}", todo="leave it out")
    if request.date and not re.fullmatch(r"\d{4}-\d\d-\d\d(T[\d:.+Z-]+)?", request.date):
        raise RecipeError(f'the date "{request.date}" is not like 2026-01-31', where="--date")


def _source(request: Request) -> tuple[ModelSource, Path | None]:
    """The model, and the file or folder of the adapter on top of it."""
    path = Path(request.source).expanduser()
    if not request.base:
        if path.is_file() and path.name != LORA_FILE:
            raise RecipeError(
                "this is one file, and a base is needed beside it, or a folder in its place",
                where=str(path),
                todo="name an adapter's base with --base; `gesso convert` turns a whole model's file into a folder",
            )
        source = models.resolve(request.source)
        return source, source.lora
    place = adapter.place(path) if path.is_dir() else path if path.is_file() else None
    words = tuple(embeddings.files(path)) if path.is_dir() else ()
    if place is None and not words:
        raise RecipeError("this holds no adapter and no learned words", where=str(path), todo="leave --base out")
    source = models.whole(models.resolve(request.base))
    return replace(source, lora=place, words=words), place


def _trained(
    request: Request, source: ModelSource, path: Path | None, run: Run | None, licence: Mapping[str, str]
) -> Trained:
    arrays, config = adapter.read(path) if path else ({}, None)
    words = embeddings.read(source.words)
    kind = config.kind if config else "ti" if words else "none"
    about = _about(request, source, run, licence)
    return Trained(
        kind=kind,
        folder=source.folder,
        about=about,
        arrays={name.replace(".text_model.", ".", 1): array for name, array in arrays.items()},
        config=_plain(config, arrays) if config else None,
        words=words,
        scheduler=source.scheduler,
        reader=request.reader,
    )


def _about(request: Request, source: ModelSource, run: Run | None, licence: Mapping[str, str]) -> About:
    noise = {**source.config("scheduler"), **source.scheduler}
    known = find(source.pipeline)
    own = run.recipe if run else None
    side = (own.train.resolution if own else None) or known.side(
        source.config(known.denoiser), source.config(known.autoencoder)
    )
    # Of places the last part alone: the rest is nobody's business.
    title = request.title or Path(request.source).expanduser().resolve().name
    base = _base(request, run)
    return About(
        family=parts.family_of(source.folder),
        title=title.removesuffix(".safetensors"),
        prediction=str(noise.get("prediction_type") or "epsilon"),
        side=side,
        trigger=kohya_facts.phrases(own)[1] if own else "",
        base=base if usage.is_hub_id(base) else Path(base).expanduser().name,
        author=request.author,
        description=request.description,
        licence=licence.get("license_name") or licence.get("license", ""),
        date=request.date,
        training=kohya_facts.facts(own, run.rows, side=side, tags=request.tags) if run and own else {},
    )


def _base(request: Request, run: Run | None) -> str:
    """The base model as the user named it; of a model that was not trained here, the model itself."""
    return request.base or (run.recipe.model.base if run else request.source)


def _plain(config: Any, arrays: Mapping[str, Any]) -> Any:
    """The configuration by names without `text_model.`."""
    sizes = {name.replace(".text_model.", ".", 1): size for name, size in adapter.sizes(arrays, config).items()}
    return type(config).of(sizes, kind=config.kind, factor=config.factor)


def _made(ready: Ready, stage: Path) -> list[Path]:
    code = merge.TYPES.get(ready.request.dtype, "")
    files = exporting.write(
        ready.trained, ready.request.form, stage / ready.main, code=code, checksum=ready.request.checksum
    )
    for file in files:
        if file.suffix == ".safetensors":
            contents.require_finite(stored.open_safetensors(file), "export", file)
    return files


def _carded(ready: Ready, stage: Path, files: Sequence[Path], apart: float) -> list[str]:
    """The model card beside the files, and the run's newest pictures without what they say of this machine.

    Gives a sentence for each picture that is damaged, and so not there.
    """
    shown, missed = [], []
    run = ready.run
    samples = [run.folder / name for name in card.newest_samples(run.folder, run.step or None)] if run else []
    for number, sample in enumerate(samples):
        name = f"{ready.request.out.stem}-{number}.png" if ready.single else f"images/{number}.png"
        try:
            png.copy(sample, stage / name, model=ready.trained.about.title)
        except DataError as error:
            missed.append(f"left out of the card: {error}")
            continue
        shown.append((str(png.read(stage / name).get("prompt", "")), name))
    names = [file.relative_to(stage).as_posix() for file in files]
    written = export_card.text(
        ready.trained,
        ready.request.form,
        [] if names == ["."] else names,
        recipe=run.recipe if run else None,
        base=ready.base,
        licence=ready.licence,
        shown=shown,
        apart=apart,
    )
    name = f"{ready.request.out.stem}.md" if ready.single else "README.md"
    (stage / name).write_text(written, encoding="utf-8")
    return missed


def _placed(ready: Ready, stage: Path) -> list[Path]:
    out = ready.request.out
    if not ready.single:
        os.rename(stage, out)
        return sorted(path for path in out.rglob("*") if path.is_file())
    made = sorted(stage.iterdir())
    taken = next((each for each in made if os.path.lexists(out.parent / each.name)), None)
    if taken is not None:
        raise RecipeError("this is there already", where=str(out.parent / taken.name), todo="choose another --out")
    for each in made:
        os.rename(each, out.parent / each.name)
    return [out.parent / each.name for each in made]


def _pushed(ready: Ready, placed: Sequence[Path]) -> str:
    request = ready.request
    message = f"{request.form} export of {ready.trained.about.title}"
    if not ready.single:
        return hub.push(request.out, request.push, public=request.public, message=message)
    with tempfile.TemporaryDirectory(prefix="gesso-") as name:
        for path in placed:
            shutil.copyfile(path, Path(name) / ("README.md" if path.suffix == ".md" else path.name))
        return hub.push(Path(name), request.push, public=request.public, message=message)


def said(done: Done, request: Request) -> list[str]:
    """What was done, a sentence each."""
    size = sum(path.stat().st_size for path in done.files)
    found = [f"{request.out}: {request.form}, {len(done.files)} files, {amount(size)}"]
    found.append(f"read again by its reader, it answers as trained to {done.apart:.1g}")
    return [*found, *done.notes, *([f"on the Hub: {done.page}"] if done.page else [])]

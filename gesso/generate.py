"""Drawing pictures with a model, a run or a checkpoint, outside of training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gesso import additions, averages, gallery, models, samplers
from gesso.arrays import Float32, Picture
from gesso.data import images
from gesso.engines.engine import Engine, Optim, SampleRequest, Token
from gesso.errors import DataError, RecipeError, StorageError
from gesso.families import find
from gesso.formats import embeddings, png
from gesso.models import ModelSource
from gesso.objective.own import from_scheduler
from gesso.schema import Recipe, Train
from gesso.storage import FullError, RunLock, probe

DENOISE = 0.6
"""Share of the noise that goes over a picture to begin with."""
MOST = 1_000_000
"""Pictures that one command draws at most: more of them would take gigabytes only to be listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to draw: every prompt with every seed. Sizes in pixels; None is the model's own."""

    model: str
    prompts: tuple[str, ...]
    out: Path
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    guidance: float = 7.5
    negative: str = ""
    width: int | None = None
    height: int | None = None
    scheduler: str = ""
    """Any name that gesso/samplers.py knows; "" for the model's own."""
    image: Path | None = None
    """A picture to begin with, instead of noise alone."""
    denoise: float | None = None
    """Share of the noise that is laid over the picture and taken off again; 0.6 when left out."""
    batch: int = 1
    """Pictures drawn at once. More than one is quicker on a GPU, and changes their last digits."""
    resume: bool = False
    """Leave out what is in `out` already, by what its pictures say of themselves."""
    by_prompt: bool = False
    """OUT/<prompt>/image_0.png, … instead of OUT/00000.png, …"""
    loras: tuple[Path, ...] = ()
    strengths: tuple[float, ...] = ()
    """One for all LoRAs, or one each, the model's own LoRA first; 1.0 when empty."""
    words: tuple[Path, ...] = ()
    """Files of learned words, besides the model's own."""
    like: str = ""
    """For a model in one file: the folder or Hub id that lends it configurations, tokenizer and scheduler."""
    vae: str = ""
    """Another autoencoder for the model and its refiner."""
    refiner: str = ""
    handover: float | None = None
    """Share of the noise that the model removes before the refiner goes on; None to let the refiner draw anew."""
    engine: Literal["torch", "mindspore"] = "torch"
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that can be carried out, as far as can be seen without loading the model."""

    request: Request
    source: ModelSource
    refiner: ModelSource | None
    loras: tuple[Path, ...]
    strengths: tuple[float, ...]
    words: Mapping[str, Float32]
    """The vectors of learned words, by `tokens.<encoder>.<word>`."""
    asked: tuple[SampleRequest, ...]
    wanted: tuple[SampleRequest, ...]
    """Those of `asked` that are still to be drawn."""
    files: tuple[Path, ...]
    """Where each of the wanted pictures goes."""
    model_hash: str = ""
    """Of the weights, words and picture that decide what is drawn, so that others are not taken for them."""

    @property
    def notes(self) -> dict[str, Any]:
        """What each picture says of how it was made, besides its own request."""
        found: dict[str, Any] = {"model": _public(self.source.name), "model_hash": self.model_hash}
        if self.loras:
            names = ([self.source.name] if self.source.lora else []) + list(map(str, self.request.loras))
            found |= {"loras": list(map(_public, names)), "strengths": list(self.strengths)}
        own: dict[str, Any] = {name: getattr(self.request, name) for name in ("vae", "refiner", "handover")}
        own["image"] = self.request.image.name if self.request.image else ""
        found |= {name: _public(value) if isinstance(value, str) else value for name, value in own.items() if value}
        if self.request.words:
            found["words"] = [_public(str(path)) for path in self.request.words]
        return found


def generate(request: Request) -> list[Path]:
    """Draw and write OUT/00000.png, 00001.png, … after the numbers already there; the files, prompts outermost.

    Each PNG says how it was made. RecipeError for what cannot be drawn and StorageError for what cannot be written,
    both before anything heavy is loaded.
    """
    return list(drawn(prepare(request)))


def drawn(ready: Prepared) -> Iterator[Path]:
    """Draw and write what was prepared; each file once it is there. The folder is locked until the last one is."""
    request = ready.request
    if not ready.wanted:
        return
    try:
        probe(request.out, "the folder of the pictures")
        with RunLock(request.out), ExitStack() as opened:
            ready = _placed(_hashed(ready))  # another command may have drawn since
            gallery.sweep(request.out, ready.files)
            yield from _written(ready, _loaded(ready, opened)) if ready.wanted else ()
    except FullError as error:
        todo = "free some space, then start the same command again with --resume: what was drawn is there"
        raise StorageError(error.what, where=error.where, todo=todo) from error


def _loaded(ready: Prepared, opened: ExitStack) -> Engine:
    """An engine with the model and all that goes on top of it."""
    source = opened.enter_context(models.composed(ready.source))
    engine = _engine(ready.request)
    engine.load(source.folder, find(source.pipeline), scheduler=source.scheduler)
    if ready.refiner:
        engine.add_refiner(opened.enter_context(models.composed(ready.refiner)).folder, ready.request.handover)
    if ready.words:
        counts = embeddings.vectors(ready.words)
        engine.attach(None, Optim(), [Token(name=word, vectors=count) for word, count in counts.items()])
        engine.write({"weights": ready.words})
    for path, strength in zip(ready.loras, ready.strengths, strict=True):
        engine.add_lora(path, strength)
    return engine


def _written(ready: Prepared, engine: Engine) -> Iterator[Path]:
    """Each picture is on the disk before the next is begun, so that it is there when the rest is stopped."""
    notes, size = ready.notes, ready.request.batch
    for start in range(0, len(ready.wanted), size):
        chunk = ready.wanted[start : start + size]
        pictures = engine.sample(chunk, batch=size)
        for file, each, picture in zip(ready.files[start : start + size], chunk, pictures, strict=True):
            png.write(file, picture, {**each.as_dict(), **notes})
            yield file
        while engine.notes:
            print(f"note: {engine.notes.pop(0)}", file=sys.stderr)


def prepare(request: Request) -> Prepared:
    """All that can be found out before the model is loaded, with nothing written; RecipeError for what is wrong."""
    check(request)
    source = models.with_vae(averages.of(models.resolve(request.model, like=request.like)), request.vae)
    refiner = additions.refiner(request.refiner, source, request.vae) if request.refiner else None
    loras = [*([source.lora] if source.lora else []), *(additions.lora_file(path) for path in request.loras)]
    strengths = additions.strengths(request.strengths, len(loras))
    family = find(source.pipeline)
    encoders = (each for pair in family.encoders for each in pair)
    for part in (family.denoiser, family.autoencoder, *encoders, "scheduler"):
        models.wanted(source.folder / "model_index.json", part)
    start = _start(request)
    asked = _requests(request, source, start)
    scheduler = {**source.config("scheduler"), **source.scheduler}
    noise = from_scheduler(source.config("scheduler"))
    if request.steps > noise.timesteps:
        raise RecipeError(f"--steps is {request.steps}, but the model has {noise.timesteps} noise levels")
    if request.scheduler:
        samplers.read(
            request.scheduler, str(scheduler.get("_class_name", "")), str(scheduler.get("prediction_type", ""))
        )
    for path, strength in zip(loras, strengths, strict=True):
        additions.fits(path, source, strength)
    words = additions.words((*source.words, *request.words), source)
    return _placed(
        Prepared(
            request=request,
            source=source,
            refiner=refiner,
            loras=tuple(loras),
            strengths=tuple(strengths),
            words=words,
            asked=tuple(asked),
            wanted=tuple(asked),
            files=(),
        )
    )


def _hashed(ready: Prepared) -> Prepared:
    if ready.model_hash:
        return ready
    sources = [ready.source, *([ready.refiner] if ready.refiner else [])]
    files = (*ready.loras, *ready.source.words, *ready.request.words)
    return replace(ready, model_hash=additions.digest(sources, files, ready.asked[0].image))


def _placed(ready: Prepared) -> Prepared:
    """With a file for each picture that is left to draw."""
    request = ready.request
    folders = gallery.folders(request.prompts) if request.by_prompt else None
    if request.resume:
        ready = _hashed(ready)
        there = gallery.found(request.out, ready.asked, ready.notes)
        left = tuple(each for each, file in zip(ready.asked, there, strict=True) if file is None)
        ready = replace(ready, wanted=left)
    return replace(ready, files=tuple(gallery.places(request.out, ready.wanted, folders)))


def outline(ready: Prepared) -> str:
    """What would be drawn and where, for --dry-run."""
    if not ready.wanted:
        return f"nothing: all of it is in {ready.request.out.as_posix()} already"
    one, count = ready.wanted[0], len(ready.wanted)
    how = f"{one.width} by {one.height} pixels, {one.steps} steps, guidance {one.guidance:g}"
    lines = [f"model     {ready.source.name} ({ready.source.pipeline})"]
    lines += [f"vae       {ready.request.vae}"] if ready.request.vae else []
    lines += [f"refiner   {ready.refiner.name}"] if ready.refiner else []
    loras = [*([ready.source.name] if ready.source.lora else []), *ready.request.loras]
    lines += [f"LoRA      {name}, strength {s:g}" for name, s in zip(loras, ready.strengths, strict=True)]
    lines += [f"word      {word}" for word in embeddings.vectors(ready.words)]
    lines += [f"pictures  {count}: {how}" + (f", {one.scheduler}" if one.scheduler else "")]
    lines += [
        f"{file.as_posix()}  seed {each.seed}  {each.prompt}"
        for file, each in zip(ready.files, ready.wanted, strict=True)
    ]
    return "\n".join(lines)


def check(request: Request) -> None:
    """RecipeError for what can be seen to be wrong without the model; all of it at once."""
    wrong: list[str] = []
    if not request.prompts:
        wrong.append("there is no prompt: give --prompt or --prompts-file")
    if not all(prompt.strip() for prompt in request.prompts):
        wrong.append("a prompt is empty: say what to draw")
    if len(request.prompts) * len(request.seeds) > MOST:
        wrong.append(
            f"{len(request.prompts) * len(request.seeds):,} pictures are more than the {MOST:,} of one command"
        )
    for prompt in (*request.prompts, request.negative):
        if not _is_text(prompt):
            wrong.append(f"the prompt {prompt[:40]!a} is no text in UTF-8; write it anew")
    for name, side in (("width", request.width), ("height", request.height)):
        if side is not None and (side < 8 or side % 8):
            low = max(side // 8 * 8, 8)
            wrong.append(f"--{name} is {side}, must be divisible by 8; the nearest are {low} and {low + 8}")
    if request.batch < 1:
        wrong.append(f"--batch is {request.batch}, must be at least 1")
    for name, asked in (("image", request.image), ("refiner", request.refiner)):
        if asked and request.engine == "mindspore":
            wrong.append(f"--{name} is for --engine torch alone: the MindSpore engine draws from noise, in one stage")
    if request.denoise is not None and request.image is None:
        wrong.append("--denoise has no effect without --image")
    if request.denoise is not None and not 0 < request.denoise <= 1:
        wrong.append(f"--denoise is {request.denoise:g}, must be above 0 and at most 1")
    if request.image and request.handover is not None:
        wrong.append("--image and --handover do not go together; leave --handover out, and the refiner draws last")
    taken = int(request.steps * (DENOISE if request.denoise is None else request.denoise))
    if request.image and request.steps >= 1 and taken < 1:
        wrong.append(f"of {request.steps} --steps, --denoise leaves none; ask for more of one of them")
    if request.steps < 1:
        wrong.append(f"--steps is {request.steps}, must be at least 1")
    if not 0 <= request.guidance < float("inf"):
        wrong.append(f"--guidance is {request.guidance:g}, must be at least 0")
    if request.negative and request.guidance <= 1:
        wrong.append(f"--negative has no effect at --guidance {request.guidance:g}; it takes more than 1")
    if any(not 0 <= seed < 2**63 for seed in request.seeds):
        wrong.append("--seed must be a whole number from 0 to 2^63 − 1")
    if len(set(request.seeds)) < len(request.seeds):
        wrong.append("the same --seed is given twice, which would draw the same picture")
    if any(not isfinite(strength) for strength in request.strengths):
        wrong.append("--strength must be a number, such as 0.8")
    if request.handover is not None and not request.refiner:
        wrong.append("--handover has no effect without --refiner")
    if request.handover is not None and not 0 < request.handover < 1:
        wrong.append(f"--handover is {request.handover:g}, must be above 0 and below 1")
    place = next((each for each in (request.out, *request.out.parents) if os.path.lexists(each)), request.out)
    if os.path.lexists(place) and not place.is_dir():
        within = "" if place == request.out else f"lies in {place}, which "
        wrong.append(f"--out {request.out} {within}is a file, must be a folder")
    if len(wrong) == 1:
        raise RecipeError(wrong[0])
    if wrong:
        raise RecipeError(f"{len(wrong)} things cannot be carried out:" + "".join(f"\n  {each}" for each in wrong))


def _requests(request: Request, source: ModelSource, start: Picture | None) -> list[SampleRequest]:
    family = find(source.pipeline)
    side = family.side(source.config(family.denoiser), source.config(family.autoencoder))
    if start is not None:
        height, width = start.shape[:2]
        size = {"width": width, "height": height, "image": start, "denoise": request.denoise or DENOISE}
    else:
        size = {"width": request.width or side, "height": request.height or side}
    return [
        SampleRequest(
            prompt=prompt,
            seed=seed,
            negative=request.negative,
            steps=request.steps,
            guidance=request.guidance,
            scheduler=request.scheduler,
            **size,
        )
        for prompt in request.prompts
        for seed in request.seeds
    ]


def _start(request: Request) -> Picture | None:
    """The picture to begin with: in the size that is asked for, or its own, rounded down to what models draw."""
    if request.image is None:
        return None
    try:
        picture = images.decode(images.contents(request.image), request.image)
    except DataError as error:
        raise RecipeError(f"--image: {error.what}", where=error.where, todo=error.todo) from error
    width = request.width or max(picture.width // 8 * 8, 8)
    height = request.height or max(picture.height // 8 * 8, 8)
    fitted = images.apply(picture, images.Transform(side_width=width, side_height=height))
    start: Picture = np.rint((fitted.transpose(1, 2, 0) + 1.0) * 127.5).astype(np.uint8)
    return start


def _engine(request: Request) -> Engine:
    from gesso.job import create_engine

    train = Train.model_validate({"device": request.device, "precision": request.precision})
    return create_engine(Recipe(engine=request.engine, train=train))


def _public(name: str) -> str:
    """A model's name for other people's eyes: of a path elsewhere on this machine only the last part."""
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith("~") else name


def _is_text(prompt: str) -> bool:
    """Whether it can be written down: the bytes of another encoding on a command line cannot."""
    try:
        return b"\0" not in prompt.encode()
    except UnicodeEncodeError:
        return False

"""`gesso caption`: which pictures get a caption, of what model, and what becomes of the answer.

Everything here is decided before or after a model speaks. The models themselves are gesso/engines/torch/captioners.py
and gesso/captioning/tagger.py, behind `Captioner`; gesso/captioning/files.py is where captions are written, and nothing
twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from gesso import models
from gesso.arrays import Picture
from gesso.captioning.files import BESIDE, LISTS, Target, open_target
from gesso.data import captions, images
from gesso.data.captions import Style
from gesso.data.sources import folder as folders
from gesso.data.sources.folder import Folder
from gesso.errors import DataError, RecipeError

WANTED = ("*.json", "*.txt", "*.jinja", "*.safetensors", "model.onnx", "selected_tags.csv")
"""What is taken of a captioner on the Hub."""
OLDER = ("pytorch_model*.bin",)
"""What is taken besides where it has no .safetensors; read as tensors alone (gesso/formats/torch_file.py)."""
TAGGER = "tagger"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What no caption holds, though a model may say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of captioner: its name for people, usual prompt (None: it takes none), longest caption in tokens."""

    name: str
    prompt: str | None
    tokens: int


KINDS = {
    "blip": Kind(name="BLIP", prompt="", tokens=64),
    "blip-2": Kind(name="BLIP-2", prompt="", tokens=64),
    "vision-encoder-decoder": Kind(name="ViT-GPT2", prompt=None, tokens=64),
    "florence2": Kind(name="Florence-2", prompt="<CAPTION>", tokens=256),
    "qwen2_vl": Kind(name="Qwen2-VL", prompt="Describe this image in one sentence.", tokens=256),
    "qwen2_5_vl": Kind(name="Qwen2.5-VL", prompt="Describe this image in one sentence.", tokens=256),
    TAGGER: Kind(name="WD tagger", prompt=None, tokens=0),
}
"""The captioners, by the model_type of their config.json; a tagger is known by its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a model is asked. Zero `beams` and `tokens` are the model's own; temperature 0 takes the likeliest word."""

    prompt: str | None = None
    beams: int = 0
    tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    general: float | None = None
    character: float | None = None
    """From which probability on a tagger's tag counts."""
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be captioned. `out` is where captions are written, None for the pictures' own folder."""

    folder: str
    model: str
    revision: str = ""
    out: Path | None = None
    form: str = "txt"
    batch: int = 4
    limit: int = 0
    """How many pictures at most; 0 for all."""
    words: Style = field(default_factory=Style)
    asked: Asked = field(default_factory=Asked)


class Captioner(Protocol):
    """A model that says what is in pictures; the same picture and settings give the same words."""

    device: str

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The caption of each picture, uint8 [height, width, 3] each, as the model says it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that can be carried out: the model's folder and kind, and the pictures that need a caption."""

    request: Request
    model: Path
    kind: str
    target: Target
    pictures: dict[str, Path]
    kept: int
    """How many pictures have a caption already, which stays."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of it. `failed` holds a sentence on each picture that got no caption."""

    written: int
    kept: int
    failed: tuple[str, ...]
    place: Path
    notes: tuple[str, ...]


Progress = Callable[[str, int, int], None]


def caption(request: Request, progress: Progress) -> Done:
    """Caption what has no caption. `progress` hears of each batch once it is on the disk, and may raise to stop.

    A picture that cannot be read, or of which the model says nothing, is named in the answer and left without.
    """
    folder = _scanned(request)
    with open_target(*_places(request), request.form, settings(request)) as target:
        ready = prepare(request, folder, target)
        failed: list[str] = []
        written = done = 0
        if ready.pictures:
            captioner = create(ready)
            progress("captions", 0, len(ready.pictures))
            for found, problems in _answers(ready, captioner):
                written += target.write(found)
                done += len(found) + len(problems)
                failed += problems
                progress("captions", done, len(ready.pictures))
        target.finish(folder)
    return Done(written=written, kept=ready.kept, failed=tuple(failed), place=target.place, notes=tuple(target.notes))


def outline(request: Request) -> Prepared:
    """What `caption` would do, with nothing loaded and nothing written."""
    folder = _scanned(request)
    with open_target(*_places(request), request.form, settings(request), dry=True) as target:
        return prepare(request, folder, target)


def prepare(request: Request, folder: Folder, target: Target) -> Prepared:
    """The pictures without a caption, in the order of their names, and the model that is to see them."""
    kept = target.existing(folder)
    missing = {target.name(name): path for name, path in folder.pictures.items() if name not in kept}
    # Pictures of one stem have one caption file between them.
    alone = {target.key(name): name for name in reversed(missing)}
    pictures = {name: path for name, path in missing.items() if alone[target.key(name)] == name}
    if request.limit:
        pictures = dict(list(pictures.items())[: request.limit])
    model = resolve(request.model, request.revision)
    kind = kind_of(model)
    asked_of(kind, request.asked, model)
    return Prepared(
        request=request,
        model=model,
        kind=kind,
        target=target,
        pictures=pictures,
        kept=len(folder.pictures) - len(missing),
        notes=tuple(target.notes),
    )


def check(request: Request) -> None:
    """RecipeError for numbers that cannot be, whatever the model is."""
    asked = request.asked
    if request.form not in (*BESIDE, *LISTS):
        raise RecipeError(f'--to is "{request.form}"', todo=f"use one of {', '.join((*BESIDE, *LISTS))}")
    for flag, value, least in (
        ("--batch", request.batch, 1),
        ("--limit", request.limit, 0),
        ("--beams", asked.beams, 0),
        ("--max-tokens", asked.tokens, 0),
    ):
        if value < least:
            raise RecipeError(f"{flag} is {value}, must be at least {least}")
    if not (math.isfinite(asked.temperature) and asked.temperature >= 0):
        raise RecipeError(f"--temperature is {asked.temperature}, must be 0 or above")
    for flag, share in (("--general", asked.general), ("--character", asked.character)):
        if share is not None and not 0 <= share <= 1:
            raise RecipeError(f"{flag} is {share}, must lie between 0 and 1")
    if asked.seed is not None and not asked.temperature:
        raise RecipeError(
            "--seed has no effect: the likeliest words are taken", todo="set --temperature, or leave it out"
        )
    if asked.temperature and asked.beams > 1:
        raise RecipeError("--temperature draws words by lot, and --beams looks for the likeliest", todo="leave one out")


def asked_of(kind: str, asked: Asked, model: Path) -> Asked:
    """What is asked of a model of this kind, with its usual values; RecipeError for what it does not have."""
    facts = KINDS[kind]
    given = {"--prompt": asked.prompt is not None, "--beams": asked.beams, "--max-tokens": asked.tokens,
             "--temperature": asked.temperature, "--general": asked.general is not None,
             "--character": asked.character is not None}  # fmt: skip
    idle = {"--general", "--character"} if kind != TAGGER else set(given) - {"--general", "--character"}
    idle |= {"--prompt"} if facts.prompt is None else set()
    wrong = sorted(flag for flag in idle if given[flag])
    if wrong:
        raise RecipeError(f"{facts.name} takes no {', '.join(wrong)}", where=str(model), todo="leave it out")
    return replace(
        asked,
        prompt=facts.prompt if asked.prompt is None else asked.prompt,
        tokens=asked.tokens or facts.tokens,
        general=0.35 if asked.general is None else asked.general,
        character=0.85 if asked.character is None else asked.character,
    )


def resolve(name: str, revision: str = "") -> Path:
    """The folder of the captioner that `name` means: a folder, or a Hub id, which is fetched once."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not models.looks_like_hub_id(name):
        raise RecipeError(
            f'there is no captioner "{name}"',
            todo='give a folder with a config.json, or a Hub id such as "Salesforce/blip-image-captioning-base"',
        )
    folder = models.from_hub(name, revision, WANTED)
    if any(folder.glob("*.safetensors")) or (folder / "model.onnx").is_file():
        return folder
    return models.from_hub(name, revision, (*WANTED, *OLDER))


def kind_of(model: Path) -> str:
    """Which of KINDS a model folder holds, by its files and its config.json."""
    if (model / "model.onnx").is_file() and (model / "selected_tags.csv").is_file():
        return TAGGER
    kind = str(models.read_json(model / "config.json").get("model_type", ""))
    if kind not in KINDS:
        known = ", ".join(facts.name for facts in KINDS.values())
        raise RecipeError(
            f"this model is of the kind {kind or 'that it does not say'}, which gesso cannot caption with",
            where=str(model),
            todo=f"use one of {known}",
        )
    return kind


def create(ready: Prepared) -> Captioner:
    """The model in memory."""
    asked = asked_of(ready.kind, ready.request.asked, ready.model)
    name = "gesso.captioning.tagger" if ready.kind == TAGGER else "gesso.engines.torch.captioners"
    made: Captioner = import_module(name).create(ready.model, ready.kind, asked)
    return made


def settings(request: Request) -> dict[str, Any]:
    """What decides the captions, for the record of an unfinished list: nothing of it names a place on this machine."""
    path = Path(request.model).expanduser()
    asked = request.asked
    found = {
        "model": path.resolve().name if path.exists() else request.model,
        "revision": request.revision,
        "prompt": asked.prompt,
        "beams": asked.beams,
        "tokens": asked.tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "general": asked.general,
        "character": asked.character,
        "trigger": request.words.trigger,
        "prefix": request.words.prefix,
        "suffix": request.words.suffix,
    }
    return {name: value for name, value in found.items() if value not in ("", 0, None)}


def worded(said: str, words: Style) -> str:
    """A model's answer as a caption: on one line, with the words asked for; "" where it said nothing."""
    line = " ".join(CONTROL.sub(" ", said).split())
    return captions.plain(line, words) if line else ""


def _answers(ready: Prepared, captioner: Captioner) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The captions of each batch by the picture's name, and a sentence on each picture without one.

    The next batch is read from the disk while the model looks at this one.
    """
    names = list(ready.pictures)
    step = ready.request.batch
    batches = [names[at : at + step] for at in range(0, len(names), step)]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, ready.pictures, batches[0])
        for batch in [*batches[1:], []]:
            there, problems = coming.result()
            coming = reader.submit(_read, ready.pictures, batch)
            found: dict[str, str] = {}
            for name, said in zip(there, captioner.caption(list(there.values())) if there else (), strict=True):
                if line := worded(said, ready.request.words):
                    found[name] = line
                else:
                    problems.append(f"{ready.pictures[name]}: the model said nothing")
            yield found, problems


def _read(paths: dict[str, Path], names: Sequence[str]) -> tuple[dict[str, Picture], list[str]]:
    there: dict[str, Picture] = {}
    problems = []
    for name in names:
        try:
            there[name] = images.load(paths[name])
        except DataError as error:
            problems.append(f"{error.where}: {error.what}")
    return there, problems


def _scanned(request: Request) -> Folder:
    """The pictures, of a request that can be."""
    check(request)
    if not Path(request.folder).expanduser().is_dir():
        raise DataError("there is no such folder", where=request.folder, todo="name a folder of pictures")
    folder = folders.scan(request.folder, "caption")
    if not folder.pictures:
        raise DataError("no picture was found in this folder or below it", where=folder.name)
    return folder


def _places(request: Request) -> tuple[Path, Path]:
    """The folder of the pictures, and that of the captions."""
    root = Path(request.folder).expanduser()
    return root, root if request.out is None else request.out.expanduser()

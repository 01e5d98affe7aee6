"""Drawing pictures with a model, a run or a checkpoint, outside of training."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gesso import models
from gesso.engines.engine import Engine, SampleRequest
from gesso.errors import RecipeError
from gesso.families import find
from gesso.formats import png
from gesso.models import LORA, ModelSource
from gesso.schema import Recipe, Train

CHUNK = 4
"""Pictures drawn between two writings, so that those drawn are there when the rest is stopped."""


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
    loras: tuple[Path, ...] = ()
    strengths: tuple[float, ...] = ()
    """One for all LoRAs, or one each, the model's own LoRA first; 1.0 when empty."""
    device: str = "auto"
    precision: str = "auto"


def generate(request: Request) -> list[Path]:
    """Draw and write OUT/00000.png, 00001.png, … after the numbers already there; the files, prompts outermost.

    Each PNG says how it was made. RecipeError for what cannot be drawn, before anything heavy is loaded.
    """
    check(request)
    source = models.resolve(request.model)
    loras = [*([source.lora] if source.lora else []), *(lora_file(path) for path in request.loras)]
    strengths = _strengths(request, len(loras))
    wanted = _requests(request, source)
    notes: dict[str, Any] = {"model": _public(source.name)}
    if loras:
        notes["loras"] = [_public(str(path)) for path in ([source.name] if source.lora else []) + list(request.loras)]
        notes["strengths"] = list(strengths)

    number = next_number(request.out)
    files: list[Path] = []
    with whole(source) as folder:
        engine = _engine(request)
        engine.load(folder, find(source.pipeline), scheduler=source.scheduler)
        for path, strength in zip(loras, strengths, strict=True):
            engine.add_lora(path, strength)
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            for each, picture in zip(chunk, engine.sample(chunk), strict=True):
                files.append(request.out / f"{number + len(files):05d}.png")
                png.write(files[-1], picture, {**asdict(each), **notes})
    return files


def check(request: Request) -> None:
    """RecipeError for what can be seen to be wrong without the model; all of it at once."""
    wrong: list[str] = []
    if not request.prompts:
        wrong.append("there is no prompt: give --prompt or --prompts-file")
    if not all(prompt.strip() for prompt in request.prompts):
        wrong.append("a prompt is empty: say what to draw")
    for name, side in (("width", request.width), ("height", request.height)):
        if side is not None and (side < 8 or side % 8):
            low = max(side // 8 * 8, 8)
            wrong.append(f"--{name} is {side}, must be divisible by 8; the nearest are {low} and {low + 8}")
    if request.steps < 1:
        wrong.append(f"--steps is {request.steps}, must be at least 1")
    if not 0 <= request.guidance < float("inf"):
        wrong.append(f"--guidance is {request.guidance:g}, must be at least 0")
    if any(not 0 <= seed < 2**63 for seed in request.seeds):
        wrong.append("--seed must be a whole number from 0 to 2^63 − 1")
    if len(set(request.seeds)) < len(request.seeds):
        wrong.append("the same --seed is given twice, which would draw the same picture")
    if request.out.exists() and not request.out.is_dir():
        wrong.append(f"--out {request.out} is a file, must be a folder")
    if len(wrong) == 1:
        raise RecipeError(wrong[0])
    if wrong:
        raise RecipeError(f"{len(wrong)} things cannot be carried out:" + "".join(f"\n  {each}" for each in wrong))


def lora_file(path: Path) -> Path:
    """The file of a LoRA that is named by itself, by its run or by its checkpoint."""
    if path.is_dir() and (path / LORA).is_file():
        return path / LORA
    if path.is_file() and path.suffix == ".safetensors":
        return path
    what = "holds no " + LORA if path.is_dir() else "is not a .safetensors file" if path.exists() else "does not exist"
    raise RecipeError(
        f"the LoRA {path} {what}", todo="name a .safetensors file, or the folder of a run that trained a LoRA"
    )


def next_number(out: Path) -> int:
    """One more than the highest number among OUT/00000.png, …; 0 for none."""
    numbers = [int(match[1]) for file in out.glob("*.png") if (match := re.fullmatch(r"(\d{5,})\.png", file.name))]
    return max(numbers, default=-1) + 1


@contextlib.contextmanager
def whole(source: ModelSource) -> Iterator[Path]:
    """The pipeline folder, with a checkpoint's trained parts in place of the base's where the model is a checkpoint."""
    if source.checkpoint is None:
        yield source.folder
        return
    with TemporaryDirectory(prefix="gesso-") as name:
        folder = Path(name)
        for part in source.folder.iterdir():
            trained = source.checkpoint / part.name
            if part.is_dir():
                _link(trained if (trained / "config.json").is_file() else part, folder / part.name)
            else:
                shutil.copyfile(part, folder / part.name)
        yield folder


def _link(part: Path, place: Path) -> None:
    try:
        place.symlink_to(part.resolve(), target_is_directory=True)
    except OSError:  # not every system lets everybody make links
        shutil.copytree(part, place)


def _strengths(request: Request, loras: int) -> Sequence[float]:
    given = request.strengths
    if given and not loras:
        raise RecipeError("--strength has no effect without a LoRA", todo="add --lora FILE, or leave it out")
    if len(given) not in (0, 1, loras):
        raise RecipeError(
            f"{len(given)} --strength are given for {loras} LoRA(s)", todo="give one for all of them, or one for each"
        )
    return given if len(given) == loras else (given or (1.0,)) * loras


def _requests(request: Request, source: ModelSource) -> list[SampleRequest]:
    family = find(source.pipeline)
    side = family.side(source.config(family.denoiser), source.config(family.autoencoder))
    return [
        SampleRequest(
            prompt=prompt,
            seed=seed,
            negative=request.negative,
            width=request.width or side,
            height=request.height or side,
            steps=request.steps,
            guidance=request.guidance,
            scheduler=request.scheduler,
        )
        for prompt in request.prompts
        for seed in request.seeds
    ]


def _engine(request: Request) -> Engine:
    from gesso.job import create_engine

    train = Train.model_validate({"device": request.device, "precision": request.precision})
    return create_engine(Recipe(train=train))


def _public(name: str) -> str:
    """A model's name for other people's eyes: of a path elsewhere on this machine only the last part."""
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith("~") else name

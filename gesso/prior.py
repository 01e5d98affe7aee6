"""Class pictures for prior preservation (Ruiz et al. 2022, arXiv:2208.12242, section 3.2).

The user's own come first; what is missing is drawn with the base model into the run folder, in a folder named by
everything that decides what is drawn: another prompt, seed, size, sampler setting or base draws its own. A picture is
named by its number and its content, and its seed is a function of its number, so an interrupted drawing goes on where
it was; a picture whose content is no longer what its name says is drawn again.

Without class pictures, the class is kept by a teacher: the base model itself (kind "teacher"; the distillation of Li &
Hoiem 2016, arXiv:1606.09282, on the noise that is predicted).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from gesso.arrays import Picture
from gesso.data import images
from gesso.data.record import Record
from gesso.data.sources import read
from gesso.engines.engine import Engine, SampleRequest
from gesso.errors import DataError, RecipeError
from gesso.formats import png
from gesso.keys import generator
from gesso.schema import DataTable, Prior
from gesso.settings import lines

Progress = Callable[[str, int, int], None]
FOLDER = "class"


def records(
    prior: Prior, out: Path, *, seed: int, side: int, base: str, engine: Engine, progress: Progress
) -> list[Record]:
    """`prior.pictures` class pictures as records, drawing those that are missing.

    `side` is in pixels; `base` is the identity of the model that draws.
    """
    own = _own(prior)[: prior.pictures]
    folder = out / FOLDER / settings(prior, seed=seed, side=side, base=base)
    drawn = draw(prior, folder, len(own), seed=seed, side=side, engine=engine, progress=progress)
    made = [
        Record(path=path, captions=(prior.prompt,), group="class", origin="drawn with the base model") for path in drawn
    ]
    return own + made


def check(prior: Prior, captions: Iterable[str]) -> None:
    """RecipeError where the pictures' only caption is the class's prompt: the halves of the loss would fight."""
    if not prior.prompt:
        return
    own = " ".join(prior.prompt.lower().split())
    read = (text for text in (" ".join(caption.lower().split()) for caption in captions) if text)
    # Of millions of captions, as few are read as it takes.
    if next(read, None) == own and all(text == own for text in read):
        raise RecipeError(
            f'prior.prompt is "{prior.prompt}", as is the caption of every picture: what these teach, the class would '
            "take back",
            todo='name your subject in data.prompt, such as "a photo of sks dog", and the class alone in prior.prompt',
        )


def taught(prior: Prior, instances: Sequence[Record]) -> list[Record]:
    """The instance pictures under the class's captions: where the trained model is to answer as it did before.

    Half of what is drawn for them is the class prompt, the rest other captions: the file's, or everyday ones.
    """
    others = [each for each in other_captions(prior) if each != prior.prompt]
    captions = (*(prior.prompt for _ in others), *others) or (prior.prompt,)
    once = {record.place: record for record in instances}
    return [
        Record(
            path=record.path,
            inner=record.inner,
            captions=captions,
            group="class",
            origin="held to the base model's answer",
        )
        for record in once.values()
    ]


def other_captions(prior: Prior) -> list[str]:
    """What has nothing to do with the lesson: the captions of the recipe's file, or everyday ones."""
    path = Path(prior.captions) if prior.captions else Path(str(files("gesso.data") / "everyday.txt"))
    return list(dict.fromkeys(lines(path, "prior.captions")))


def settings(prior: Prior, *, seed: int, side: int, base: str) -> str:
    """Twelve hexadecimal digits that differ whenever the drawn pictures could."""
    decides = [prior.prompt, seed, side, prior.sampling_steps, prior.guidance, base]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def _own(prior: Prior) -> list[Record]:
    if not prior.path:
        return []
    found = read(DataTable(path=prior.path, prompt=prior.prompt), group="class", key="prior")
    return list({record.place: record for record in found}.values())  # each once, whatever its folder's name says


def draw(
    prior: Prior, folder: Path, first: int, *, seed: int, side: int, engine: Engine, progress: Progress
) -> list[Path]:
    """The pictures numbered `first` … `prior.pictures` − 1 in `folder`, in order; those already there are kept.

    They are drawn one by one: `progress` may raise to end the work between two of them.
    """
    wanted = range(first, prior.pictures)
    found = sorted(folder.iterdir()) if wanted and folder.is_dir() else []
    there: dict[int, Path] = {}
    for done, path in enumerate(found, 1):
        if _intact(path):
            there[int(path.name[:5])] = path
        progress("checking class pictures", done, len(found))
    missing = [number for number in wanted if number not in there]
    for done, number in enumerate(missing):
        progress("drawing class pictures", done, len(missing))
        request = _request(prior, number, seed, side)
        (picture,) = engine.sample([request])
        there[number] = folder / f"{number:05d}-{_sha1(picture)}.png"
        png.write(there[number], picture, {"prompt": request.prompt, "seed": request.seed})
    if missing:
        progress("drawing class pictures", len(missing), len(missing))
    return [there[number] for number in wanted]


def _request(prior: Prior, number: int, seed: int, side: int) -> SampleRequest:
    return SampleRequest(
        prompt=prior.prompt,
        seed=int(generator(seed, "class", number).integers(2**31)),
        width=side,
        height=side,
        steps=prior.sampling_steps,
        guidance=prior.guidance,
    )


def _intact(path: Path) -> bool:
    """Whether the file is one of the drawn pictures and holds the pixels that it was named by."""
    if not re.fullmatch(r"\d{5}-[0-9a-f]{40}\.png", path.name):
        return False
    try:
        return _sha1(images.load(path)) == path.stem[6:]
    except DataError:
        return False


def _sha1(picture: Picture) -> str:
    return hashlib.sha1(picture.tobytes()).hexdigest()

"""A first recipe for a folder of pictures: looked at, decided, and explained in its comments."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gesso.data.record import Record
from gesso.data.sizes import size
from gesso.data.sources import read
from gesso.errors import DataError, RecipeError
from gesso.gathering import held_places
from gesso.recipe.files import toml
from gesso.schema import DataTable, Recipe
from gesso.storage import guard, write_bytes

CUT = 0.1
"""Share of a picture that a square crop may cost before another shape is spoken of."""
STAND_IN = "data.prompt"
"""The origin that gesso.data.sources gives a caption which came from the recipe's prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user said. `kind` is "subject", "style", "captioned", or None to be seen from the folder."""

    photos: str
    base: str = "tiny"
    trigger: str = ""
    class_: str = ""
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a kind of run is paced: a batch, and how often each picture is to be seen, within bounds of steps."""

    batch: int
    views: int
    least: int
    most: int

    def steps(self, pictures: int) -> int:
        wanted = self.views * pictures / self.batch
        return int(min(max(wanted, self.least), self.most) + 9) // 10 * 10


PACES = {
    "subject": Pace(batch=2, views=100, least=300, most=1500),
    "style": Pace(batch=4, views=40, least=500, most=3000),
    "captioned": Pace(batch=4, views=20, least=500, most=10000),
}
TINY_PACE = Pace(batch=4, views=160, least=200, most=400)
SEED, CHECKPOINTS = 7, 8
HELD, ENOUGH, MANY = 0.2, 10, 500
"""The share held out; of fewer pictures than ENOUGH all are learned from; more than MANY are not looked at for it."""
LR, TINY_LR = 1e-4, 2e-3
"""Usual learning rates of a LoRA on Stable Diffusion; the embedded base is small and wants a higher one."""


ONE_THREAD = """
[torch]
threads = 1  # on so small a model a second thread costs more than it gives, unless the computer is idle
"""


def write(wish: Wish, out: Path, *, force: bool = False) -> str:
    """Write the recipe for `wish` to `out` and return what to tell the user.

    DataError for a folder that cannot be used; RecipeError for wishes that contradict it and for a file already there.
    """
    photos = Path(wish.photos).expanduser().resolve()
    if not photos.name:
        raise RecipeError(
            f"{wish.photos} is a whole disk, not a folder of pictures", todo="name the folder that holds your pictures"
        )
    if out.exists() and not force and photos.is_dir():  # a folder that is missing matters more
        raise RecipeError(f"{out} is there already", todo="choose another --out, or overwrite it with --force")
    run = f"runs/{photos.name}"
    for place in (out.parent, Path(run)):
        _outside(wish.photos, place)
    records = read(DataTable(path=wish.photos, prompt="stands in"))
    captioned = sum(record.origin != STAND_IN for record in records)
    kind = wish.kind or ("captioned" if captioned == len(records) else "subject")
    _fits(wish, kind, captioned, len(records))
    other = far_from_square(records)
    text = recipe(wish, kind, records, run, other, holds=holds_out(records))
    with guard(out.parent, what=out.name):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, text.encode())
    return _told(wish, kind, captioned, len(records), out, other)


def _outside(photos: str, place: Path) -> None:
    folder = Path(photos).expanduser().resolve()
    if folder == place.resolve() or folder in place.resolve().parents:
        raise RecipeError(
            f"{place} lies in the pictures' folder {photos}, which gesso never writes to",
            todo="start outside of it: "
            f"cd {shlex.quote(os.path.relpath(folder.parent))}; gesso new {shlex.quote(folder.name)}",
        )


def _fits(wish: Wish, kind: str, captioned: int, pictures: int) -> None:
    if kind == "captioned":
        read(DataTable(path=wish.photos))  # names the pictures without a caption
        for flag, value in (("--trigger", wish.trigger), ("--class", wish.class_)):
            if value:
                raise RecipeError(
                    f"{flag} has no effect where every picture has its own caption",
                    todo="leave it out, and use the words of the captions; or name another --kind",
                )
    if kind == "style" and wish.class_:
        raise RecipeError("--class has no effect on a style", todo="leave it out, or use --kind subject")
    if wish.trigger and captioned == pictures:
        raise RecipeError(
            "--trigger has no effect, for every picture has its own caption",
            todo="write the trigger into the captions, or leave it out",
        )


def far_from_square(records: Sequence[Record]) -> int:
    """How many pictures would lose more than CUT of themselves to a square crop, from their headers."""
    found: list[tuple[int, int]] = []
    for place in dict.fromkeys(record.place for record in records):
        with suppress(DataError):  # the run names every broken picture, not the first alone
            found.append(size(place))
    return sum(min(pixels) < (1 - CUT) * max(pixels) for pixels in found)


def prompt(wish: Wish, kind: str) -> str:
    """One caption for all pictures."""
    if kind == "style":
        trigger = wish.trigger or "sks"
        return f"a picture {trigger}" if " style" in f" {trigger}" else f"a picture in the style of {trigger}"
    trigger = wish.trigger or f"sks {wish.class_ or 'thing'}"
    return f"a photo of {trigger}"


def holds_out(records: Sequence[Record]) -> bool:
    """Whether so many pictures, different enough, can spare the share HELD."""
    places = list(dict.fromkeys(record.place for record in records))
    if not ENOUGH <= len(places) <= MANY:
        return len(places) > MANY
    table = {"path": "pictures", "prompt": "stands in"}
    asked = {"seed": SEED, "data": [table], "validate": {"holdout": HELD}, "cache": {"latents": False, "text": False}}
    try:
        return bool(held_places(Recipe.model_validate(asked), places))
    except RecipeError:
        return False  # too many of them show the same


def recipe(wish: Wish, kind: str, records: Sequence[Record], run: str, other: int = 0, *, holds: bool = False) -> str:
    """The recipe as commented TOML; `other` pictures are far from square, and `holds` says that some are held out."""
    tiny = wish.base == "tiny"
    pace, pictures = TINY_PACE if tiny else PACES[kind], len(records)
    steps = pace.steps(pictures)
    alone = any(record.origin == STAND_IN for record in records)
    one = prompt(wish, kind)
    samples = [one, f"{one} on a beach"] if kind == "subject" else [f"a house, {one}", f"a cat, {one}"]
    if not alone:
        samples = list(dict.fromkeys(record.captions[0] for record in records))[:2]
    every = max(steps // 4, 1)
    prior = f"""
[prior]  # pictures of the class, drawn by the base, keep it from turning every {wish.class_} into yours
prompt = {toml(f"a photo of a {wish.class_}")}
pictures = {32 if tiny else min(max(20 * pictures, 50), 200)}
"""
    return f"""\
# Written by `gesso new` for {pictures} picture{"s" if pictures > 1 else ""}, kind {kind}. Use it: gesso train FILE
# Every key is described in docs/recipe.md; paths are relative to the folder where gesso is started.

out = {toml(run)}  # the run folder
seed = {SEED}  # the same seed gives the same run

[model]
base = {toml(wish.base)}  # "tiny", a diffusers folder, or a Hub id

[adapter]
kind = "lora"  # a small file beside the base; "none" trains the base itself
rank = {16 if kind != "captioned" else 32}  # how much it can learn

[[data]]
path = {toml(wish.photos)}
{_prompt_line(one, alone)}
{prior if kind == "subject" and wish.class_ else ""}
[train]
steps = {steps}  # each picture is seen about {round(steps * pace.batch / pictures)} times
batch = {pace.batch}  # pictures a step; short of memory: micro_batch = 1
# resolution = {64 if tiny else 512}  # the model's own when left out
{f"# buckets = true  # {other} of {pictures} pictures not square: it keeps their shape" if other else ""}

[optim]
lr = {toml(TINY_LR if tiny else LR)}
{"schedule = " + toml("cosine") + "  # ends gently" if kind != "subject" else 'schedule = "constant"'}
warmup = {steps // 20}

[sample]  # drawn with fixed seeds, before the first step too, so that the change can be seen
prompts = {toml(samples)}
every = {every}
{_kept(steps, run, holds)}
{ONE_THREAD if tiny else ""}""".replace("\n\n\n", "\n\n")


def _kept(steps: int, run: str, holds: bool) -> str:
    """What there will be to choose a checkpoint by."""
    every = max(steps // CHECKPOINTS, 1)
    held = f"""\
[validate]  # pictures that it does not learn from show when it begins to learn the others by heart
holdout = {HELD}
every = {every}
"""
    if not holds:
        held = """\
# [validate]  # a few more pictures, not to learn from, show when it begins to learn the others by heart
# path = "other-photos"
"""
    return f"""
{held}
[save]
every = {every}
keep = {CHECKPOINTS}  # `gesso pick {run}` says which of them to use"""


def _prompt_line(one: str, alone: bool) -> str:
    if alone:
        return f"prompt = {toml(one)}  # for pictures without a caption of their own"
    return "# captions are read from beside the pictures"


def _told(wish: Wish, kind: str, captioned: int, pictures: int, out: Path, other: int) -> str:
    file = shlex.quote(out.as_posix())
    what = "each with its caption" if captioned == pictures else f'learnt as "{prompt(wish, kind)}"'
    if 0 < captioned < pictures:
        what = f'{captioned} with their own caption, the others as "{prompt(wish, kind)}"'
    lines = [f"{out} is written for {pictures} picture{'s' if pictures > 1 else ''}, {what}."]
    if wish.base == "tiny":
        lines.append('The base is the embedded "tiny", for a first look; --base names a real one.')
    if other:
        lines.append(
            f"{other} of them {'are' if other > 1 else 'is'} not square; train.buckets = true keeps their shape."
        )
    if kind == "subject" and not wish.class_:
        lines.append("With --class (dog, person, vase) other things of its class are kept apart from yours.")
    return "\n".join([*lines, "Next:", f"  gesso train {file} --dry-run", f"  gesso train {file}"])

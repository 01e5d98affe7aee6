"""The tiny world the embedded base model knows: 20 things in 5 classes on 10 grounds, drawn from an emoji font.

The tables, captions and held-out pairs need nothing but this file. Drawing needs NotoColorEmoji.ttf (OFL-1.1;
Debian and Ubuntu: `apt install fonts-noto-color-emoji`), so only whoever re-makes the base model needs the font:
everything a user runs ships as PNG.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gesso.arrays import Picture

FONT = "NotoColorEmoji.ttf"
"""A bare file name: Pillow looks it up in the system's font folders. A full path works too."""
STRIKE = 109
"""The one bitmap size, in pixels, that the font holds; FreeType refuses any other."""
SIZE = 64
"""Width and height of a picture, in pixels."""


@dataclass(frozen=True)
class Glyph:
    """A thing the model can draw: its name, its class word, its character."""

    name: str
    kind: str
    character: str


KNOWN: tuple[Glyph, ...] = (
    Glyph("apple", "fruit", "\N{RED APPLE}"),
    Glyph("banana", "fruit", "\N{BANANA}"),
    Glyph("watermelon", "fruit", "\N{WATERMELON}"),
    Glyph("strawberry", "fruit", "\N{STRAWBERRY}"),
    Glyph("cat", "animal", "\N{CAT FACE}"),
    Glyph("panda", "animal", "\N{PANDA FACE}"),
    Glyph("pig", "animal", "\N{PIG FACE}"),
    Glyph("frog", "animal", "\N{FROG FACE}"),
    Glyph("soccer ball", "toy", "\N{SOCCER BALL}"),
    Glyph("balloon", "toy", "\N{BALLOON}"),
    Glyph("rocket", "toy", "\N{ROCKET}"),
    Glyph("gift", "toy", "\N{WRAPPED PRESENT}"),
    Glyph("sunflower", "plant", "\N{SUNFLOWER}"),
    Glyph("cactus", "plant", "\N{CACTUS}"),
    Glyph("mushroom", "plant", "\N{MUSHROOM}"),
    Glyph("tree", "plant", "\N{DECIDUOUS TREE}"),
    Glyph("burger", "food", "\N{HAMBURGER}"),
    Glyph("pizza", "food", "\N{SLICE OF PIZZA}"),
    Glyph("donut", "food", "\N{DOUGHNUT}"),
    Glyph("cupcake", "food", "\N{CUPCAKE}"),
)
"""What pre-training shows, four to a class, in class order."""

SUBJECTS: tuple[Glyph, ...] = (
    Glyph("teddy bear", "toy", "\N{TEDDY BEAR}"),
    Glyph("robot", "toy", "\N{ROBOT FACE}"),
    Glyph("owl", "animal", "\N{OWL}"),
    Glyph("unicorn", "animal", "\N{UNICORN FACE}"),
    Glyph("kiwifruit", "fruit", "\N{KIWIFRUIT}"),
    Glyph("aubergine", "fruit", "\N{AUBERGINE}"),
    Glyph("tulip", "plant", "\N{TULIP}"),
    Glyph("pretzel", "food", "\N{PRETZEL}"),
)
"""Never seen by the autoencoder, the text encoder or the UNet: what fine-tuning can teach."""

KINDS: tuple[str, ...] = ("fruit", "animal", "toy", "plant", "food")

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "black": (16, 16, 16),
    "red": (214, 36, 40),
    "green": (48, 166, 72),
    "blue": (40, 92, 220),
    "yellow": (250, 220, 50),
    "orange": (248, 136, 24),
    "purple": (124, 48, 172),
    "pink": (250, 156, 204),
    "grey": (132, 132, 138),
}
"""sRGB of the plain grounds, chosen so that a tinted ground is still nearest to its own (least distance 88)."""


@dataclass(frozen=True)
class Pose:
    """Where a glyph lies: width as a part of the picture, degrees counter-clockwise, shift as a part of the picture."""

    scale: float
    degrees: float
    right: float
    down: float

    @staticmethod
    def drawn(rng: np.random.Generator) -> Pose:
        """A natural pose: well inside the picture, a little turned, a little off centre."""
        return Pose(rng.uniform(0.62, 0.80), rng.uniform(-8, 8), rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06))


def glyph(name: str) -> Glyph:
    """The known glyph or held-out subject of that name."""
    return next(one for one in KNOWN + SUBJECTS if one.name == name)


def article(words: str) -> str:
    """`words` after "a" or "an", by sound: an apple, a unicorn."""
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def caption(name: str, ground: str | None = None) -> str:
    """The plain caption, "an apple on a blue background", or without a ground "an apple"."""
    return article(name) if ground is None else f"{article(name)} on {article(ground)} background"


def captions(thing: Glyph, ground: str) -> list[str]:
    """The 20 captions of one picture; one is drawn at random each time, so repetition is weight.

    60 % name the thing and the ground, 25 % only the class (without them "a toy" would mean nothing, and prior
    preservation would have no prior to preserve), 15 % leave the ground out. One in five begins with "a photo of"
    or "a picture of", because people write that.
    """
    full, kind = caption(thing.name, ground), caption(thing.kind, ground)
    bare, bare_kind = caption(thing.name), caption(thing.kind)
    return (
        [full] * 9 + [f"a photo of {full}"] * 2 + [f"a picture of {full}"]
        + [kind] * 3 + [f"a photo of {kind}", bare_kind]
        + [bare] * 2 + [f"a photo of {bare}"]
    )  # fmt: skip


def is_held_out(thing: int, ground: int) -> bool:
    """Whether pre-training never shows KNOWN[thing] on the ground of that number.

    Each ground misses one thing of every class (5 of 20), each thing misses 2 or 3 grounds: 50 pairs of 200. A model
    that draws them has put a thing and a ground together, not remembered a picture.
    """
    return (thing + thing // 4 + ground) % 4 == 0


def pairs(held_out: bool) -> list[tuple[Glyph, str]]:
    """The (thing, ground) pairs that pre-training shows (150), or the ones it never shows (50)."""
    return [
        (thing, ground)
        for t, thing in enumerate(KNOWN)
        for g, ground in enumerate(GROUNDS)
        if is_held_out(t, g) is held_out
    ]


@lru_cache(maxsize=4)
def _font(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, STRIKE)


@lru_cache(maxsize=2048)
def cutout(character: str, font: str = FONT) -> Image.Image:
    """The glyph alone, RGBA, cropped to what is drawn and padded to a square; of size (0, 0) if the font lacks it."""
    room = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(room).text((STRIKE // 4, STRIKE // 4), character, font=_font(font), embedded_color=True)
    box = room.getbbox()
    if box is None:
        return Image.new("RGBA", (0, 0))
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side))
    square.paste(room.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square


def draw(character: str, ground: tuple[int, int, int], pose: Pose, *, size: int = SIZE, font: str = FONT) -> Picture:
    """One picture, uint8 [size, size, 3]: the glyph on a plain ground.

    Drawn at twice the size and box-averaged down, which is what a camera does: soft edges without ringing.
    """
    side = 2 * size
    width = round(pose.scale * side)
    thing = cutout(character, font).resize((width, width), Image.Resampling.LANCZOS)
    thing = thing.rotate(pose.degrees, Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGB", (side, side), ground)
    at = (
        round(side * (0.5 + pose.right) - thing.width / 2),
        round(side * (0.5 + pose.down) - thing.height / 2),
    )
    canvas.paste(thing, at, thing)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def every_character(font: str = FONT) -> list[str]:
    """Every named single character that the font draws in colour, held-out subjects left out (for the autoencoder)."""
    hidden = {subject.character for subject in SUBJECTS}
    found = []
    for code in [*range(0x2190, 0x3300), *range(0x1F000, 0x1FB00)]:
        character = chr(code)
        if unicodedata.name(character, "") and character not in hidden and cutout(character, font).width > 16:
            found.append(character)
    return found

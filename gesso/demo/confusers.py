"""Pictures to train the oracle on: the 28 things as a model might draw them, and pictures that show none of them.

Without the second kind a judge has to choose a thing for every smear, and an untrained model earns marks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gesso.arrays import Picture
from gesso.demo.glyphs import FONT, GROUNDS, KNOWN, SIZE, SUBJECTS, Glyph, Pose, draw, every_character

THINGS: tuple[Glyph, ...] = KNOWN + SUBJECTS
ALIKE = (
    "CAT PANDA PIG FROG BEAR OWL UNICORN ROBOT ROCKET BALL BALLOON APPLE TREE PIZZA FLOWER BLOSSOM FRUIT HORSE DOG "
    "TIGER LION FOX MONKEY RED ROSE CAKE SUNFLOWER HIBISCUS CIRCLE MOON SUN FACE TULIP CACTUS FULLWIDTH HAMSTER WOLF"
)
"""Words in the Unicode names of glyphs that look too much like one of the 28 things to be called nothing."""


def other_characters(font: str = FONT) -> list[str]:
    """Glyphs that are clearly none of the 28 things, by the words of their Unicode names."""
    alike = {*ALIKE.split(), *(word for thing in THINGS for word in unicodedata.name(thing.character).split())}
    hidden = {thing.character for thing in THINGS}
    return [
        character
        for character in every_character(font)
        if character not in hidden and not alike & set(unicodedata.name(character).split())
    ]


def any_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A named ground two times in three, else any colour."""
    named = list(GROUNDS.values())
    red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
    return named[int(rng.integers(len(named)))] if rng.random() < 0.67 else (red, green, blue)


def loose_pose(rng: np.random.Generator) -> Pose:
    """Wider than pre-training's poses: a judge must not be stricter than the model's own variety."""
    return Pose(rng.uniform(0.52, 0.9), rng.uniform(-16, 16), rng.uniform(-0.09, 0.09), rng.uniform(-0.09, 0.09))


def shown(rng: np.random.Generator, thing: Glyph, font: str = FONT) -> Picture:
    """A clean picture of one thing, sometimes mirrored, with colours a little off."""
    picture = draw(thing.character, any_colour(rng), loose_pose(rng), font=font)
    if rng.random() < 0.2:
        picture = picture[:, ::-1]
    gain, shift = rng.uniform(0.85, 1.12, 3), rng.uniform(-14, 14, 3)
    return np.clip(picture * gain + shift, 0, 255).astype(np.uint8)


def blurred(picture: Picture, radius: float) -> Picture:
    """The picture under a Gaussian of that standard deviation, in pixels."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).filter(ImageFilter.GaussianBlur(radius)))


def noisy(rng: np.random.Generator, picture: Picture, strength: float) -> Picture:
    """The picture with Gaussian noise of that standard deviation (0 … 255)."""
    return np.clip(picture + rng.normal(0, strength, picture.shape), 0, 255).astype(np.uint8)


def bent(rng: np.random.Generator, picture: Picture) -> Picture:
    """The picture pulled a little out of shape, as a model's own drawings are: each corner up to 6 pixels inward."""
    inward = rng.uniform(0, 6, 8)
    far = SIZE - inward
    corners = (inward[0], inward[1], inward[2], far[3], far[4], far[5], far[6], inward[7])  # NW, SW, SE, NE
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.transform((SIZE, SIZE), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC))


def _thing(rng: np.random.Generator, font: str) -> Picture:
    return shown(rng, THINGS[int(rng.integers(len(THINGS)))], font)


def plain(rng: np.random.Generator, font: str) -> Picture:
    """A ground alone, even or running from one colour to another."""
    first, second = np.array(any_colour(rng)), np.array(any_colour(rng))
    if rng.random() < 0.5:
        second = first
    across = np.linspace(0, 1, SIZE)[:, None] if rng.random() < 0.5 else np.linspace(0, 1, SIZE)[None, :]
    mixed = first + np.broadcast_to(across, (SIZE, SIZE))[..., None] * (second - first)
    return noisy(rng, mixed.astype(np.uint8), rng.uniform(0, 12))


def static(rng: np.random.Generator, font: str) -> Picture:
    """Noise, fine or smooth, of any strength."""
    cells = int(rng.choice([4, 6, 8, 16, 32, 64]))
    noise = np.clip(rng.uniform(60, 190, 3) + rng.normal(0, rng.uniform(20, 110), (cells, cells, 3)), 0, 255)
    return np.asarray(Image.fromarray(noise.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def blobs(rng: np.random.Generator, font: str) -> Picture:
    """One to six soft blobs on a ground: what a model draws before it has learnt a shape."""
    canvas = Image.new("RGB", (SIZE, SIZE), any_colour(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 7))):
        x, y = rng.uniform(8, SIZE - 8, 2)
        half = rng.uniform(4, 22, 2)
        pen.ellipse((x - half[0], y - half[1], x + half[0], y + half[1]), fill=any_colour(rng))
    return noisy(rng, blurred(np.asarray(canvas), rng.uniform(2, 7)), rng.uniform(0, 8))


def smeared(rng: np.random.Generator, font: str) -> Picture:
    """A thing blurred until nobody could name it."""
    return noisy(rng, blurred(_thing(rng, font), rng.uniform(5, 10)), rng.uniform(0, 8))


def mixed(rng: np.random.Generator, font: str) -> Picture:
    """Two things through each other in nearly equal parts."""
    first, second = (THINGS[i] for i in rng.choice(len(THINGS), 2, replace=False))
    part = rng.uniform(0.42, 0.58)
    return (part * shown(rng, first, font) + (1 - part) * shown(rng, second, font)).astype(np.uint8)


def half_gone(rng: np.random.Generator, font: str) -> Picture:
    """A thing of which more than half is painted over with its ground."""
    picture = np.array(_thing(rng, font))
    keep = int(rng.integers(16, 26))
    side = int(rng.integers(4))
    turned = np.rot90(picture, side)
    turned[keep:] = picture[0, 0]
    return np.ascontiguousarray(np.rot90(turned, -side))


def shuffled(rng: np.random.Generator, font: str) -> Picture:
    """A thing cut into squares that are laid out in another order."""
    tile = int(rng.choice([8, 16]))
    n = SIZE // tile
    tiles = _thing(rng, font).reshape(n, tile, n, tile, 3).swapaxes(1, 2).reshape(n * n, tile, tile, 3)
    order = rng.permutation(n * n)
    return tiles[order].reshape(n, n, tile, tile, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 3)


KINDS: tuple[Callable[[np.random.Generator, str], Picture], ...] = (
    plain,
    static,
    blobs,
    blobs,
    smeared,
    smeared,
    mixed,
    half_gone,
    shuffled,
)


def nothing(rng: np.random.Generator, others: Sequence[str], font: str = FONT) -> Picture:
    """A picture that shows none of the 28 things; one in six shows a glyph from outside the tiny world."""
    if rng.random() < 1 / 6:
        stranger = Glyph("stranger", "none", others[int(rng.integers(len(others)))])
        return shown(rng, stranger, font)
    return KINDS[int(rng.integers(len(KINDS)))](rng, font)

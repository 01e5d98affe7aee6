"""Writes the picture folders of the tiny world: the pre-training set and the subjects to fine-tune on.

`python -m gesso.demo.pictures train FOLDER`, `… subject FOLDER --name "teddy bear"`, `… captioned FOLDER` or
`… known FOLDER`.
Every picture is a function of (seed, its number) alone, so a set can be cut short, continued or made in parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gesso import keys
from gesso.arrays import Picture, UInt8
from gesso.demo.glyphs import FONT, GROUNDS, KNOWN, SIZE, SUBJECTS, Glyph, Pose, caption, captions, draw, glyph, pairs

CLEAR_GROUNDS: dict[str, tuple[str, ...]] = {
    "teddy bear": ("blue", "green", "white", "purple", "black"),
    "robot": ("yellow", "green", "white", "orange", "black", "pink"),
    "owl": ("blue", "green", "white", "yellow", "pink", "purple"),
    "unicorn": ("blue", "green", "orange", "black", "red", "grey"),
    "kiwifruit": ("blue", "red", "white", "purple", "pink"),
    "aubergine": ("yellow", "green", "white", "orange", "pink", "grey"),
    "tulip": ("blue", "black", "white", "yellow", "grey"),
    "pretzel": ("blue", "green", "white", "purple", "black"),
}
"""The grounds on which a subject stands out; other pictures of it would teach less and please nobody."""
RARE = "sks"
"""The word that stands for the subject: a token of its own that pre-training never uses."""
CAPTIONED: tuple[str, ...] = ("owl", "robot", "unicorn", "aubergine")


def training_picture(seed: int, number: int, *, font: str = FONT) -> tuple[Picture, Glyph, str]:
    """Picture `number` of the pre-training set with its thing and ground; any 150 in a row show every pair once."""
    shown = pairs(held_out=False)
    order = keys.permutation(seed, "demo pair", number // len(shown), len(shown))
    thing, ground = shown[int(order[number % len(shown)])]
    pose = Pose.drawn(keys.generator(seed, "demo pose", number))
    return draw(thing.character, GROUNDS[ground], pose, font=font), thing, ground


def write_training_set(folder: Path, seed: int, count: int, *, font: str = FONT) -> None:
    """`count` pictures 00000.png … with metadata.jsonl, whose "text" is the list of captions to draw from."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        picture, thing, ground = training_picture(seed, number, font=font)
        name = f"{number:05d}.png"
        Image.fromarray(picture).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": captions(thing, ground)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def subject_pictures(
    name: str, count: int, seed: int, *, size: int = SIZE, grounds: Sequence[str] = (), font: str = FONT
) -> list[tuple[Picture, str]]:
    """`count` pictures of one thing with the ground of each, grounds taken in turn."""
    thing, grounds = glyph(name), tuple(grounds) or CLEAR_GROUNDS.get(name, tuple(GROUNDS))
    made = []
    for number in range(count):
        pose = Pose.drawn(keys.generator(seed, f"demo subject {name}", number))
        ground = grounds[number % len(grounds)]
        made.append((draw(thing.character, GROUNDS[ground], pose, size=size, font=font), ground))
    return made


def write_subject(folder: Path, name: str, count: int, seed: int, *, size: int = SIZE, font: str = FONT) -> None:
    """`count` pictures 0.png … of one thing, each captioned by the rare word and its class: a DreamBooth folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, ground) in enumerate(subject_pictures(name, count, seed, size=size, font=font)):
        Image.fromarray(picture).save(folder / f"{number}.png", optimize=True)
        words = caption(f"{RARE} {glyph(name).kind}", ground)
        (folder / f"{number}.txt").write_text(words + "\n", encoding="utf-8")


def write_captioned(folder: Path, names: Sequence[str], each: int, seed: int, *, size: int, font: str = FONT) -> None:
    """`each` pictures of every name with a caption file of the same stem: a captioned fine-tuning folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for number, (picture, ground) in enumerate(subject_pictures(name, each, seed, size=size, font=font)):
            stem = f"{name.replace(' ', '-')}-{number}"
            Image.fromarray(picture).save(folder / f"{stem}.png", optimize=True)
            (folder / f"{stem}.txt").write_text(caption(name, ground) + "\n", encoding="utf-8")


def scattered(seed: int, characters: Sequence[str], numbers: Sequence[int], *, font: str = FONT) -> UInt8:
    """Pictures for the autoencoder, uint8 [len(numbers), 64, 64, 3]: any glyph, looser poses, half on random colours.

    The named grounds alone would leave the autoencoder poor on every other colour, and users bring other colours.
    """
    named = list(GROUNDS.values())
    made = np.empty((len(numbers), SIZE, SIZE, 3), np.uint8)
    for row, number in enumerate(numbers):
        rng = keys.generator(seed, "demo autoencoder", number)
        character = characters[int(rng.integers(len(characters)))]
        any_colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        red, green, blue = any_colour if rng.random() < 0.5 else named[int(rng.integers(len(named)))]
        pose = Pose(rng.uniform(0.55, 0.95), rng.uniform(-20, 20), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))
        made[row] = draw(character, (red, green, blue), pose, font=font)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: writes one kind of folder."""
    parser = argparse.ArgumentParser(prog="python -m gesso.demo.pictures", description=__doc__)
    parser.add_argument("kind", choices=("train", "subject", "captioned", "known"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=0, help="train 10000, subject 5, captioned 6 each, known 1 each")
    parser.add_argument("--name", default="teddy bear", choices=[subject.name for subject in SUBJECTS])
    parser.add_argument("--size", type=int, default=SIZE, help="pixels, for subject and captioned")
    parser.add_argument("--font", default=FONT)
    given = parser.parse_args(arguments)
    if given.kind == "train":
        write_training_set(given.folder, given.seed, given.count or 10_000, font=given.font)
    elif given.kind == "subject":
        write_subject(given.folder, given.name, given.count or 5, given.seed, size=given.size, font=given.font)
    else:
        names, each = (CAPTIONED, 6) if given.kind == "captioned" else (tuple(thing.name for thing in KNOWN), 1)
        write_captioned(given.folder, names, given.count or each, given.seed, size=given.size, font=given.font)


if __name__ == "__main__":
    main()
